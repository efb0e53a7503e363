"""Writes test/goldens/encoder-losses.json: the objectives of the small encoders and their gradients, from PyTorch.

    python scripts/goldens/encoder_losses.py
"""

import json
import math
from pathlib import Path

import torch
from torch.nn import functional as F

GOLDENS = Path(__file__).resolve().parents[2] / "test" / "goldens"
random = torch.Generator().manual_seed(12)


def flat(t):
    return [float(f"{v:.9g}") for v in t.detach().flatten().tolist()]


def record(t):
    return {"shape": list(t.shape), "data": flat(t)}


def sinkhorn(scores, temperature, rounds=3):
    """Balanced assignment, as DINOv2's published equations have it: rows are pictures, columns prototypes."""
    q = torch.exp((scores / temperature).double() - (scores / temperature).double().max()).T
    q = q / q.sum()
    k, b = q.shape
    for _ in range(rounds):
        q = q / q.sum(1, keepdim=True) / k
        q = q / q.sum(0, keepdim=True) / b
    return (q * b).T.float()


def distillation():
    views, batch, prototypes = 2, 6, 9
    student = [torch.randn(batch, prototypes, generator=random, requires_grad=True) for _ in range(views)]
    teacher = [torch.randn(batch, prototypes, generator=random) * 0.4 for _ in range(views)]
    targets = sinkhorn(torch.cat(teacher), 0.05).chunk(views)
    losses = [
        -(t * F.log_softmax(s / 0.1, dim=-1)).sum(-1).mean()
        for i, t in enumerate(targets)
        for j, s in enumerate(student)
        if i != j
    ]
    loss = sum(losses) / len(losses)
    loss.backward()
    return {
        "student": [record(s) for s in student],
        "teacher": [record(t) for t in teacher],
        "loss": loss.item(),
        "gradients": [record(s.grad) for s in student],
    }


def contrast(log_scale):
    images = torch.randn(5, 7, generator=random, requires_grad=True)
    texts = torch.randn(5, 7, generator=random, requires_grad=True)
    scale = torch.tensor(log_scale, requires_grad=True)
    a, b = F.normalize(images, dim=-1), F.normalize(texts, dim=-1)
    logits = scale.clamp(0, math.log(100)).exp() * a @ b.T
    own = torch.arange(len(images))
    loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    loss.backward()
    return {
        "images": record(images),
        "texts": record(texts),
        "logScale": log_scale,
        "loss": loss.item(),
        "gradients": {"images": record(images.grad), "texts": record(texts.grad), "logScale": scale.grad.item()},
    }


goldens = {"distillation": distillation(), "contrast": [contrast(2.5), contrast(5.0)]}
(GOLDENS / "encoder-losses.json").write_text(json.dumps(goldens) + "\n")
