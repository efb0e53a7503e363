"""Writes test/goldens/dpg.{safetensors,json}: short runs of the deterministic policy gradient on any rewards, in PyTorch and in double
precision, on a small random checkpoint that models.py writes. The equations are those of src/algorithms/dpg.ts and return-critic.ts, written
out again here; only the networks of the checkpoint come from diffusers. Run after models.py and training.py, from the repository's root:

    python scripts/goldens/dpg.py
"""

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parent))
import training as base  # noqa: E402

DTYPE = torch.float64
STEPS = 10
INSTANCES = 2
DECAY = 0.98
# The rewards: look-forward is of latents, brightness a differentiable function of pixels, outside is given, as a black box would answer.


class ReturnCritic(torch.nn.Module):
    def __init__(self, channels, heads, generator):
        super().__init__()
        widths = [2 * channels + 1, 32, 64, 64]
        self.conv = torch.nn.ModuleList(
            torch.nn.Conv2d(a, b, 3, stride=1 if i == 0 else 2, padding=1) for i, (a, b) in enumerate(zip(widths, widths[1:]))
        )
        self.hidden = torch.nn.Linear(64, 64)
        self.heads = torch.nn.Linear(64, heads)
        for p in self.parameters():
            p.data = (torch.rand(p.shape, generator=generator) * 2 - 1) * (p[0].numel() ** -0.5 if p.ndim > 1 else 0.1)
        self.to(DTYPE)

    def forward(self, heading, clean, noise, moments):
        x = torch.cat([heading, clean, noise.expand(-1, 1, *heading.shape[2:])], 1)
        for layer in self.conv:
            x = F.silu(layer(x))
        out = self.heads(F.silu(self.hidden(x.mean((2, 3)))))
        average, deviation = scale(moments)
        return out * deviation + average


def scale(moments):
    """Mean and deviation of the targets seen so far; a deviation of 1 stands in for those to come."""
    weight, y, yy = moments[:, 0], moments[:, 1], moments[:, 2]
    known = weight.clamp(min=1e-8)
    average = y / known
    variance = (yy / known - average**2).clamp(min=0)
    return average, (weight * variance + (1 - weight) + 1e-8).sqrt()


def combine(kind, values, weights, discounts):
    """values, discounts: lists of [I]; a discount of None is a return, which is discounted in itself."""
    effective = [w * (d if d is not None else torch.ones_like(v)) for v, w, d in zip(values, weights, discounts)]
    if kind == "sum":
        return sum(v * w for v, w in zip(values, effective))
    total = sum(effective)
    return total / sum(w / v.exp() for v, w in zip(values, effective)) * (total / sum(weights))


def run(name, world, rewards, combination="sum", policy_gradient=None, critic_target="reward", lam=0.5, prior_weight=0.7, critic_lr=1e-3):
    """rewards: (name, weight, gamma) each."""
    generator = torch.Generator().manual_seed(41)
    unet = base.load_unet(world.folder)
    parameters = base.insert(unet, base.targets(unet, "unet", base.UNET_TARGETS), world.factors, 4.0)
    vae = AutoencoderKL.from_pretrained(world.folder / "vae").to(DTYPE).requires_grad_(False).eval()
    straight = [n != "outside" and policy_gradient != "critic" for n, _, _ in rewards]
    learnt = [r for r, s in zip(rewards, straight) if policy_gradient in ("critic", "both") or not s]
    critic = ReturnCritic(4, len(learnt), generator) if learnt else None
    moments = torch.zeros(len(learnt), 6, dtype=DTYPE)
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-3, weight_decay=1e-2)
    if critic:
        for key, p in critic.named_parameters():
            # All critics start alike but for their heads.
            owner = name if key.startswith("heads") else "world"
            tensors[f"{owner}/critic start/{key}"] = p.detach().float().clone()
        critic_optimizer = torch.optim.AdamW(critic.parameters(), lr=critic_lr, weight_decay=0)
    outside = torch.randn(STEPS, INSTANCES, generator=generator).float()
    tensors[f"{name}/outside"] = outside
    steps = []
    for n in range(STEPS):
        instance, prior = [n % 3, (n + 1) % 3], [3 + n % 2, 3 + (n + 1) % 2]
        chosen = instance + prior
        noise, drawn = (world.noise[m % STEPS, : len(chosen)].to(DTYPE) for m in (n, n + 1))
        mean, logvar = (m[chosen].to(DTYPE) for m in (world.mean, world.logvar))
        x0 = (mean + torch.exp(0.5 * logvar) * drawn) * world.scaling
        t = world.timesteps[n, : len(chosen)].clone()
        if n == 3:
            t[0] = 0  # where the process ends
        condition = world.text.to(DTYPE)[[0] * INSTANCES + [1] * len(prior)]
        bar = lambda s: world.alphas_cumprod[s].view(-1, 1, 1, 1)
        signal, sigma = bar(t).sqrt(), (1 - bar(t)).sqrt()
        x_t = signal * x0 + sigma * noise
        prediction = unet(x_t, t, encoder_hidden_states=condition).sample
        squared = ((prediction - noise) ** 2).flatten(1).mean(1)
        heading = ((x_t - sigma * prediction) / signal)[:INSTANCES]
        clean, level, ti = x0[:INSTANCES], sigma[:INSTANCES], t[:INSTANCES]

        values = {"outside": outside[n].to(DTYPE)}
        if any(r[0] == "look-forward" for r in rewards):
            values["look-forward"] = -((heading - clean) ** 2).flatten(1).mean(1)
        if any(r[0] == "brightness" for r in rewards):
            values["brightness"] = vae.decode(heading / world.scaling).sample.clamp(-1, 1).flatten(1).mean(1)
        expected = critic(heading, clean, level, moments) if critic else None
        column = {r[0]: k for k, r in enumerate(learnt)}

        def estimates(by_critic):
            v, d = [], []
            for (key, _, gamma), s in zip(rewards, straight):
                if by_critic or not s:
                    v.append(expected[:, column[key]])
                    d.append(None if critic_target == "return" else gamma**ti.to(DTYPE))
                else:
                    v.append(values[key])
                    d.append(gamma**ti.to(DTYPE))
            return combine(combination, v, [r[1] for r in rewards], d)

        if policy_gradient == "critic":
            promise = estimates(True)
        elif policy_gradient == "both":
            promise = (estimates(False) + estimates(True)) / 2
        else:
            promise = estimates(False)
        value_loss = -promise.mean()
        instance_loss, prior_loss = squared[:INSTANCES].mean(), squared[INSTANCES:].mean()
        loss = instance_loss + lam * value_loss + prior_weight * prior_loss
        total = combine(combination, [values[r[0]] for r in rewards], [r[1] for r in rewards], [None] * len(rewards))
        report = {
            "loss": loss.item(),
            "valueLoss": value_loss.item(),
            "instanceLoss": instance_loss.item(),
            "priorLoss": prior_loss.item(),
            "reward": total.mean().item(),
        } | {f"reward.{r[0]}": values[r[0]].mean().item() for r in rewards}

        critic_loss = None
        if critic:
            y = torch.stack([values[r[0]].detach() for r in learnt], 1)
            frozen = [v.detach() for v in (heading, clean, level)]
            if critic_target == "return":
                with torch.no_grad():
                    t1 = (ti - 1).clamp(min=0)
                    s1, n1 = bar(t1).sqrt(), (1 - bar(t1)).sqrt()
                    x1 = s1 * heading + n1 * prediction[:INSTANCES]
                    later = (x1 - n1 * unet(x1, t1, encoder_hidden_states=condition[:INSTANCES]).sample) / s1
                    gammas = torch.tensor([r[2] for r in learnt], dtype=DTYPE)
                    y = y + (ti > 0).to(DTYPE)[:, None] * gammas * critic(later, clean, n1, moments)
            q = critic(*frozen, moments)
            critic_loss = (((q - y) / scale(moments)[1]) ** 2).mean()
            report["criticLoss"] = critic_loss.item()
            for k, r in enumerate(learnt):
                report[f"critic.{r[0]}"] = q[:, k].mean().item()
            fresh = torch.stack([torch.ones_like(y[0]), y.mean(0), (y**2).mean(0), q.mean(0), (q**2).mean(0), (q * y).mean(0)], 1)

        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        if critic:
            critic_optimizer.zero_grad()
            critic_loss.backward()
            critic_optimizer.step()
            moments = (DECAY * moments + (1 - DECAY) * fresh).detach()
            m = moments / moments[:, :1]
            variance = (m[:, 2] - m[:, 1] ** 2).clamp(min=0)
            spread = ((m[:, 4] - m[:, 3] ** 2).clamp(min=0) * variance).sqrt() + 1e-12
            error = (m[:, 2] - 2 * m[:, 5] + m[:, 4]).clamp(min=0)
            for k, r in enumerate(learnt):
                report[f"criticCorrelation.{r[0]}"] = ((m[k, 5] - m[k, 3] * m[k, 1]) / spread[k]).item()
                report[f"criticExplainedVariance.{r[0]}"] = max(-1.0, (1 - error[k] / (variance[k] + 1e-12)).item())
        optimizer.step()
        steps.append({"instance": instance, "prior": prior, "timesteps": t.tolist(), "gradientNorm": norm.item(), "metrics": report})
    for key, p in parameters.items():
        tensors[f"{name}/end/{key}"] = p.detach().float().clone()
    if critic:
        for key, p in critic.named_parameters():
            if p.numel() < 4096:  # The large ones' gradients are what the small ones' come through.
                tensors[f"{name}/critic end/{key}"] = p.detach().float().clone()
        tensors[f"{name}/critic end/moments"] = moments.float()
    cases.append(
        dict(
            name=name, rewards=[list(r) for r in rewards], combination=combination, policyGradient=policy_gradient, criticTarget=critic_target,
            **{"lambda": lam}, priorWeight=prior_weight, criticLearningRate=critic_lr, steps=steps,
        )
    )
    print(name, {k: round(v, 4) for k, v in steps[-1]["metrics"].items()})


tensors, cases = {}, []
base.DTYPE = DTYPE
base.tensors = {}
base.random.manual_seed(0)
world = base.World("near", "sd1-tiny", seed=23, longest=60, side=8)
look, bright, outside = ("look-forward", 0.5, 0.99), ("brightness", 2.0, 0.999), ("outside", -0.8, 0.97)
run("straight", world, [look, bright])
run("straight, harmonic", world, [look, bright], combination="harmonic")
run("critic of a black box", world, [outside])
run("each its best way", world, [look, ("outside", 0.8, 0.97)], combination="harmonic")
run("critic alone", world, [look, bright], policy_gradient="critic")
run("both ways, returns", world, [look, outside], policy_gradient="both", critic_target="return")
run("returns, harmonic", world, [bright, ("outside", 0.8, 0.97)], policy_gradient="critic", critic_target="return", combination="harmonic")
for key in ("mean", "logvar", "noise", "text"):
    tensors[f"world/{key}"] = getattr(world, key)
for key, value in world.factors.items():
    tensors[f"world/start/{key}"] = value
GOLDENS = Path(__file__).resolve().parents[2] / "test" / "goldens"
save_file({k: v.contiguous() for k, v in sorted(tensors.items())}, GOLDENS / "dpg.safetensors")
(GOLDENS / "dpg.json").write_text(json.dumps({"scaling": world.scaling, "resolution": world.resolution, "cases": cases}) + "\n")
