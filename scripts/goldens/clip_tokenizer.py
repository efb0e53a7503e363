"""Token ids of transformers' CLIPTokenizer with the shipped vocabulary, for the prompts of test/goldens/tokenizer/cases.json and the names of the world's
scenes in the prompts of the demo; written to test/goldens/tokenizer/clip.json."""

import json
from pathlib import Path

from transformers import CLIPTokenizer

ROOT = Path(__file__).resolve().parents[2]
GOLDENS = ROOT / "test" / "goldens" / "tokenizer"
PHRASES = [
    "a photograph of an astronaut riding a horse on mars, highly detailed, trending on artstation",
    "sks ohwx zwx xyz abracadabra antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "Portrait of a Führer-like général à Zürich, smörgåsbord, naïve façade, jalapeño piñata",
    "cyberpunk city at night, neon lights, 8k uhd, dslr, f/1.8, iso100, (masterpiece:1.3), [bad hands]",
]

prompts = json.loads((GOLDENS / "cases.json").read_text())["prompts"] + PHRASES
tokenizer = CLIPTokenizer.from_pretrained(ROOT / "models" / "clip-tokenizer")
assert len(tokenizer) == 49408
ids = tokenizer(prompts, truncation=True, max_length=77).input_ids
(GOLDENS / "clip.json").write_text(json.dumps({"phrases": PHRASES, "ids": ids}, separators=(",", ":")) + "\n")
print(len(prompts), ids[3], ids[-4])
