"""Writes test/goldens/torch-random.json: numbers of torch.randn from seeded generators on a processor.

Each case draws one size after the other from one generator; of each draw there are the first numbers and the SHA-256 of its float32 bytes. PyTorch's
numbers differ in their last bits between processors; these are of the AVX2 code, which processors with AVX-512 run too. Run from the repository's root:

    python scripts/goldens/torch-random.py
"""

import hashlib
import json
from pathlib import Path

import torch

GOLDEN = Path(__file__).resolve().parents[2] / "test" / "goldens" / "torch-random.json"
assert torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"), "a processor with AVX2 is needed"

CASES = [
    (0, [(1, 4, 64, 64)]),
    (1234, [(16,), (17,), (31,), (100,), (1000003,)]),
    (7, [(3,), (4,), (20,), (1,), (2,), (1, 4, 6, 10), (15,), (16,)]),
    (42, [(1, 4, 96, 96)] * 3),
    (2**32 - 1, [(1, 4, 8, 8)]),
    (2**32 + 5, [(1, 4, 8, 8)]),
    (2**53 - 1, [(40000,)]),
]

cases = []
for seed, shapes in CASES:
    generator = torch.Generator("cpu").manual_seed(seed)
    draws = [torch.randn(shape, generator=generator) for shape in shapes]
    cases.append(
        {
            "seed": seed,
            "draws": [
                {"shape": list(d.shape), "first": d.flatten()[:4].tolist(), "sha256": hashlib.sha256(d.numpy().tobytes()).hexdigest()}
                for d in draws
            ],
        }
    )
GOLDEN.write_text(json.dumps(cases, indent=1) + "\n")
