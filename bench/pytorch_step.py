"""The other side of the benchmark of the training step: the same model, batch and update in PyTorch with diffusers and peft.

Takes its task as JSON in the first argument, prints a line of JSON when it is ready, takes one step for each line "step"
that it reads, and ends at "end". bench/run.ts starts it.
"""

import json
import os
import sys
import time
from pathlib import Path

import diffusers
import peft
import torch
import torch.nn.functional as F
from bench_process import device_bytes, peak_bytes, say
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

task = json.loads(sys.argv[1])
workload = task["workload"]
method, instances = workload["method"], workload["instances"]
device, half = task["device"], task["computeType"] == "float16"
given = {k: t.to(device) for k, t in load_file(task["inputs"]).items()}
folder = Path(task["model"])
torch.set_num_threads(task["threads"])
# What ONNX Runtime does with products of 32-bit floats, and what switches it off on both sides.
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = os.environ.get("NVIDIA_TF32_OVERRIDE") != "0"
torch.backends.cudnn.benchmark = True
diffusers.logging.set_verbosity_error()


def load_unet():
    halves_stored = (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").exists()
    unet = UNet2DConditionModel.from_pretrained(
        folder / "unet",
        torch_dtype=torch.float16 if half else torch.float32,
        variant="fp16" if halves_stored else None,
    ).to(device)
    unet.requires_grad_(False)
    lora = workload["lora"]
    unet.add_adapter(
        peft.LoraConfig(
            r=lora["rank"], lora_alpha=lora["alpha"], target_modules=["to_q", "to_k", "to_v", "to_out.0"]
        )
    )
    if task.get("gradientCheckpointing"):
        unet.enable_gradient_checkpointing()
    unet.train()
    factors = {k.replace(".default.", "."): p for k, p in unet.named_parameters() if p.requires_grad}
    assert len(factors) == sum(k.startswith("unet.") for k in given), "the low-rank factors differ"
    for key, p in factors.items():
        p.data = given[f"unet.{key}"].clone()
    return unet, list(factors.values())


class Critic(torch.nn.Module):
    def __init__(self):
        super().__init__()
        c, flat = given["critic.conv.weight"].shape[1], given["critic.fc1.weight"].shape[1]
        self.conv = torch.nn.Conv2d(c, 1, 3, padding=1)
        self.fc1, self.fc2 = torch.nn.Linear(flat, 64), torch.nn.Linear(64, 1)
        self.load_state_dict({k.removeprefix("critic."): v for k, v in given.items() if k.startswith("critic.")})

    def forward(self, rho):
        h = F.leaky_relu(self.conv(rho), 0.01).flatten(1)
        return self.fc2(torch.relu(self.fc1(h)))[:, 0]


unet, parameters = load_unet()
optimizer = torch.optim.AdamW(parameters, lr=task["learningRates"]["policy"], weight_decay=1e-2, **task["adamw"])
critic = Critic().to(device)
critic_optimizer = torch.optim.SGD(critic.parameters(), lr=task["learningRates"]["critic"])
scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
betas = torch.linspace(scheduler["beta_start"] ** 0.5, scheduler["beta_end"] ** 0.5, scheduler["num_train_timesteps"]) ** 2
alphas = torch.cumprod(1 - betas, 0).to(device)
scaler = torch.amp.GradScaler(device, enabled=half)
scaling = json.loads((folder / "vae" / "config.json").read_text())["scaling_factor"]
mean, logvar, condition = given["latents.mean"], given["latents.logvar"], given["condition"]


def dpg(prediction, noisy, clean, signal, spread, timesteps):
    """Section 4.2 of arXiv 2407.06642: the discounted critic on the residual of looking forward. The critic does not learn from it."""
    rows = slice(0, instances)
    rho = ((noisy[rows] - spread[rows] * prediction[rows]) / signal[rows] - clean[rows]) ** 2
    critic.requires_grad_(False)
    return (0.9986 ** timesteps[rows] * critic(rho)).mean(), rho.detach()


def train(shared):
    if shared:
        posterior, noise, timesteps = given["latents.noise"], given["noise"], given["timesteps"]
    else:
        posterior, noise = torch.randn_like(mean), torch.randn_like(mean)
        timesteps = torch.randint(0, len(alphas), (mean.shape[0],), device=device)
    clean = (mean + torch.exp(0.5 * logvar) * posterior) * scaling
    abar = alphas[timesteps].view(-1, 1, 1, 1)
    signal, spread = abar.sqrt(), (1 - abar).sqrt()
    noisy = signal * clean + spread * noise
    with torch.autocast(device, torch.float16, enabled=half):
        prediction = unet(noisy, timesteps, condition).sample
    prediction = prediction.float()
    rho = None
    if method == "dpg":
        loss, rho = dpg(prediction, noisy, clean, signal, spread, timesteps)
    else:
        loss = F.mse_loss(prediction[:instances], noise[:instances])
    if workload["priors"]:
        loss = loss + F.mse_loss(prediction[instances:], noise[instances:])
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    if rho is not None:
        critic.requires_grad_(True)
        F.mse_loss(critic(rho), rho.mean((1, 2, 3))).backward()
        critic_optimizer.step()
        critic_optimizer.zero_grad(set_to_none=True)
    return loss.item()


version = f"PyTorch {torch.__version__}, diffusers {diffusers.__version__}, peft {peft.__version__}"
say(version=version, **({"card": torch.cuda.get_device_name()} if device == "cuda" else {}))
first = True
for line in sys.stdin:
    if line.strip() != "step":
        break
    started = time.perf_counter()
    loss = train(first)
    say(seconds=time.perf_counter() - started, loss=loss)
    first = False
say(peakBytes=peak_bytes(), **({"deviceBytes": device_bytes()} if device == "cuda" else {}))
