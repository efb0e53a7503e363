"""Writes test/goldens/training.{safetensors,json}: short training runs in PyTorch, in double precision, on the small random
checkpoints that models.py writes, with given latents, noise, timesteps and text.

The equations of DreamBooth with prior preservation and of DPG with the look-forward reward are written out here; only the
networks come from diffusers and transformers. Run after models.py, from the repository's root:

    python scripts/goldens/training.py
"""

import hashlib
import json
from pathlib import Path

import diffusers
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

GOLDENS = Path(__file__).resolve().parents[2] / "test" / "goldens"
STEPS = 10
diffusers.logging.set_verbosity_error()
diffusers.logging.disable_progress_bar()
torch.set_num_threads(1)
RANK = 4
DTYPE = torch.float64
random = torch.Generator()

UNET_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")


class LoraLinear(torch.nn.Module):
    """y = W x + b + (alpha / rank) B A x"""

    def __init__(self, base, down, up, scale):
        super().__init__()
        self.base, self.scale = base, scale
        self.down, self.up = torch.nn.Parameter(down), torch.nn.Parameter(up)

    def forward(self, x):
        return self.base(x) + self.scale * ((x @ self.down.T) @ self.up.T)


def targets(model, prefix, suffixes):
    """The attention projections of a network, by the prefix that their keys have in a LoRA file."""
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and path.endswith(suffixes) and "attn" in path:
            found[f"{prefix}.{path}"] = (path, module)
    return found


def initial_factors(linears):
    """A as a linear layer starts; B is zero in a fresh LoRA, here small and random so that every gradient counts."""
    factors = {}
    for key, (_, module) in linears.items():
        bound = module.in_features**-0.5
        down = (torch.rand(RANK, module.in_features, generator=random) * 2 - 1) * bound
        factors[f"{key}.lora_A.weight"] = down
        factors[f"{key}.lora_B.weight"] = torch.randn(module.out_features, RANK, generator=random) * 0.05
    return factors


def insert(model, linears, factors, alpha):
    """Puts the factors into the network; the trainable parameters by their keys."""
    parameters = {}
    for key, (path, module) in linears.items():
        down, up = (factors[f"{key}.lora_{n}.weight"].to(DTYPE) for n in "AB")
        lora = LoraLinear(module, down.clone(), up.clone(), alpha / RANK)
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, lora)
        parameters[f"{key}.lora_A.weight"], parameters[f"{key}.lora_B.weight"] = lora.down, lora.up
    return parameters


def load_unet(folder):
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
    return unet.to(DTYPE).requires_grad_(False).eval()


def load_text_encoder(folder):
    """transformers 5 has no `text_model.` in its names; the published files, and ours, do."""
    model = CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder"))
    weights = load_file(folder / "text_encoder" / "model.safetensors")
    weights = {k.removeprefix("text_model."): v for k, v in weights.items()}
    missing, _ = model.load_state_dict(weights, strict=False)
    assert all("position_ids" in k for k in missing), missing
    return model.to(DTYPE).requires_grad_(False).eval()


def alphas_cumprod(config):
    start, end = config["beta_start"] ** 0.5, config["beta_end"] ** 0.5
    betas = torch.linspace(start, end, config.get("num_train_timesteps", 1000), dtype=torch.float32) ** 2
    return torch.cumprod(1 - betas, 0).to(DTYPE)


class Critic(torch.nn.Module):
    """Q_phi on the residual rho [B, 4, H, W]: one number a sample. Other shapes than its own are averaged onto it."""

    def __init__(self, side):
        super().__init__()
        self.side = side
        self.conv = torch.nn.Conv2d(4, 1, 3, padding=1)
        self.fc1 = torch.nn.Linear(side * side, 64)
        self.fc2 = torch.nn.Linear(64, 1)
        for layer, bound in ((self.conv, 1 / 9), (self.fc1, 1 / (side * side)), (self.fc2, 1 / 64)):
            for p in layer.parameters():
                p.data = torch.rand(p.shape, generator=random) * bound
        self.to(DTYPE)

    def forward(self, rho):
        h = F.adaptive_avg_pool2d(F.leaky_relu(self.conv(rho), 0.01), self.side).flatten(1)
        return self.fc2(torch.relu(self.fc1(h)))[:, 0]


class World:
    """A checkpoint, and what all runs on it are given."""

    def __init__(self, name, folder, seed, longest, side, sides=None):
        random.manual_seed(seed)
        self.name, self.folder = name, GOLDENS / "models" / folder
        self.scheduler = json.loads((self.folder / "scheduler" / "scheduler_config.json").read_text())
        self.v_prediction = self.scheduler.get("prediction_type", "epsilon") == "v_prediction"
        unet = load_unet(self.folder)
        vae = json.loads((self.folder / "vae" / "config.json").read_text())
        self.side, self.scaling = side, vae.get("scaling_factor", 0.18215)
        self.resolution = side * 2 ** (len(vae["block_out_channels"]) - 1)
        length, width = 77, unet.config.cross_attention_dim
        self.sides = sides or (side, side)
        shape = (4, *self.sides)
        # What the autoencoder says of five pictures, three of the subject and two of its class.
        self.mean = torch.randn(5, *shape, generator=random) / self.scaling
        self.logvar = torch.randn(5, *shape, generator=random) - 1
        self.noise = torch.randn(STEPS, 4, *shape, generator=random)
        self.timesteps = torch.randint(0, longest, (STEPS, 4), generator=random)
        self.text = torch.randn(2, length, width, generator=random)
        self.tokens = torch.full((2, length), 513)
        self.tokens[:, 0] = 512
        self.tokens[0, 1:8] = torch.randint(0, 512, (7,), generator=random)
        self.tokens[1, 1:5] = torch.randint(0, 512, (4,), generator=random)
        self.factors = initial_factors(targets(unet, "unet", UNET_TARGETS))
        text_linears = targets(load_text_encoder(self.folder), "text_encoder.text_model", TEXT_TARGETS)
        self.text_factors = initial_factors(text_linears)
        self.alphas_cumprod = alphas_cumprod(self.scheduler)
        for key in ("mean", "logvar", "noise", "text", "tokens"):
            tensors[f"{name}/{key}"] = getattr(self, key)
        for key, value in {**self.factors, **self.text_factors}.items():
            tensors[f"{name}/start/{key}"] = value

    def record(self):
        weights = [p for part in ("unet", "text_encoder") for p in sorted((self.folder / part).glob("*.safetensors"))]
        digest = hashlib.sha256(b"".join(p.read_bytes() for p in weights)).hexdigest()
        return {
            "folder": f"models/{self.folder.name}",
            "sha256": digest,
            "resolution": self.resolution,
            # Height and width of the pictures.
            "sides": [n * self.resolution // self.side for n in self.sides],
            "timesteps": self.timesteps.tolist(),
        }


def train(
    name,
    world,
    method,
    prior_weight=1.0,
    snr_gamma=None,
    alpha=4.0,
    text_encoder_lora=False,
    accumulation=1,
    learning_rate=1e-3,
    gamma=0.9986,
    critic_learning_rate=0.01,
    max_grad_norm=1.0,
    noise_offset=0.0,
    dtype=None,
):
    unet = load_unet(world.folder)
    parameters = insert(unet, targets(unet, "unet", UNET_TARGETS), world.factors, alpha)
    encoder = None
    if text_encoder_lora:
        encoder = load_text_encoder(world.folder)
        linears = targets(encoder, "text_encoder.text_model", TEXT_TARGETS)
        parameters |= insert(encoder, linears, world.text_factors, alpha)
    random.manual_seed(99)
    critic = Critic(world.side) if method == "dpg" else None
    if critic:
        for key, p in critic.named_parameters():
            tensors[f"{name}/critic start/{key}"] = p.detach().float().clone()
        critic_optimizer = torch.optim.SGD(critic.parameters(), lr=critic_learning_rate)
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=learning_rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2
    )

    steps = []
    for n in range(0, STEPS, accumulation):
        optimizer.zero_grad()
        micro_steps = []
        for i in range(n, n + accumulation):
            instance, prior = [i % 3, (i + 1) % 3], [3 + i % 2, 3 + (i + 1) % 2]
            chosen = instance + (prior if prior_weight is not None else [])
            count = len(instance)
            noise = world.noise[i, : len(chosen)].to(DTYPE)
            # Offset noise, as diffusers' scripts have it; z is taken from the noise of two steps after.
            offset = world.noise[(i + 2) % STEPS, : len(chosen), :, :1, :1].to(DTYPE)
            noise = noise + noise_offset * offset
            # The draw from the autoencoder's posterior takes the noise of the step after.
            drawn = world.noise[(i + 1) % STEPS, : len(chosen)].to(DTYPE)
            mean, logvar = (m[chosen].to(DTYPE) for m in (world.mean, world.logvar))
            x0 = (mean + torch.exp(0.5 * logvar) * drawn) * world.scaling
            t = world.timesteps[i, : len(chosen)]
            states = encoder(world.tokens).last_hidden_state if encoder else world.text.to(DTYPE)
            condition = states[[0] * count + [1] * (len(chosen) - count)]

            alpha_bar = world.alphas_cumprod[t].view(-1, 1, 1, 1)
            signal, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
            x_t = signal * x0 + sigma * noise
            prediction = unet(x_t, t, encoder_hidden_states=condition).sample
            if world.v_prediction:
                target = signal * noise - sigma * x0
                looked_forward = signal * x_t - sigma * prediction
            else:
                target = noise
                looked_forward = (x_t - sigma * prediction) / signal
            squared = (prediction - target) ** 2
            report = {"instance": instance, "prior": prior if prior_weight is not None else []}

            if method == "dreambooth":
                per_sample = squared[:count].flatten(1).mean(1)
                if snr_gamma is not None:
                    # Hang et al., arXiv 2303.09556: min(SNR, gamma) / SNR for eps, / (SNR + 1) for v.
                    snr = (alpha_bar / (1 - alpha_bar)).flatten()[:count]
                    per_sample = per_sample * snr.clamp(max=snr_gamma) / (snr + world.v_prediction)
                loss = per_sample.mean()
                report["instanceLoss"] = loss.item()
            else:
                rho = ((looked_forward - x0) ** 2)[:count]
                value = critic(rho)
                loss = (gamma ** t[:count] * value).mean()
                regression = ((critic(rho.detach()) - rho.detach().flatten(1).mean(1)) ** 2).mean()
                report |= {
                    "valueLoss": loss.item(),
                    "values": value.tolist(),
                    "criticLoss": regression.item(),
                    "reward": -rho.mean().item(),
                }
            if prior_weight is not None:
                prior_loss = squared[count:].mean()
                report["priorLoss"] = prior_loss.item()
                loss = loss + prior_weight * prior_loss
            report["loss"] = loss.item()
            micro_steps.append(report)
            (loss / accumulation).backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), max_grad_norm)
        optimizer.step()
        if critic:
            # The policy's backward pass left gradients on the critic; its own step is on the regression alone.
            critic_optimizer.zero_grad()
            regression.backward()
            critic_optimizer.step()
        steps.append({"microSteps": micro_steps, "gradientNorm": norm.item()})

    for key, p in parameters.items():
        assert p.grad.abs().max() > 0, key
        tensors[f"{name}/end/{key}"] = p.detach().float().clone()
    if critic:
        for key, p in critic.named_parameters():
            tensors[f"{name}/critic end/{key}"] = p.detach().float().clone()
    cases.append(
        {
            "name": name,
            "world": world.name,
            "method": method,
            "priorWeight": prior_weight,
            "snrGamma": snr_gamma,
            "noiseOffset": noise_offset,
            "rank": RANK,
            "alpha": alpha,
            "textEncoderLora": text_encoder_lora,
            "gradientAccumulation": accumulation,
            "learningRate": learning_rate,
            "maxGradNorm": max_grad_norm,
            **({"gamma": gamma, "criticLearningRate": critic_learning_rate} if critic else {}),
            "steps": steps,
        }
    )


def run_all():
    sd1 = World("sd1", "sd1-tiny", seed=11, longest=1000, side=8)
    # The critic's regression is unstable where an untrained denoiser looks forward from far away: its residuals are in the hundreds.
    # Seeds are chosen so that no gradient is so near zero that Adam turns its rounding into a step.
    near = World("sd1 near", "sd1-tiny", seed=23, longest=250, side=8)
    sd2 = World("sd2", "sd2-tiny-sharded", seed=31, longest=1000, side=12)
    train("dreambooth", sd1, "dreambooth", prior_weight=0.7)
    train("dreambooth without prior", sd1, "dreambooth", prior_weight=None)
    train("dreambooth, min-SNR", sd1, "dreambooth", snr_gamma=5.0)
    train("dreambooth, accumulation", sd1, "dreambooth", accumulation=2)
    train("dreambooth, text encoder", sd1, "dreambooth", text_encoder_lora=True)
    train("dreambooth, v-prediction", sd2, "dreambooth", alpha=8.0)
    train("dreambooth, v-prediction, min-SNR", sd2, "dreambooth", snr_gamma=5.0)
    train("dpg look-forward", near, "dpg")
    train("dpg look-forward without prior", near, "dpg", prior_weight=None, alpha=2.0)
    train("dpg look-forward, text encoder", near, "dpg", text_encoder_lora=True)
    train("dpg look-forward, v-prediction", sd2, "dpg", prior_weight=0.5)
    wide = World("sd1 wide", "sd1-tiny", seed=41, longest=250, side=8, sides=(6, 12))
    train("dreambooth, noise offset", sd1, "dreambooth", noise_offset=0.1)
    train("dpg look-forward, another aspect", wide, "dpg", noise_offset=0.05)
    return {w.name: w.record() for w in (sd1, near, sd2, wide)}


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


tensors: dict[str, torch.Tensor] = {}
cases: list[dict] = []

if __name__ == "__main__":
    # Single precision first, to see how far rounding alone leads away; then the goldens.
    DTYPE = torch.float32
    before = run_all()
    single, single_cases = tensors, cases
    tensors, cases = {}, []
    DTYPE = torch.float64
    worlds = run_all()
    assert worlds == before, "the checkpoints changed meanwhile"
    for case, other in zip(cases, single_cases):
        ends = [k for k in tensors if k.startswith(f"{case['name']}/") and " start/" not in k]
        drift, where = max((relative(single[k], tensors[k]), k) for k in ends)
        exact, rounded = ([m for s in c["steps"] for m in s["microSteps"]] for c in (case, other))
        loss_drift = max(
            max(abs(a[key] - b[key]) for a, b in zip(exact, rounded)) / max(abs(a[key]) for a in exact)
            for key, value in exact[0].items()
            if isinstance(value, float)
        )
        moved = max(
            relative(tensors[k], tensors[f"{case['world']}/start/{k.split('/end/')[1]}"]) for k in ends if "/end/" in k
        )
        print(f"{case['name']}: moved {moved:.1e}; single precision differs by {drift:.1e} in {where}, {loss_drift:.1e} in losses")

    save_file({k: v.contiguous() for k, v in sorted(tensors.items())}, GOLDENS / "training.safetensors")
    (GOLDENS / "training.json").write_text(json.dumps({"worlds": worlds, "cases": cases}, indent=1) + "\n")
