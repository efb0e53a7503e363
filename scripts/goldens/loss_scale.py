"""Writes test/goldens/loss-scale.json: the scales of torch.amp.GradScaler on a scripted series of overflows, and AdamW through
steps that it skips.

    python scripts/goldens/loss_scale.py
"""

import json
from pathlib import Path

import torch

GOLDENS = Path(__file__).resolve().parents[2] / "test" / "goldens"
INTERVAL = 2000


def scales(steps, overflows):
    """The scale of each step, as runs of [scale, how many steps]."""
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    scaler = torch.amp.GradScaler("cpu")
    runs = []
    for step in range(1, steps + 1):
        scale = scaler.get_scale()
        if runs and runs[-1][0] == scale:
            runs[-1][1] += 1
        else:
            runs.append([scale, 1])
        optimizer.zero_grad()
        scaler.scale(parameter.sum()).backward()
        if step in overflows:
            parameter.grad[1] = float("inf") if step % 2 else float("nan")
        scaler.step(optimizer)
        scaler.update()
    return {"steps": steps, "overflows": sorted(overflows), "runs": runs}


def adamw(steps, overflows):
    random = torch.Generator().manual_seed(7)
    draw = lambda: torch.randn(6, generator=random)
    parameter = torch.nn.Parameter(draw())
    optimizer = torch.optim.AdamW([parameter], lr=0.01)
    scaler = torch.amp.GradScaler("cpu")
    record = {"learningRate": 0.01, "overflows": overflows, "start": parameter.tolist(), "gradients": [], "parameters": []}
    for step in range(1, steps + 1):
        gradient = draw()
        optimizer.zero_grad()
        scaler.scale((parameter * gradient).sum()).backward()
        if step in overflows:
            parameter.grad[2] = float("inf")
        scaler.step(optimizer)
        scaler.update()
        record["gradients"].append(gradient.tolist())
        record["parameters"].append(parameter.tolist())
    state = optimizer.state[parameter]
    return {**record, "expAvg": state["exp_avg"].tolist(), "expAvgSq": state["exp_avg_sq"].tolist(), "updates": int(state["step"])}


early = [1, 2, 3, 5, 40]
late = [INTERVAL + 39, INTERVAL + 40, INTERVAL + 41, 3 * INTERVAL + 60]
golden = {
    "scales": [
        scales(8500, set(early + late)),
        scales(2 * INTERVAL + 1, set()),
        scales(200, set(range(1, 180))),
    ],
    "adamw": adamw(8, [1, 4, 5]),
}
(GOLDENS / "loss-scale.json").write_text(json.dumps(golden) + "\n")
