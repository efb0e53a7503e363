"""Token ids of transformers' CLIPTokenizer, over the shipped vocabulary of CLIP, of the prompts that prompts.ts writes.

    node dist/scripts/goldens/prompts.js prompts.json
    python scripts/goldens/token-ids.py prompts.json test/goldens/tokenizer/varied.json

With --all the second file holds the ids themselves, for the reference suite; otherwise a SHA-256 for each hundred prompts, over the ids as little-endian 32-bit
numbers. A prompt's ids are those that the text encoder of Stable Diffusion 1 is given: 77, with padding.
"""

import hashlib
import json
import sys
from pathlib import Path

from transformers import CLIPTokenizer

tokenizer = CLIPTokenizer.from_pretrained(Path(__file__).resolve().parents[2] / "models" / "clip-tokenizer")
prompts = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
ids = [tokenizer(p, padding="max_length", max_length=77, truncation=True).input_ids for p in prompts]
assert all(len(row) == 77 for row in ids)
if "--all" in sys.argv:
    Path(sys.argv[2]).write_text(json.dumps(ids))
else:
    hashes = []
    for start in range(0, len(ids), 100):
        rows = ids[start : start + 100]
        hashes.append(hashlib.sha256(b"".join(i.to_bytes(4, "little") for row in rows for i in row)).hexdigest())
    Path(sys.argv[2]).write_text(json.dumps({"prompts": len(ids), "sha256": hashes}, indent=1) + "\n")
