"""Writes test/goldens/encoders/<name>/, small random image encoders saved by transformers itself, and encoders.safetensors: pictures, the
embeddings that transformers computes from them, and the gradients of those with respect to the pictures.

Pictures are prepared in single-precision tensors with torch's antialiased interpolation, as the folder's preprocessor_config.json says;
what transformers' own processor, which rounds to bytes, makes of one picture is there too. Run from the repository's root:

    python scripts/goldens/encoders.py
"""

import json
import shutil
from pathlib import Path

import numpy
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    BitImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
    ViTModel,
)

GOLDENS = Path(__file__).resolve().parents[2] / "test" / "goldens" / "encoders"
random = torch.Generator().manual_seed(5)
tensors = {}


def normal(*shape):
    return torch.randn(shape, generator=random)


def randomize(model):
    """Moves every parameter off its default: no zero bias, no norm or layer scale of exactly one."""
    for name, p in model.named_parameters():
        if p.ndim <= 1:
            p.data = (1.0 if "norm" in name or "lambda" in name else 0.0) + 0.2 * normal(*p.shape)
        elif "token" in name or "position" in name:
            p.data = 0.5 * normal(*p.shape)
        else:
            p.data = normal(*p.shape) * p[0].numel() ** -0.5
    return model.eval()


def prepare(pixels, config):
    """preprocessor_config.json in tensors: [B, 3, H, W] in [-1, 1] to what the encoder takes."""
    x = pixels.clamp(-1, 1) / 2 + 0.5
    size = config["size"]
    if "shortest_edge" in size:
        short, long = sorted(x.shape[-2:])
        side = size["shortest_edge"]
        target = [side if d == short else side * long // short for d in x.shape[-2:]]
    else:
        target = [size["height"], size["width"]]
    mode = {2: "bilinear", 3: "bicubic"}[config["resample"]]
    x = F.interpolate(x, target, mode=mode, antialias=True, align_corners=False)
    if config.get("do_center_crop"):
        h, w = config["crop_size"]["height"], config["crop_size"]["width"]
        top, left = (x.shape[2] - h) // 2, (x.shape[3] - w) // 2
        x = x[:, :, top : top + h, left : left + w]
    mean, std = (torch.tensor(config[k]).view(1, 3, 1, 1) for k in ("image_mean", "image_std"))
    return (x - mean) / std


def record(name, model, processor, embed, sizes):
    folder = GOLDENS / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    config = json.loads((folder / "preprocessor_config.json").read_text())
    for h, w in sizes:
        # Some values lie beyond the range, as a decoder's do.
        pixels = (0.6 * normal(2, 3, h, w)).requires_grad_()
        result = embed(prepare(pixels, config))
        cotangent = normal(*result.shape)
        (result * cotangent).sum().backward()
        key = f"{name}/{h}x{w}"
        tensors[f"{key}/pixels"], tensors[f"{key}/embedding"] = pixels.detach(), result.detach()
        tensors[f"{key}/cotangent"], tensors[f"{key}/gradient"] = cotangent, pixels.grad
    # So flat that a cubic kernel overshoots into nothing that would be clipped.
    picture = torch.randint(80, 176, (24, 17, 3), generator=random).to(torch.uint8)
    tensors[f"{name}/picture"] = picture
    values = processor(Image.fromarray(picture.numpy()), return_tensors="np")["pixel_values"]
    tensors[f"{name}/processed"] = torch.from_numpy(numpy.asarray(values))
    return folder


def tokenizer():
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    words = letters + [c + "</w>" for c in letters] + ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=24)


def clip(name, legacy):
    small = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40)
    model = randomize(
        CLIPModel(
            CLIPConfig(
                text_config=dict(
                    **small, vocab_size=514, max_position_embeddings=24, bos_token_id=512, eos_token_id=2 if legacy else 513
                ),
                vision_config=dict(**small, image_size=12, patch_size=4, hidden_act="gelu" if legacy else "quick_gelu"),
                projection_dim=10,
            )
        )
    )
    processor = CLIPImageProcessorPil(size={"shortest_edge": 12}, crop_size={"height": 12, "width": 12})
    folder = record(name, model, processor, lambda x: model.get_image_features(x).pooler_output, [(20, 20)])
    tokens = tokenizer()
    tokens.save_pretrained(folder)
    for i, text in enumerate(["a photo of sks backpack", "a red teapot, in the snow!"]):
        ids = tokens(text, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
        tensors[f"{name}/text {i}"] = model.get_text_features(ids).pooler_output.detach()


shape = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=12, patch_size=4)
vit = randomize(ViTModel(ViTConfig(**shape, intermediate_size=40)))
square = ViTImageProcessorPil(size={"height": 12, "width": 12})
record("vit-tiny", vit, square, lambda x: vit(x).last_hidden_state[:, 0], [(20, 20), (7, 9)])

head = randomize(ViTForImageClassification(ViTConfig(**shape, intermediate_size=40, qkv_bias=False)))
record("vit-head-tiny", head, square, lambda x: head.vit(x).last_hidden_state[:, 0], [(20, 20)])

bit = BitImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 20, "width": 16}, resample=3)
for name, swiglu in (("dinov2-tiny", False), ("dinov2-swiglu-tiny", True)):
    model = randomize(Dinov2Model(Dinov2Config(**shape, use_swiglu_ffn=swiglu)))
    record(name, model, bit, lambda x: model(x).last_hidden_state[:, 0], [(33, 41)])

clip("clip-tiny", legacy=False)
clip("clip-legacy-tiny", legacy=True)
save_file({k: v.contiguous() for k, v in sorted(tensors.items())}, GOLDENS / "encoders.safetensors")
