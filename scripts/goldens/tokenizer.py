"""Token ids of transformers' CLIPTokenizer, for test/pretrained/tokenizer.test.ts.

Writes, below test/goldens/tokenizer, small tokenizers in the layouts that model folders have, and in cases.json the ids of some hundred prompts for each:
  sd1     vocab.json + merges.txt, settings as in Stable Diffusion 1 (padding with the end token)
  sd2     the same, settings as in Stable Diffusion 2 (padding with "!", id 0, given by special_tokens_map.json)
  saved   the first one with one token added, as transformers saves it today (tokenizer.json)
  words   written beforehand by word-tokenizer.ts; every word of it must be one token

Needs: pip install transformers tokenizers
"""

import json
import os
import random
import shutil

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

ROOT = "test/goldens/tokenizer"
START, END = "<|startoftext|>", "<|endoftext|>"

TEXT = """a photo of a sks dog in the jungle. a photograph of an astronaut riding a horse, highly detailed, digital painting!
a red backpack on the beach with mountains in the background; the cat's hat isn't wet, they're shiny and we've seen it'll rain.
a wooden floor in the city, a blue house behind a wheat field, autumn leaves on a cobblestone street, 4k 8k 1024 resolution""".lower()

PROMPTS = [
    "",
    " ",
    "\n\t  \r\n",
    "a photo of sks backpack",
    "A Photo Of SKS Backpack",
    "a  photo\tof\na   dog",
    "  leading and trailing  ",
    "a dog, a cat; a horse!",
    "!!!???...",
    "! a ! b!",
    "it's they're we've I'm she'll he'd can't",
    "IT'S THEY'RE O'CLOCK 'tis rock'n'roll ''s 's",
    "1024x1024 4k 8K 3.14 1,000,000 2nd №5",
    "½ ² Ⅷ ٣ ४ 三 ①",
    "café naïve coöperate Ångström",
    "cafe\u0301 nai\u0308ve e\u0301\u0301",
    "ﬁne ﬂuff ﬀ ſharp",
    "STRASSE straße ẞ",
    "İstanbul ISPARTA ıI",
    "ΟΔΥΣΣΕΥΣ Σ σς ΑΣ.",
    "Москва ЁЛКА ёлка",
    "日本の犬 東京タワー カタカナ",
    "한국어 각",
    "กำลัง ภาษาไทย",
    "שָׁלוֹם مرحبا بالعالم",
    "हिन्दी भाषा",
    "😀 😃😄 dog😀cat",
    "👩‍👩‍👧 🇫🇷🇩🇪 👍🏽 ❤️",
    "𝕏 𝓯𝓪𝓷𝓬𝔂 𠜎",
    "zero\u200bwidth joiner\u200d non\u00a0break \u3000wide \ufeffmark \u0085next \u2028line",
    "control \u0000 \u0001 \u007f \u001f",
    "under_score snake_case __init__ __proto__ constructor toString",
    "path/to/file.png https://example.com/?q=a&b=c#d",
    "(((masterpiece))), [[best]], {curly}, <lora:x:0.8>, (dog:1.3)",
    "\"quotes\" 'single' `back` «guillemets» “smart” ‘smart’",
    "a – b — c … d • e",
    "$5 €10 £3 100% #tag @user ^_^ ~ | \\",
    "<|startoftext|>",
    "a <|endoftext|> dog<|endoftext|>cat <|startoftext|>x",
    "a <|ENDOFTEXT|> dog",
    "a <SKS> dog <sks>dog<sks>",
    "x" * 300,
    "a dog in the jungle " * 20,
    "🐶" * 40,
    "word" + "! " * 50,
]

SUBJECTS = ["dog", "cat", "backpack", "stuffed animal", "teapot", "vase", "fancy boot", "berry bowl"]
SCENES = ["in the jungle", "in the snow", "on the beach", "on a cobblestone street", "on top of pink fabric",
          "with a city in the background", "wearing a santa hat", "on top of green grass with sunflowers around it"]


def prompts():
    """Fixed prompts, subjects in scenes, and seeded mixtures of characters that were assigned well before Unicode 15."""
    made = list(PROMPTS)
    made += [f"a sks {subject} {scene}" for subject in SUBJECTS for scene in SCENES]
    draw = random.Random(7)
    blocks = [(0x20, 0x7F), (0x20, 0x7F), (0xA0, 0x180), (0x391, 0x3A2), (0x3A3, 0x3CA), (0x410, 0x450), (0x5D0, 0x5EB),
              (0x905, 0x93A), (0xE01, 0xE3B), (0x2010, 0x2028), (0x2190, 0x2200), (0x3041, 0x3097), (0x4E00, 0x9FA6),
              (0xAC00, 0xD7A4), (0x1F600, 0x1F640)]
    for _ in range(150):
        length = draw.randrange(1, 16)
        made.append("".join(chr(draw.randrange(*draw.choice(blocks))) for _ in range(length)))
    return made


def byte_alphabet():
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(c) for c in printable] + [chr(0x100 + i) for i in range(256 - len(printable))]


def train_merges(count):
    """Merges over the sample text by the tokenizers library's own trainer."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=count, end_of_word_suffix="</w>", show_progress=False))
    return [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]


def write(name, merges, settings, special_tokens):
    folder = f"{ROOT}/{name}"
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    characters = byte_alphabet()
    tokens = [*characters, *(c + "</w>" for c in characters), *dict.fromkeys(a + b for a, b in merges), START, END]
    with open(f"{folder}/vocab.json", "w", encoding="utf-8") as file:
        json.dump({token: i for i, token in enumerate(tokens)}, file, ensure_ascii=False, separators=(",", ":"))
    with open(f"{folder}/merges.txt", "w", encoding="utf-8") as file:
        file.write("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    for file_name, value in (("tokenizer_config.json", settings), ("special_tokens_map.json", special_tokens)):
        with open(f"{folder}/{file_name}", "w", encoding="utf-8") as file:
            json.dump(value, file, indent=2)
    return folder


def marker(text):
    return {"__type": "AddedToken", "content": text, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}


def ids(folder, max_length=None):
    """Ids up to the end token; the padding follows from the settings and is stored once."""
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    length = max_length or tokenizer.model_max_length
    rows = []
    for prompt in prompts():
        row = tokenizer(prompt, padding="max_length", max_length=length, truncation=True).input_ids
        mask = tokenizer(prompt, padding="max_length", max_length=length, truncation=True).attention_mask
        kept = sum(mask)
        assert all(i == tokenizer.pad_token_id for i in row[kept:]) and len(row) == length
        rows.append(row[:kept])
    return {"maxLength": length, "padId": tokenizer.pad_token_id, "ids": rows}


def main():
    merges = train_merges(200)
    base = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 24, "add_prefix_space": False, "do_lower_case": True, "errors": "replace",
            "bos_token": marker(START), "eos_token": marker(END), "unk_token": marker(END)}
    plain = {k: v for k, v in marker(START).items() if k != "__type"}
    roles = {"bos_token": plain, "eos_token": {**plain, "content": END}, "unk_token": {**plain, "content": END}}
    cases = {
        "sd1": ids(write("sd1", merges, {**base, "pad_token": END}, {**roles, "pad_token": END})),
        "sd2": ids(write("sd2", merges, base, {**roles, "pad_token": "!"})),
    }
    tokenizer = CLIPTokenizer.from_pretrained(f"{ROOT}/sd1")
    tokenizer.add_tokens(["<sks>"])
    shutil.rmtree(f"{ROOT}/saved", ignore_errors=True)
    tokenizer.save_pretrained(f"{ROOT}/saved")
    cases["saved"] = ids(f"{ROOT}/saved")
    cases["words"] = ids(f"{ROOT}/words")
    words = CLIPTokenizer.from_pretrained(f"{ROOT}/words")
    with open(f"{ROOT}/words/merges.txt", encoding="utf-8") as file:
        whole = {a + b for a, b in (line.rstrip("\n").split(" ") for line in file if not line.startswith("#")) if b.endswith("</w>")}
    for word in ["backpack", "sunglasses", "cobblestone", "sks", "é", "naïve", "日本", "a", "1"]:
        assert len(words(word, add_special_tokens=False).input_ids) == 1, word
    print(len(whole), "words are whole")
    with open(f"{ROOT}/cases.json", "w", encoding="utf-8") as file:
        json.dump({"prompts": prompts(), "tokenizers": cases}, file, separators=(",", ":"))


main()
