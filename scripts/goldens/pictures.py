"""Writes test/goldens/pictures.{json,safetensors}: pictures that diffusers' StableDiffusionPipeline draws with the small random checkpoints of models.py.

Run after models.py, from the repository's root:

    python scripts/goldens/pictures.py
"""

import json
from pathlib import Path

import diffusers
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

GOLDENS = Path(__file__).resolve().parents[2] / "test" / "goldens"
diffusers.logging.set_verbosity_error()
diffusers.logging.disable_progress_bar()
torch.set_num_threads(1)

REQUESTS = [("a photo of a red backpack", 0), ("A cat, 4k!", 1234567), ("", 2**32 - 2)]
NEGATIVE = "blurry"
# Model, side in pixels, scheduler (None: the model's own), guidance.
CASES = {
    "PNDM": ("sd1-tiny", 16, None, {}, 7.5),
    "DDIM": ("sd1-tiny", 16, "DDIMScheduler", {}, 7.5),
    "Euler ancestral": ("sd1-tiny", 16, "EulerAncestralDiscreteScheduler", {}, 4.0),
    "DDIM, velocity": ("sd2-tiny-sharded", 32, None, {}, 7.5),
    "Euler, velocity": ("sd2-tiny-sharded", 32, "EulerDiscreteScheduler", {}, 7.5),
    "DPM++ 2M, velocity": ("sd2-tiny-sharded", 32, "DPMSolverMultistepScheduler", {}, 7.5),
    "DPM++ 2M, Karras sigmas, velocity": ("sd2-tiny-sharded", 32, "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, 7.5),
    "DDPM, velocity": ("sd2-tiny-sharded", 32, "DDPMScheduler", {}, 3.0),
}
STEPS = 20

tensors, cases = {}, {}
for name, (model, side, scheduler, settings, guidance) in CASES.items():
    pipe = StableDiffusionPipeline.from_pretrained(GOLDENS / "models" / model, dtype=torch.float32, safety_checker=None)
    if scheduler:
        pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config, **settings)
    pipe.set_progress_bar_config(disable=True)
    pictures = pipe(
        [prompt for prompt, _ in REQUESTS],
        negative_prompt=[NEGATIVE] * len(REQUESTS),
        height=side,
        width=side,
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        generator=[torch.Generator("cpu").manual_seed(seed) for _, seed in REQUESTS],
        output_type="np",
    ).images
    # As a PNG file holds them.
    tensors[name] = torch.from_numpy((pictures * 255).round().astype("uint8")).contiguous()
    print(name, "spread", round(float(pictures.std()), 3), "at the ends", round(float(((pictures == 0) | (pictures == 1)).mean()), 3))
    cases[name] = {
        "model": model,
        "resolution": side,
        "scheduler": scheduler,
        "useKarrasSigmas": settings.get("use_karras_sigmas"),
        "guidanceScale": guidance,
    }

record = {"steps": STEPS, "negativePrompt": NEGATIVE, "requests": [{"prompt": p, "seed": s} for p, s in REQUESTS], "cases": cases}
save_file(tensors, GOLDENS / "pictures.safetensors")
(GOLDENS / "pictures.json").write_text(json.dumps(record, indent=1) + "\n")
