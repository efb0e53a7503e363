"""Writes test/goldens/rollouts.{safetensors,json}, on a small random checkpoint that models.py writes:

- the states that diffusers' pipeline visits with DDIM and guidance, with low-rank factors in the denoiser;
- loss and gradient of the deterministic policy gradient on batches that hold such states beside noised photographs, written out in PyTorch, in
  double precision;
- how far policy and base are apart on those states (the Kullback-Leibler divergence of the denoising chain), and the relative norm of the update.

Run after models.py, from the repository's root:

    python scripts/goldens/rollouts.py
"""

import json
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import save_file
from transformers import CLIPTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parent))
import training as base  # noqa: E402

DTYPE = torch.float64
STEPS = 5
GUIDANCE = 4.0
SEEDS = [7, 8]
PROMPTS = ["a sks backpack on the beach", "a sks backpack in the snow"]
LAMBDA, PRIOR = 0.5, 0.7
GAMMA = {"look-forward": 0.99, "brightness": 0.999, "text": 0.998}
WEIGHT = {"look-forward": 0.5, "brightness": 2.0, "text": 3.0}

base.DTYPE = DTYPE
base.tensors = {}
world = base.World("near", "sd1-tiny", seed=57, longest=60, side=8)
tensors = {f"start/{key}": value for key, value in world.factors.items()}


def policy():
    unet = base.load_unet(world.folder)
    parameters = base.insert(unet, base.targets(unet, "unet", base.UNET_TARGETS), world.factors, 4.0)
    return unet, parameters


def prompts_embedded(prompts):
    encoder = base.load_text_encoder(world.folder)
    tokenizer = CLIPTokenizer.from_pretrained(world.folder / "tokenizer")
    ids = tokenizer(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        return encoder(ids).last_hidden_state


def visited_states():
    """x_t before each step, [picture, step, C, h, w], and the timesteps."""
    pipeline = StableDiffusionPipeline.from_pretrained(world.folder, safety_checker=None)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    base.DTYPE = torch.float32
    base.insert(pipeline.unet, base.targets(pipeline.unet, "unet", base.UNET_TARGETS), world.factors, 4.0)
    base.DTYPE = DTYPE
    pipeline.set_progress_bar_config(disable=True)
    each = []
    for prompt, seed in zip(PROMPTS, SEEDS):
        states = [torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))]

        def keep(pipe, step, timestep, kwargs):
            states.append(kwargs["latents"])
            return kwargs

        pipeline(
            prompt, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=torch.Generator().manual_seed(seed),
            height=16, width=16, output_type="latent", callback_on_step_end=keep, latents=states[0].clone(),
        )
        each.append(torch.cat(states[:-1]))
    return torch.stack(each).float(), pipeline.scheduler.timesteps.tolist()


def divergence(states, timesteps, conditions):
    """Nats of a latent's element, over the whole chain: the sum of beta / (2 alpha (1 - abar)) over the timesteps that a visited one stands for (those
    after the next one below it, and for the last those above), times mean (eps - eps_base)^2 there."""
    unet, _ = policy()
    other = base.load_unet(world.folder)
    betas = torch.linspace(world.scheduler["beta_start"] ** 0.5, world.scheduler["beta_end"] ** 0.5, 1000, dtype=torch.float32) ** 2
    betas = betas.to(DTYPE)
    weights = betas / (2 * (1 - betas) * (1 - world.alphas_cumprod))
    total, above = 0, 1000
    with torch.no_grad():
        for step, t in enumerate(timesteps):  # from the noisiest down
            below = timesteps[step + 1] if step + 1 < len(timesteps) else -1
            weight, above = weights[below + 1 : above].sum(), below + 1
            for picture, condition in zip(states, conditions):
                x = picture[step : step + 1].to(DTYPE)
                own, its = (net(x, t, encoder_hidden_states=condition[None]).sample for net in (unet, other))
                total += weight * ((own - its) ** 2).mean() / len(states)
    return total


def update_norm():
    unet = base.load_unet(world.folder)
    change, whole = 0, 0
    for key, (_, module) in base.targets(unet, "unet", base.UNET_TARGETS).items():
        update = world.factors[f"{key}.lora_B.weight"].to(DTYPE) @ world.factors[f"{key}.lora_A.weight"].to(DTYPE)
        change, whole = change + (update**2).sum(), whole + (module.weight.to(DTYPE) ** 2).sum()
    return (change / whole).sqrt()


def mixed(name, visited, names, combination, states, timesteps, conditions):
    """visited: for each of the subject's rows the (picture, step) of its state, or None for a noised photograph."""
    unet, parameters = policy()
    vae = AutoencoderKL.from_pretrained(world.folder / "vae").to(DTYPE).requires_grad_(False).eval()
    count = len(visited)
    chosen = [i % 3 for i in range(count)] + [3, 4]
    noise, drawn = world.noise[0].repeat(2, 1, 1, 1)[: len(chosen)].to(DTYPE), world.noise[1].repeat(2, 1, 1, 1)[: len(chosen)].to(DTYPE)
    mean, logvar = (m[chosen].to(DTYPE) for m in (world.mean, world.logvar))
    x0 = (mean + torch.exp(0.5 * logvar) * drawn) * world.scaling
    t = torch.tensor([timesteps[v[1]] if v else int(world.timesteps[2, i % 4]) for i, v in enumerate(visited)] + [30, 45])
    condition = torch.stack([conditions[v[0]] if v else world.text[0].to(DTYPE) for v in visited] + [world.text[1].to(DTYPE)] * 2)
    bar = world.alphas_cumprod[t].view(-1, 1, 1, 1)
    signal, sigma = bar.sqrt(), (1 - bar).sqrt()
    x_t = signal * x0 + sigma * noise
    for i, v in enumerate(visited):
        if v:
            x_t[i] = states[v].to(DTYPE)
    prediction = unet(x_t, t, encoder_hidden_states=condition).sample
    errors = ((prediction - noise) ** 2).flatten(1).mean(1)
    heading = ((x_t - sigma * prediction) / signal)[:count]
    photograph = torch.tensor([0.0 if v else 1.0 for v in visited], dtype=DTYPE)
    pixels = vae.decode(heading / world.scaling).sample
    # A made-up embedding of pictures and texts: means of channels, and a direction for each prompt.
    directions = torch.tensor([[1.0, 2.0, -1.0], [0.5, -1.0, 1.5], [1.0, 1.0, 1.0]], dtype=DTYPE)
    own = torch.stack([directions[v[0]] if v else directions[2] for v in visited])
    values = {
        "look-forward": -((heading - x0[:count]) ** 2).flatten(1).mean(1),
        "brightness": pixels.clamp(-1, 1).flatten(1).mean(1),
        "text": torch.nn.functional.cosine_similarity(pixels.mean((2, 3)), own) - 1,
    }
    promises, rewards = [], []
    for i in range(count):  # Row by row: a reward that does not count is not there at all.
        counting = [n for n in names if n != "look-forward" or not visited[i]]
        for into, discounted in ((promises, True), (rewards, False)):
            factors = {n: WEIGHT[n] * (GAMMA[n] ** float(t[i]) if discounted else 1) for n in counting}
            total = sum(factors.values())
            if combination == "sum":
                into.append(sum(factors[n] * values[n][i] for n in counting))
            else:
                harmonic = total / sum(factors[n] / values[n][i].exp() for n in counting)
                into.append(harmonic * total / sum(WEIGHT[n] for n in counting))
    loss = (photograph * errors[:count]).mean() - LAMBDA * torch.stack(promises).mean() + PRIOR * errors[count:].mean()
    loss.backward()
    among = lambda v: ((v * photograph).sum() / photograph.sum()).item() if photograph.sum() > 0 else None
    metrics = {"loss": loss.item(), "priorLoss": errors[count:].mean().item(), "instanceLoss": among(errors[:count])}
    metrics |= {"reward": torch.stack(rewards).mean().item(), "valueLoss": -torch.stack(promises).mean().item()}
    metrics |= {f"reward.{n}": among(values[n]) if n == "look-forward" else values[n].mean().item() for n in names}
    for key, p in parameters.items():
        tensors[f"{name}/gradient/{key}"] = p.grad.float().clone()
    tensors[f"{name}/noise"], tensors[f"{name}/drawn"] = noise.float(), drawn.float()
    print(name, {k: v and round(v, 5) for k, v in metrics.items()})
    return dict(name=name, visited=visited, rewards=names, combination=combination, pictures=chosen, timesteps=t.tolist(), metrics=metrics)


states, timesteps = visited_states()
conditions = prompts_embedded(PROMPTS)
tensors |= {"states": states, "conditions": conditions.float(), "text": world.text, "mean": world.mean, "logvar": world.logvar}
cases = [
    mixed("mixed, sum", [None, (0, 1), None, (1, 3)], ["look-forward", "brightness", "text"], "sum", states, timesteps, conditions),
    mixed("mixed, harmonic", [(1, 4), None], ["look-forward", "text"], "harmonic", states, timesteps, conditions),
    mixed("roll-outs alone", [(0, 2), (1, 0)], ["text", "look-forward"], "sum", states, timesteps, conditions),
]
record = dict(
    steps=STEPS, guidance=GUIDANCE, seeds=SEEDS, prompts=PROMPTS, timesteps=timesteps, weights=WEIGHT, gammas=GAMMA, priorWeight=PRIOR,
    **{"lambda": LAMBDA}, cases=cases, divergence=divergence(states, timesteps, conditions).item(), updateNorm=update_norm().item(),
)
GOLDENS = Path(__file__).resolve().parents[2] / "test" / "goldens"
save_file({k: v.contiguous() for k, v in sorted(tensors.items())}, GOLDENS / "rollouts.safetensors")
(GOLDENS / "rollouts.json").write_text(json.dumps(record) + "\n")
print(timesteps, record["divergence"], record["updateNorm"])
