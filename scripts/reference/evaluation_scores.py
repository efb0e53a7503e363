"""Scores pictures as the protocol of DreamBench says it, with PyTorch, transformers and Pillow: a reference to compare "portrayal evaluate" with.

    python scripts/reference/evaluation_scores.py --references DIR --pictures DIR --subjects FILE.json --prompts FILE \
        [--dino DIR] [--clip DIR] [--protocol customconcept101]

--references and --pictures hold a folder for each subject; in the latter there is one for each prompt, sorted as the lines of the file of
prompts, which have {} where the class goes. Prints JSON: subject -> metric -> score, and the photographs' own scores.
"""

import argparse
import json
from pathlib import Path

import numpy
import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoTokenizer

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])


def transform(image, resize, crop, mean, std):
    """torchvision's Resize(bicubic), CenterCrop, ToTensor, Normalize on a Pillow picture."""
    image = image.convert("RGB")
    w, h = image.size
    short, long = min(w, h), max(w, h)
    size = (resize, int(resize * long / short)) if w <= h else (int(resize * long / short), resize)
    image = image.resize(size, Image.BICUBIC)
    left, top = int(round((size[0] - crop) / 2.0)), int(round((size[1] - crop) / 2.0))
    image = image.crop((left, top, left + crop, top + crop))
    x = torch.from_numpy(numpy.array(image)).permute(2, 0, 1).float() / 255
    return (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


class Dino:
    def __init__(self, folder):
        self.model = AutoModel.from_pretrained(folder).eval()
        config = AutoConfig.from_pretrained(folder)
        self.side = config.image_size
        if config.model_type == "dinov2":
            crop = json.loads((Path(folder) / "preprocessor_config.json").read_text()).get("crop_size")
            self.side = crop["height"] if crop else self.side

    def images(self, files):
        resize = round(self.side * 256 / 224)
        x = torch.stack([transform(Image.open(f), resize, self.side, *IMAGENET) for f in files])
        with torch.no_grad():
            return unit(self.model(x).last_hidden_state[:, 0].double())


class Clip:
    def __init__(self, folder):
        self.model = AutoModel.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.side = self.model.config.vision_config.image_size

    def images(self, files):
        x = torch.stack([transform(Image.open(f), self.side, self.side, *CLIP) for f in files])
        with torch.no_grad():
            found = self.model.get_image_features(x)
        return unit(getattr(found, "pooler_output", found).double())

    def texts(self, texts):
        ids = self.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        with torch.no_grad():
            found = self.model.get_text_features(ids["input_ids"])
        return unit(getattr(found, "pooler_output", found).double())


def pictures_of(folder):
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in {".png", ".jpg", ".jpeg"})


def among(vectors):
    """Mean cosine over pairs of different rows."""
    n = len(vectors)
    return float(((vectors @ vectors.T).sum() - n) / (n * (n - 1))) if n > 1 else None


def score(references, prompts, texts, dino, clip, protocol):
    """Scores of one subject: files of its photographs, files of the pictures of each prompt, and the prompts."""
    result, own = {}, {}
    if dino:
        real, made = dino.images(references), [dino.images(files) for files in prompts]
        result["dino"] = float((torch.cat(made) @ real.T).mean())
        own["dino"] = among(real)
    if clip:
        real, seen = clip.images(references), [clip.images(files) for files in prompts]
        result["clipI"] = float((torch.cat(seen) @ real.T).mean())
        cosines = torch.cat([images @ text for images, text in zip(seen, clip.texts(texts))])
        if protocol == "customconcept101":
            cosines = 2.5 * cosines.clamp(min=0)
        result["clipT"] = float(cosines.mean())
        own["clipI"] = among(real)
    spread = [among(v) for v in (made if dino else seen)]
    if spread[0] is not None:
        result["diversity"] = float(numpy.mean([1 - s for s in spread]))
    return result, own


def main():
    parser = argparse.ArgumentParser()
    for flag in ("references", "pictures", "subjects", "prompts"):
        parser.add_argument(f"--{flag}", type=Path, required=True)
    parser.add_argument("--dino")
    parser.add_argument("--clip")
    parser.add_argument("--protocol", default="dreambench")
    args = parser.parse_args()
    dino, clip = args.dino and Dino(args.dino), args.clip and Clip(args.clip)
    templates = args.prompts.read_text().split("\n")
    templates = [t.strip() for t in templates if t.strip()]
    scores, photographs = {}, {}
    for subject, noun in json.loads(args.subjects.read_text()).items():
        folders = sorted(f for f in (args.pictures / subject).iterdir() if f.is_dir())
        scores[subject], photographs[subject] = score(
            pictures_of(args.references / subject),
            [pictures_of(folder) for folder in folders],
            [t.replace("{}", noun) for t in templates],
            dino,
            clip,
            args.protocol,
        )
    print(json.dumps({"scores": scores, "photographs": photographs}, indent=1))


if __name__ == "__main__":
    main()
