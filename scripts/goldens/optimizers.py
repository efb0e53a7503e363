"""Writes test/goldens/optimizers.json: AdamW, SGD, clipping and moving averages from PyTorch and diffusers, step by step, and the
learning-rate schedules of diffusers.

    python scripts/goldens/optimizers.py
"""

import json
from pathlib import Path

import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel

GOLDENS = Path(__file__).resolve().parents[2] / "test" / "goldens"
SHAPES = {"w": [3, 4], "b": [5], "k": [2, 1, 3], "s": []}
STEPS = 12
random = torch.Generator().manual_seed(5)


def flat(t):
    """Nine digits tell float32 numbers apart."""
    return [float(f"{v:.9g}") for v in t.detach().flatten().tolist()]


def start():
    return {n: torch.nn.Parameter(torch.randn(s, generator=random)) for n, s in SHAPES.items()}


def gradients(scale):
    return [{n: torch.randn(s, generator=random) * scale for n, s in SHAPES.items()} for _ in range(STEPS)]


def run(make, learning_rates, scale=1.0, max_norm=None, ema=None):
    """Steps an optimiser along random gradients; what it started with, was given, and came to."""
    parameters = start()
    record = {"start": {n: flat(p) for n, p in parameters.items()}, "learningRates": learning_rates, "steps": []}
    optimizer = make(list(parameters.values()))
    average = EMAModel(list(parameters.values()), decay=ema) if ema else None
    for learning_rate, given in zip(learning_rates, gradients(scale)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        for n, p in parameters.items():
            p.grad = given[n].clone()
        norm = torch.nn.utils.clip_grad_norm_(list(parameters.values()), max_norm) if max_norm else None
        optimizer.step()
        if average:
            average.step(list(parameters.values()))
        record["steps"].append(
            {
                "gradients": {n: flat(g) for n, g in given.items()},
                **({"norm": norm.item()} if norm is not None else {}),
                **({"decay": average.cur_decay_value} if average else {}),
                "parameters": {n: flat(p) for n, p in parameters.items()},
            }
        )
    record["end"] = {
        key: {n: flat(optimizer.state[p][key]) for n, p in parameters.items()}
        for key in ("exp_avg", "exp_avg_sq")
        if key in next(iter(optimizer.state.values()), {})
    }
    if average:
        record["end"]["ema"] = {n: flat(p) for n, p in zip(parameters, average.shadow_params)}
    return record


def adamw(**options):
    return lambda parameters: torch.optim.AdamW(parameters, **options)


def schedule(name, warmup, total, steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    # diffusers' "constant" forgets the warm-up; its "constant_with_warmup" is the one with it.
    kind = "constant_with_warmup" if name == "constant" else name
    scheduler = get_scheduler(kind, optimizer, num_warmup_steps=warmup, num_training_steps=total)
    factors = []
    for _ in range(steps):
        factors.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return {"schedule": name, "warmupSteps": warmup, "totalSteps": total, "factors": factors}


varying = [1e-2 * (1 - i / STEPS) for i in range(STEPS)]
golden = {
    "shapes": SHAPES,
    "adamw": {"options": {}, **run(adamw(), [1e-3] * STEPS)},
    "adamw, other settings": {
        "options": {"beta1": 0.8, "beta2": 0.95, "epsilon": 1e-3, "weightDecay": 0.3},
        **run(adamw(betas=(0.8, 0.95), eps=1e-3, weight_decay=0.3), varying),
    },
    "adamw, tiny gradients": {"options": {}, **run(adamw(), [1e-3] * STEPS, scale=1e-7)},
    "adamw, clipped": {"options": {}, "maxNorm": 1.0, **run(adamw(), [1e-3] * STEPS, scale=0.25, max_norm=1.0)},
    "sgd": run(lambda parameters: torch.optim.SGD(parameters, lr=1.0), varying),
    "sgd, clipped": {
        "maxNorm": 0.5,
        **run(lambda parameters: torch.optim.SGD(parameters, lr=1.0), varying, scale=0.12, max_norm=0.5),
    },
    "ema": {"options": {}, "maximum": 0.5, **run(adamw(), [1e-2] * STEPS, ema=0.5)},
    "schedules": [
        schedule("constant", 0, 20, 25),
        schedule("constant", 5, 20, 25),
        schedule("linear", 0, 20, 25),
        schedule("linear", 5, 20, 25),
        schedule("cosine", 0, 20, 20),
        schedule("cosine", 5, 20, 20),
        schedule("cosine", 3, 4, 4),
    ],
}

GOLDENS.mkdir(parents=True, exist_ok=True)
(GOLDENS / "optimizers.json").write_text(json.dumps(golden) + "\n")
