"""The other side of the benchmark of forward passes: the same network and inputs in PyTorch with diffusers and transformers.

Takes its task as JSON in the first argument, prints a line of JSON when it is ready, runs once for each line "step" that it
reads, and ends at "end". bench/run.ts starts it.
"""

import json
import sys
import time
from pathlib import Path

import diffusers
import torch
import transformers
from bench_process import peak_bytes, say
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTextModel

task = json.loads(sys.argv[1])
folder, given, part = Path(task["model"]), load_file(task["inputs"]), task["part"]
torch.set_num_threads(task["threads"])
diffusers.logging.set_verbosity_error()
transformers.logging.set_verbosity_error()


def load(cls, name):
    return cls.from_pretrained(folder / name, torch_dtype=torch.float32).eval()


def network():
    if part == "denoiser":
        unet = load(UNet2DConditionModel, "unet")
        return lambda: unet(given["sample"], given["timestep"], given["condition"]).sample
    if part == "text encoder":
        text = load(CLIPTextModel, "text_encoder")
        return lambda: text(given["tokens"]).last_hidden_state
    vae = load(AutoencoderKL, "vae")
    if part == "autoencoder, encoding":
        return lambda: vae.encode(given["pixels"]).latent_dist.mean
    return lambda: vae.decode(given["latents"] / vae.config.scaling_factor).sample


run = network()
say(version=f"PyTorch {torch.__version__}, diffusers {diffusers.__version__}, transformers {transformers.__version__}")
with torch.inference_mode():
    for line in sys.stdin:
        if line.strip() != "step":
            break
        started = time.perf_counter()
        out = run()
        seconds = time.perf_counter() - started
        say(seconds=seconds, loss=out.double().abs().mean().item())
say(peakBytes=peak_bytes())
