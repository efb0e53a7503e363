"""Writes test/goldens/samplers.{json,safetensors}: what diffusers' schedulers make of the same noise.

The denoiser is a formula, sin(2 x + t / 100), so that only the sampler is tested. Noise and noise on the way come from torch.Generator("cpu"), one a sample.
A scheduler other than the file's own is made with from_config, as users do. Run from the repository's root:

    python scripts/goldens/samplers.py [FOLDER]
"""

import json
import sys
from pathlib import Path

import diffusers
import torch
from diffusers.utils.torch_utils import randn_tensor
from safetensors.torch import save_file

GOLDENS = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[2] / "test" / "goldens"
SHAPE = (2, 2, 3, 5)
SEEDS = [7, 8]

LATENT = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
# As the published models' files have them.
SD1 = dict(_class_name="PNDMScheduler", **LATENT, clip_sample=False, num_train_timesteps=1000, set_alpha_to_one=False, skip_prk_steps=True, steps_offset=1, trained_betas=None)
SD2_V = dict(SD1, _class_name="DDIMScheduler", prediction_type="v_prediction")
SDXL = dict(SD1, _class_name="EulerDiscreteScheduler", interpolation_type="linear", timestep_spacing="leading", use_karras_sigmas=False, sample_max_value=1.0, prediction_type="epsilon")
CLASSES = {
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-ancestral": "EulerAncestralDiscreteScheduler",
    "dpm": "DPMSolverMultistepScheduler",
    "ddpm": "DDPMScheduler",
}


def own(name, **settings):
    """A file of a scheduler's own class, as diffusers writes it: with all its settings."""
    return json.loads(getattr(diffusers, CLASSES[name])(**settings).to_json_string())


CASES = {}


def case(name, config, scheduler=None, karras=None, steps=20):
    CASES[name] = dict(config=config, scheduler=scheduler, karras=karras, steps=steps)


for model, config in (("Stable Diffusion 1", SD1), ("Stable Diffusion 2 with velocity", SD2_V)):
    for short in CLASSES:
        case(f"{model}, {short}", config, short)
    for short in ("euler", "dpm"):
        case(f"{model}, {short} with Karras sigmas", config, short, karras=True)
case("Stable Diffusion 1, its own", SD1)
case("Stable Diffusion XL, its own", SDXL)
for steps in (1, 2, 3, 4, 5):
    case(f"pndm in {steps}", SD1, steps=steps)
for spacing in ("leading", "trailing", "linspace"):
    for short in CLASSES:
        more = dict(skip_prk_steps=True) if short == "pndm" else {}
        case(f"{short}, {spacing}", own(short, **LATENT, **more, timestep_spacing=spacing, steps_offset=1), steps=13)
for short in ("ddim", "ddpm", "euler", "euler-ancestral", "dpm"):
    settings = dict(**LATENT, prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True)
    case(f"{short}, zero terminal signal", own(short, **settings))
case("euler, final sigma", own("euler", **LATENT, final_sigmas_type="sigma_min"))
case("euler, Karras sigmas in bounds", own("euler", **LATENT, use_karras_sigmas=True, sigma_min=0.1, sigma_max=10.0))
case("euler, Karras sigmas off", own("euler", **LATENT, use_karras_sigmas=True), "euler", karras=False)
case("pndm, ends clean", own("pndm", **LATENT, skip_prk_steps=True, set_alpha_to_one=True))
case("dpm, first order", own("dpm", **LATENT, solver_order=1))
case("dpm, Heun", own("dpm", **LATENT, solver_type="heun"))
case("dpm, final sigma", own("dpm", **LATENT, final_sigmas_type="sigma_min"))
case("dpm, final sigma in 9", own("dpm", **LATENT, final_sigmas_type="sigma_min"), steps=9)
case("dpm, final sigma in 9, second order", own("dpm", **LATENT, final_sigmas_type="sigma_min", lower_order_final=False), steps=9)
case("dpm, Euler at the end", own("dpm", **LATENT, final_sigmas_type="sigma_min", euler_at_final=True))
for spacing in ("leading", "trailing", "linspace"):
    case(f"dpm, cosine schedule, {spacing}", own("dpm", beta_schedule="squaredcos_cap_v2", lambda_min_clipped=-5.1, timestep_spacing=spacing))
case("ddpm, clipped", own("ddpm", **LATENT, clip_sample_range=1.5))
case("ddpm, logarithm", own("ddpm", **LATENT, clip_sample=False, variance_type="fixed_small_log"))
case("ddpm, large variance", own("ddpm", **LATENT, clip_sample=False, variance_type="fixed_large"))

tensors = {}
for name, made in CASES.items():
    config = made["config"]
    scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
    if made["scheduler"]:
        change = {} if made["karras"] is None else dict(use_karras_sigmas=made["karras"])
        scheduler = getattr(diffusers, CLASSES[made["scheduler"]]).from_config(scheduler.config, **change)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in SEEDS]
    draws = {"generator": generators} if "generator" in scheduler.step.__code__.co_varnames else {}
    scheduler.set_timesteps(made["steps"])
    sample = randn_tensor(SHAPE, generator=generators) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        prediction = torch.sin(2 * scheduler.scale_model_input(sample, t) + t / 100)
        sample = scheduler.step(prediction, t, sample, **draws).prev_sample
    made["timesteps"] = scheduler.timesteps.tolist()
    assert sample.isfinite().all(), name
    tensors[name] = sample

save_file({k: v.contiguous() for k, v in tensors.items()}, GOLDENS / "samplers.safetensors")
(GOLDENS / "samplers.json").write_text(json.dumps({"shape": SHAPE, "seeds": SEEDS, "cases": CASES}) + "\n")
print({k: round(v.abs().max().item(), 2) for k, v in tensors.items()})
