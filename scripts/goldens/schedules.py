"""Writes test/goldens/schedules.{json,safetensors}: noise schedules, sampler timesteps and DDIM results from diffusers.

The denoiser is a formula, sin(3 x + t / 100), so that only the sampler is tested. Run from the repository's root:

    python scripts/goldens/schedules.py
"""

import json
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from safetensors.torch import save_file

GOLDENS = Path(__file__).resolve().parents[2] / "test" / "goldens"
random = torch.Generator().manual_seed(5)

CASES = {
    "linear": dict(beta_schedule="linear", clip_sample=False),
    "scaled linear": dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
    "cosine": dict(beta_schedule="squaredcos_cap_v2", clip_sample=True, clip_sample_range=1.5),
    "few": dict(beta_schedule="scaled_linear", num_train_timesteps=37, timestep_spacing="linspace", clip_sample=False),
    "velocity": dict(beta_schedule="linear", prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=True),
    "zero terminal": dict(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        clip_sample=False,
    ),
    "given betas": dict(trained_betas=[0.01, 0.02, 0.05, 0.1, 0.2, 0.4], num_train_timesteps=6, clip_sample=False),
}
STEPS = [1, 3, 7, 10, 30, 50]

noise = torch.randn(1, 2, 3, 5, generator=random)
tensors = {"noise": noise}
cases = {}
for name, settings in CASES.items():
    scheduler = DDIMScheduler(**settings)
    tensors[f"{name}: alphas_cumprod"] = scheduler.alphas_cumprod
    timesteps = {}
    for steps in STEPS:
        if steps > scheduler.config.num_train_timesteps:
            continue
        scheduler.set_timesteps(steps)
        timesteps[steps] = scheduler.timesteps.tolist()
    steps = min(10, len(scheduler.alphas_cumprod))
    scheduler.set_timesteps(steps)
    sample = noise
    for t in scheduler.timesteps:
        sample = scheduler.step(torch.sin(3 * sample + t / 100), t, sample).prev_sample
    tensors[f"{name}: sample"] = sample
    times = torch.tensor([0, len(scheduler.alphas_cumprod) // 2, len(scheduler.alphas_cumprod) - 1])
    clean = torch.linspace(-2, 2, 3 * 8).reshape(3, 2, 2, 2)
    eps = torch.randn(3, 2, 2, 2, generator=random)
    tensors |= {
        f"{name}: times": times,
        f"{name}: clean": clean,
        f"{name}: eps": eps,
        f"{name}: noisy": scheduler.add_noise(clean, eps, times),
        f"{name}: velocity": scheduler.get_velocity(clean, eps, times),
    }
    cases[name] = {"config": {"_class_name": "DDIMScheduler", **settings}, "timesteps": timesteps, "steps": steps}

save_file({k: v.contiguous() for k, v in tensors.items()}, GOLDENS / "schedules.safetensors")
(GOLDENS / "schedules.json").write_text(json.dumps(cases) + "\n")
print({k: v["steps"] for k, v in cases.items()})
