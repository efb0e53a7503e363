"""Writes test/goldens/trainables.{safetensors,json}: what is trained besides low-rank updates, in PyTorch in double precision
on the small random checkpoint, and what diffusers draws with the files that such trainings leave.

- full: all weights of the denoiser and the text encoder;
- custom-diffusion: cross-attention keys and values (Kumari et al., arXiv 2212.04488) and the rows of two new words;
- textual-inversion: the rows of one new word of two tokens alone (Gal et al., arXiv 2208.01618).

The networks, tokenizers and loaders are those of diffusers and transformers. Each training is one gradient, then three steps of
AdamW with clipping. Batches are those of training.py's world "sd1". Run after models.py and training.py:

    python scripts/goldens/trainables.py
"""

import json
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
import training
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

GOLDENS = Path(__file__).resolve().parents[2] / "test" / "goldens"
FOLDER = GOLDENS / "models" / "sd1-tiny"
DTYPE = torch.float64
STEPS, RATE, PRIOR, CLIP = 3, 1e-3, 0.7, 1.0
training.DTYPE = DTYPE
given = {k.removeprefix("sd1/"): v for k, v in load_file(GOLDENS / "training.safetensors").items() if k.startswith("sd1/")}
timesteps = torch.tensor(json.loads((GOLDENS / "training.json").read_text())["worlds"]["sd1"]["timesteps"])
tensors, record = {}, {}


class LongerTable(torch.nn.Module):
    """A table of tokens whose last rows alone are trained."""

    def __init__(self, table, rows):
        super().__init__()
        self.table, self.rows = table, torch.nn.Parameter(rows)

    def forward(self, ids):
        return F.embedding(ids, torch.cat([self.table, self.rows]))


def tokenizer_with(words):
    """transformers' own tokenizer with the words added as diffusers' loader adds them: a token a vector."""
    tokenizer = CLIPTokenizer.from_pretrained(FOLDER / "tokenizer")
    for word, vectors in words:
        names = [word, *(f"{word}_{i}" for i in range(1, vectors))]
        assert tokenizer.add_tokens(names) == vectors
    return tokenizer


def ids_of(tokenizer, prompt):
    return tokenizer(convert(tokenizer, prompt), padding="max_length", max_length=77, truncation=True).input_ids


def convert(tokenizer, prompt):
    """A word of several vectors as the several tokens that diffusers makes of it."""
    pipe = StableDiffusionPipeline.__new__(StableDiffusionPipeline)
    return StableDiffusionPipeline._maybe_convert_prompt(pipe, prompt, tokenizer)


def loss_of(unet, encoder, scheduler, tokens, i, method, critic):
    instance, prior = [i % 3, (i + 1) % 3], [3 + i % 2, 3 + (i + 1) % 2]
    chosen = instance + prior
    noise, drawn = (given["noise"][j].to(DTYPE) for j in (i, i + 1))
    mean, logvar = (given[k][chosen].to(DTYPE) for k in ("mean", "logvar"))
    x0 = (mean + torch.exp(0.5 * logvar) * drawn) * SCALING
    t = timesteps[i]
    alpha_bar = scheduler[t].view(-1, 1, 1, 1)
    signal, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    x_t = signal * x0 + sigma * noise
    states = encoder(tokens[[0, 0, 1, 1]]).last_hidden_state
    prediction = unet(x_t, t, encoder_hidden_states=states).sample
    squared = (prediction - noise) ** 2
    if method == "dreambooth":
        own = squared[:2].mean()
    else:
        rho = (((x_t - sigma * prediction) / signal - x0) ** 2)[:2]
        own = (0.9986 ** t[:2] * critic(rho)).mean()
    return own + PRIOR * squared[2:].mean()


def train(name, kind, words, initializers, prompts, method="dreambooth"):
    unet, encoder = training.load_unet(FOLDER), training.load_text_encoder(FOLDER)
    scheduler = training.alphas_cumprod(json.loads((FOLDER / "scheduler" / "scheduler_config.json").read_text()))
    tokenizer = tokenizer_with(words)
    parameters = {}
    if kind == "full":
        stored = load_file(FOLDER / "text_encoder" / "model.safetensors")
        prefix = "text_model." if any(k.startswith("text_model.") for k in stored) else ""
        for key, p in unet.named_parameters():
            parameters[f"unet.{key}"] = p
        for key, p in encoder.named_parameters():
            parameters[f"text_encoder.{prefix}{key}"] = p
    if kind == "custom-diffusion":
        for key, p in unet.named_parameters():
            if key.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
                parameters[f"unet.{key}"] = p
    if words:
        embeddings = encoder.embeddings
        table = embeddings.token_embedding.weight.detach()
        starts = [
            tokenizer(start, add_special_tokens=False).input_ids for start in initializers
        ]
        assert all(len(ids) == 1 for ids in starts), starts
        rows = torch.cat([table[ids].repeat(vectors, 1) for (_, vectors), ids in zip(words, starts)])
        embeddings.token_embedding = LongerTable(table, rows.clone())
        parameters["rows"] = embeddings.token_embedding.rows
    for p in parameters.values():
        p.requires_grad_(True)
    tokens = torch.tensor([ids_of(tokenizer, prompt) for prompt in prompts])
    critic = None
    if method == "dpg":
        training.random.manual_seed(99)
        critic = training.Critic(8)
        for key, p in critic.named_parameters():
            tensors[f"{name}/critic/{key}"] = p.detach().float().clone()
            p.requires_grad_(False)
    loss = loss_of(unet, encoder, scheduler, tokens, 0, method, critic)
    loss.backward()
    for key, p in parameters.items():
        assert p.grad is not None and p.grad.abs().max() > 0, key
        tensors[f"{name}/gradient/{key}"] = p.grad.float().clone()
    optimizer = torch.optim.AdamW(parameters.values(), lr=RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2)
    losses = []
    for i in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(unet, encoder, scheduler, tokens, i, method, critic)
        losses.append(loss.item())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), CLIP)
        optimizer.step()
    for key, p in parameters.items():
        tensors[f"{name}/end/{key}"] = p.detach().float().clone()
    record[name] = {
        "kind": kind,
        "method": method,
        "words": [{"word": w, "vectors": n, "initializer": s} for (w, n), s in zip(words, initializers)],
        "prompts": prompts,
        "ids": tokens.tolist(),
        "losses": losses,
    }
    return {key: p.detach().float() for key, p in parameters.items()}


def drawn_by_diffusers(name, learnt, words):
    """Writes what was learnt as the scripts of diffusers do, has diffusers load it, and records what it then computes."""
    pipe = StableDiffusionPipeline.from_pretrained(FOLDER, torch_dtype=torch.float32, safety_checker=None)
    with tempfile.TemporaryDirectory() as folder:
        first = 0
        for word, vectors in words:
            save_file({word: learnt["rows"][first : first + vectors].clone()}, f"{folder}/{word}.safetensors")
            first += vectors
            pipe.load_textual_inversion(folder, weight_name=f"{word}.safetensors")
        projections = {k: v for k, v in learnt.items() if ".attn2." in k}
        if projections:
            file = {}
            for key, value in projections.items():
                attention, which = key.removeprefix("unet.").removesuffix(".weight").rsplit(".", 1)
                file[f"{attention}.processor.{which}_custom_diffusion.weight"] = value.clone()
                file[f"{attention[:-1]}1.processor"] = torch.zeros(0)
            weights = "pytorch_custom_diffusion_weights.safetensors"
            save_file(file, f"{folder}/{weights}", metadata={"format": "pt"})
            before = pipe.unet.attn_processors
            pipe.unet.load_attn_procs(folder, weight_name=weights, _pipeline=pipe)
            assert type(next(iter(pipe.unet.attn_processors.values()))).__name__ == "CustomDiffusionAttnProcessor"
            assert len(pipe.unet.attn_processors) == len(before)
            for key, value in file.items():
                tensors[f"{name}/file/{key}"] = value
    prompt = record[name]["prompts"][0]
    with torch.no_grad():
        states, _ = pipe.encode_prompt(prompt, "cpu", 1, False)
        tensors[f"{name}/states"] = states
        sample = given["noise"][0, :1]
        tensors[f"{name}/prediction"] = pipe.unet(sample, 321, encoder_hidden_states=states).sample


SCALING = json.loads((FOLDER / "vae" / "config.json").read_text()).get("scaling_factor", 0.18215)
train("full", "full", [], [], ["a photo of sks dog", "a photo of dog"])
two = [("<new1>", 1), ("<new2>", 1)]
prompts = ["a photo of a <new1> cat and a <NEW2>dog.", "a photo of a cat"]
learnt = train("custom-diffusion", "custom-diffusion", two, ["a", "b"], prompts)
drawn_by_diffusers("custom-diffusion", learnt, two)
train("custom-diffusion, dpg", "custom-diffusion", two, ["a", "b"], prompts, method="dpg")
one = [("<toy>", 2)]
prompts = ["a photo of <toy>", "a toy"]
learnt = train("textual-inversion", "textual-inversion", one, ["a"], prompts)
drawn_by_diffusers("textual-inversion", learnt, one)
train("textual-inversion, dpg", "textual-inversion", one, ["a"], prompts, method="dpg")
record["tokens"] = {
    prompt: ids_of(tokenizer_with([*two, *one]), prompt)
    for prompt in [
        "<new1>", "<New1>", "<new1><new2>", "x<new1>y", "<toy> <toy>", "<toy", "<toy_1>", " <toy>  in the\tsnow", "<new12>",
        "<toy> " * 40,
    ]
}
save_file({k: v.contiguous() for k, v in sorted(tensors.items())}, GOLDENS / "trainables.safetensors")
(GOLDENS / "trainables.json").write_text(json.dumps(record) + "\n")
print(sum(v.numel() * v.element_size() for v in tensors.values()), "bytes")
