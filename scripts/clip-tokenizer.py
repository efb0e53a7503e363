"""Writes models/clip-tokenizer, the vocabulary of CLIP, from the file that open_clip_torch's wheel carries (MIT licence, OpenAI):

    pip download --no-deps open_clip_torch
    unzip -p open_clip_torch-*.whl open_clip/bpe_simple_vocab_16e6.txt.gz > bpe_simple_vocab_16e6.txt.gz
    python scripts/clip-tokenizer.py bpe_simple_vocab_16e6.txt.gz
"""

import gzip
import json
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "models" / "clip-tokenizer"
SIZE = 49408

printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
lines = gzip.open(sys.argv[1], "rt", encoding="utf-8").read().split("\n")
merges = lines[1 : SIZE - 2 * 256 - 2 + 1]
words = letters + [c + "</w>" for c in letters] + [m.replace(" ", "") for m in merges] + ["<|startoftext|>", "<|endoftext|>"]
assert len(words) == len(set(words)) == SIZE

FOLDER.mkdir(parents=True, exist_ok=True)
vocabulary = json.dumps({word: i for i, word in enumerate(words)}, ensure_ascii=False, separators=(",", ":"))
(FOLDER / "vocab.json").write_text(vocabulary + "\n", encoding="utf-8")
(FOLDER / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
