"""Compares the scores of "portrayal evaluate" with those of evaluation_scores.py on DreamBench's photographs, with random encoders from a seed: the photographs of
one subject are taken for pictures of another. Build first, then, from the repository's root:

    python scripts/reference/evaluation_parity.py path/to/dreambench [subjects]

Exits with 1 when any score differs by more than 1e-4.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

import evaluation_scores

PROMPTS = ["a {} on the beach", "a {} in the snow"]


def encoders(folder):
    """A ViT and a CLIP of the published ones' input size, small, with weights large enough to tell pictures apart."""
    torch.manual_seed(3)
    small = dict(hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128)
    vit = ViTModel(ViTConfig(**small, image_size=224, patch_size=16), add_pooling_layer=False)
    clip = CLIPModel(
        CLIPConfig(
            text_config=dict(**small, vocab_size=514, max_position_embeddings=77, bos_token_id=512, eos_token_id=513),
            vision_config=dict(**small, image_size=224, patch_size=32),
            projection_dim=48,
        )
    )
    for model, name, processor in ((vit, "dino", ViTImageProcessorPil()), (clip, "clip", CLIPImageProcessorPil())):
        for p in model.parameters():
            if p.ndim > 1:
                p.data = torch.randn(p.shape) * 1.5 * p[0].numel() ** -0.5
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    words = letters + [c + "</w>" for c in letters] + ["<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=77).save_pretrained(
        folder / "clip"
    )


def main():
    dreambench = Path(sys.argv[1])
    classes = json.loads((dreambench / "classes.json").read_text())
    subjects = sys.argv[2:] or list(classes)[:3]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        encoders(folder)
        listing, drawn = {}, {}
        for i, subject in enumerate(subjects):
            other = dreambench / "subjects" / subjects[(i + 1) % len(subjects)]
            files = evaluation_scores.pictures_of(other)
            drawn[subject] = [files[: len(files) // 2], files[len(files) // 2 :]]
            for p, own in enumerate(drawn[subject]):
                place = folder / "pictures" / subject / f"{p + 1:02d}"
                place.mkdir(parents=True)
                for file in own:
                    (place / file.name).write_bytes(file.read_bytes())
            listing[subject] = {"class": classes[subject], "prompts": "prompts.txt"}
        (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
        (folder / "subjects.json").write_text(json.dumps(listing))
        command = ["node", "bin/portrayal.js", "evaluate", "--references", str(dreambench / "subjects")]
        command += ["--pictures", f"shuffled={folder / 'pictures'}", "--subjects", str(folder / "subjects.json")]
        command += ["--dino", str(folder / "dino"), "--clip", str(folder / "clip"), "--output", str(folder / "out")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        ours = json.loads((folder / "out" / "scores.json").read_text())
        dino, clip = evaluation_scores.Dino(folder / "dino"), evaluation_scores.Clip(folder / "clip")
        worst = 0.0
        for subject in subjects:
            texts = [prompt.replace("{}", classes[subject]) for prompt in PROMPTS]
            references = evaluation_scores.pictures_of(dreambench / "subjects" / subject)
            scores, own = evaluation_scores.score(references, drawn[subject], texts, dino, clip, "dreambench")
            found = [(ours["scores"]["shuffled"][subject], scores), (ours["photographs"][subject], own)]
            for a, b in found:
                for metric, value in b.items():
                    worst = max(worst, abs(a[metric] - value))
                    print(f"{subject:24} {metric:10} {a[metric]: .7f} {value: .7f}")
        print(f"largest difference: {worst:.2e}")
        sys.exit(worst > 1e-4)


if __name__ == "__main__":
    main()
