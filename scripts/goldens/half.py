"""Writes test/goldens/half.safetensors: how PyTorch rounds float32 to half precision, and what bfloat16 patterns stand for.

    python scripts/goldens/half.py
"""

from pathlib import Path

import torch
from safetensors.torch import save_file

GOLDENS = Path(__file__).resolve().parents[2] / "test" / "goldens"
random = torch.Generator().manual_seed(1)

# The midpoints between neighbouring halves, where rounding to even decides, and the floats just beside them.
halves = torch.arange(0, 0x7C00, 37, dtype=torch.int32).to(torch.int16).view(torch.float16)
following = (halves.view(torch.int16) + 1).view(torch.float16)
middle = ((halves.double() + following.double()) / 2)[torch.isfinite(following)].float()
beside = [(middle.view(torch.int32) + d).view(torch.float32) for d in (-1, 1)]
special = torch.tensor(
    [0.0, -0.0, float("inf"), float("-inf"), float("nan"), 65504, 65519.996, 65520, 65536, 1e10, 2**-24, 2**-25, 2**-26, 1e-45]
)
spread = torch.randn(500, generator=random) * torch.exp(torch.randn(500, generator=random) * 6)
values = torch.cat([middle, *beside, special, spread])
values = torch.cat([values, -values])
patterns = torch.randint(-0x8000, 0x7F80, (500,), generator=random).to(torch.int16)
numbers = patterns.view(torch.bfloat16).float()
keep = ~numbers.isnan()

GOLDENS.mkdir(parents=True, exist_ok=True)
save_file(
    {
        "values": values,
        "halves": values.half(),
        "bfloat16 patterns": patterns[keep].view(torch.float16),
        "bfloat16 values": numbers[keep].clone(),
    },
    GOLDENS / "half.safetensors",
)
print(f"{len(values)} roundings")
