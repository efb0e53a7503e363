"""Writes a small random SDXL model folder with diffusers and transformers, and what those libraries compute with it.

test/goldens/models/sdxl-tiny/ is the model folder; sdxl-tiny.safetensors beside it holds inputs and outputs of its parts, of its pipeline, and of one training
step (loss and PEFT's LoRA gradients, in double precision); sdxl-tiny.json says what went in. Run from the repository's root:

    python scripts/goldens/sdxl.py
"""

import hashlib
import json

import torch
import torch.nn.functional as F
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from models import GOLDENS, normal, random, randomize, save, text_encoder, tokenizer, vae
from peft import LoraConfig, inject_adapter_in_model
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

NAME = "sdxl-tiny"
FOLDER = GOLDENS / NAME
SIDE, PIXELS = 8, 16
PROMPT, NEGATIVE = "a photo of sks backpack", "blurry"
SEED, STEPS, GUIDANCE = 7, 10, 5.0
RANK, ALPHA = 4, 6.0
PRIOR_WEIGHT, GAMMA = 0.7, 0.9986
UNET_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
TEXT_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj"]


def second_tokenizer():
    """SDXL's second tokenizer fills prompts up with "!", the first of the vocabulary."""
    return CLIPTokenizer(vocab=tokenizer().get_vocab(), merges=[], model_max_length=77, pad_token="!")


def second_text_encoder():
    config = CLIPTextConfig(
        vocab_size=514,
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=3,
        max_position_embeddings=77,
        hidden_act="gelu",
        projection_dim=20,
        bos_token_id=0,
        # As in the published file: not the end token's id, and understood as "the highest id".
        eos_token_id=2,
        pad_token_id=1,
    )
    return randomize(CLIPTextModelWithProjection(config))


def write_model():
    random.manual_seed(41)
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="leading",
        steps_offset=1,
    )
    # SDXL's file has these keys although the class does not know them.
    scheduler.register_to_config(clip_sample=False, set_alpha_to_one=False, skip_prk_steps=True, sample_max_value=1.0)
    pipe = StableDiffusionXLPipeline(
        unet=unet(),
        vae=vae([2, 4], sample_size=PIXELS, scaling_factor=0.13025, force_upcast=True),
        text_encoder=text_encoder(num_hidden_layers=3),
        text_encoder_2=second_text_encoder(),
        tokenizer=tokenizer(),
        tokenizer_2=second_tokenizer(),
        scheduler=scheduler,
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    # Published SDXL folders hold half precision; what is computed below is computed with these weights, in float32 and more.
    save(NAME, pipe.to(torch.float16), variant="fp16")


def unet():
    return randomize(
        UNet2DConditionModel(
            sample_size=SIDE,
            cross_attention_dim=40,
            norm_num_groups=4,
            block_out_channels=[4, 8, 8],
            layers_per_block=2,
            down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            transformer_layers_per_block=[1, 1, 2],
            attention_head_dim=[1, 2, 4],
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=6,
            projection_class_embeddings_input_dim=20 + 6 * 6,
            upcast_attention=None,
        )
    )


def pipeline(dtype=torch.float32):
    pipe = StableDiffusionXLPipeline.from_pretrained(FOLDER, variant="fp16", torch_dtype=dtype, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def parts(results):
    pipe = pipeline()
    random.manual_seed(42)
    tokens = torch.randint(3, 512, (2, 77), generator=random)
    tokens[:, 0] = 512
    tokens[0, 30:], tokens[1, 50:] = 513, 513
    tokens_2 = tokens.clone()
    tokens_2[0, 31:], tokens_2[1, 51:] = 0, 0
    first = pipe.text_encoder(tokens, output_hidden_states=True).hidden_states[-2]
    second = pipe.text_encoder_2(tokens_2, output_hidden_states=True)
    condition, pooled = torch.cat([first, second.hidden_states[-2]], -1), second.text_embeds
    results |= {"text.tokens": tokens, "text.tokens_2": tokens_2, "text.condition": condition, "text.pooled": pooled}
    # Newer configurations give the end token; its first place counts.
    pipe.text_encoder_2.text_model.eos_token_id = 77
    repeated = tokens.clone()
    repeated[:, 20], repeated[:, 40] = 77, 77
    results |= {"text.repeated": repeated, "text.pooled_at_first": pipe.text_encoder_2(repeated).text_embeds}

    time_ids = torch.tensor([[100.0, 60, 3, 5, 16, 16], [17, 400, 0, 9, 16, 16]])
    results["unet.time_ids"] = time_ids
    added = {"text_embeds": pooled, "time_ids": time_ids}
    for name, shape, steps in [("trained", (SIDE, SIDE), (999, 3)), ("odd", (7, 5), (500, 0))]:
        sample, timestep = normal(2, 4, *shape), torch.tensor(steps)
        results[f"unet.{name}.sample"], results[f"unet.{name}.timestep"] = sample, timestep
        results[f"unet.{name}.prediction"] = pipe.unet(sample, timestep, condition, added_cond_kwargs=added).sample

    pixels = torch.rand(2, 3, PIXELS, PIXELS, generator=random) * 2 - 1
    latents = normal(2, 4, SIDE, SIDE)
    posterior = pipe.vae.encode(pixels).latent_dist
    results |= {
        "vae.pixels": pixels,
        "vae.mean": posterior.mean,
        "vae.log_variance": posterior.logvar,
        "vae.latents": latents,
        "vae.decoded": pipe.vae.decode(latents).sample,
    }


@torch.no_grad()
def pictures(results):
    """Whole pipelines, with the folder's own sampler: from the prompt and the seed to the picture, as bytes of RGB."""
    pipe = pipeline()
    results["alphas_cumprod"] = pipe.scheduler.alphas_cumprod
    for name, negative in [("plain", None), ("empty", ""), ("negative", NEGATIVE)]:
        embeds, unwanted, pooled, unwanted_pooled = pipe.encode_prompt(PROMPT, negative_prompt=negative)
        results |= {
            f"picture.{name}.condition": torch.cat([unwanted, embeds]),
            f"picture.{name}.pooled": torch.cat([unwanted_pooled, pooled]),
        }
        picture = pipe(
            prompt=PROMPT,
            negative_prompt=negative,
            generator=torch.Generator().manual_seed(SEED),
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            output_type="np",
        ).images[0]
        results[f"picture.{name}.pixels"] = torch.from_numpy((picture * 255).round()).to(torch.uint8)


def training_step(results, name, method, text):
    """One step in double precision. Rows: two of the subject, two of its class."""
    pipe = pipeline(torch.float64)
    networks = {"unet": pipe.unet, "text_encoder": pipe.text_encoder, "text_encoder_2": pipe.text_encoder_2}
    for network in networks.values():
        network.requires_grad_(False).eval()
    adapted = networks if text else {"unet": pipe.unet}
    for component, network in adapted.items():
        targets = UNET_TARGETS if component == "unet" else TEXT_TARGETS
        inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, init_lora_weights=False), network)
    given = {key.removeprefix("train."): value for key, value in results.items() if key.startswith("train.")}
    factors = {}
    for component, network in adapted.items():
        for key, p in network.named_parameters():
            if ".lora_" in key:
                factors[factor_key(component, key)] = p
                p.data = initial_factor(factor_key(component, key), p.shape).to(p.dtype)
                p.requires_grad_(True)
    mean, logvar, drawn, noise = (given[k].double() for k in ("mean", "logvar", "drawn", "noise"))
    t = given["timesteps"]
    x0 = (mean + torch.exp(0.5 * logvar) * drawn) * pipe.vae.config.scaling_factor
    alpha_bar = pipe.scheduler.alphas_cumprod.double()[t].view(-1, 1, 1, 1)
    signal, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    x_t = signal * x0 + sigma * noise
    first = pipe.text_encoder(given["tokens"], output_hidden_states=True).hidden_states[-2]
    second = pipe.text_encoder_2(given["tokens_2"], output_hidden_states=True)
    condition, pooled = torch.cat([first, second.hidden_states[-2]], -1), second.text_embeds
    if not text:
        results["train.condition"], results["train.pooled"] = condition.detach().float(), pooled.detach().float()
    added = {"text_embeds": pooled, "time_ids": given["time_ids"].double()}
    prediction = pipe.unet(x_t, t, condition, added_cond_kwargs=added).sample
    prior = ((prediction - noise) ** 2)[2:].mean()
    if method == "dreambooth":
        loss = ((prediction - noise) ** 2)[:2].mean() + PRIOR_WEIGHT * prior
    else:
        rho = (((x_t - sigma * prediction) / signal - x0) ** 2)[:2]
        loss = (GAMMA ** t[:2] * value_of(rho, given)).mean() + PRIOR_WEIGHT * prior
    loss.backward()
    used = {key: p for key, p in sorted(factors.items()) if p.grad is not None}
    unused = factors.keys() - used.keys()
    for key, p in used.items():
        assert p.grad.abs().max() > 0, key
        results[f"train.start.{key}"] = p.detach().float()
    # One after the other in the order of their names, to spare the file a thousand headers.
    results[f"{name}.gradient"] = torch.cat([p.grad.flatten() for p in used.values()]).float()
    # SDXL reads its first text encoder before the last layer.
    assert all(".layers.2." in key and key.startswith("text_encoder.") for key in unused), unused
    print(name, loss.item(), len(factors), "factors", len(unused), "without a gradient")
    return {"name": name, "method": method, "textEncoderLora": text, "loss": loss.item()}


def value_of(rho, given):
    """The critic: one number a sample of rho [B, 4, H, W]."""
    layers = {key.removeprefix("critic."): p.double() for key, p in given.items() if key.startswith("critic.")}
    h = F.leaky_relu(F.conv2d(rho, layers["conv.weight"], layers["conv.bias"], padding=1), 0.01).flatten(1)
    h = torch.relu(F.linear(h, layers["fc1.weight"], layers["fc1.bias"]))
    return F.linear(h, layers["fc2.weight"], layers["fc2.bias"])[:, 0]


def factor_key(component, key):
    key = key.replace(".default.", ".")
    if component == "text_encoder" and not key.startswith("text_model."):
        key = f"text_model.{key}"
    return f"{component}.{key}"


def initial_factor(key, shape):
    """A number of its own for each factor, the same in every case; float32, as the checkpoint of a run holds it."""
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "little"))
    scale = shape[1] ** -0.5 if ".lora_A." in key else 0.05
    return torch.randn(*shape, generator=generator) * scale


def training_inputs(results):
    random.manual_seed(44)
    shape = (4, 4, SIDE, SIDE)
    tokens = torch.full((4, 77), 513)
    tokens[:, 0] = 512
    tokens[:2, 1:8] = torch.randint(0, 512, (7,), generator=random)
    tokens[2:, 1:5] = torch.randint(0, 512, (4,), generator=random)
    tokens_2 = tokens.clone()
    tokens_2[:2, 9:], tokens_2[2:, 6:] = 0, 0
    values = {
        "mean": normal(*shape) / 0.13025,
        "logvar": normal(*shape) - 1,
        "drawn": normal(*shape),
        "noise": normal(*shape),
        "timesteps": torch.tensor([201, 17, 640, 90]),
        "tokens": tokens,
        "tokens_2": tokens_2,
        "time_ids": torch.tensor(
            [[100.0, 60, 0, 12, 16, 16], [2048, 1536, 5, 0, 16, 16], [16, 16, 0, 0, 16, 16], [16, 16, 0, 0, 16, 16]]
        ),
    }
    shapes = {"conv.weight": (1, 4, 3, 3), "conv.bias": (1,), "fc1.weight": (64, SIDE * SIDE), "fc1.bias": (64,), "fc2.weight": (1, 64), "fc2.bias": (1,)}
    for key, shape in shapes.items():
        bound = {"conv": 1 / 9, "fc1": 1 / SIDE**2, "fc2": 1 / 64}[key.partition(".")[0]]
        values[f"critic.{key}"] = torch.rand(shape, generator=random) * bound
    results |= {f"train.{key}": value for key, value in values.items()}


def main():
    write_model()
    results = {}
    parts(results)
    pictures(results)
    training_inputs(results)
    cases = [
        training_step(results, "dreambooth", "dreambooth", text=False),
        training_step(results, "dreambooth, text encoders", "dreambooth", text=True),
        training_step(results, "dpg", "dpg", text=False),
        training_step(results, "dpg, text encoders", "dpg", text=True),
    ]
    for name, value in results.items():
        assert not value.is_floating_point() or value.isfinite().all(), name
    save_file({k: v.contiguous() for k, v in results.items()}, FOLDER.with_suffix(".safetensors"))
    facts = {
        "prompt": PROMPT,
        "negativePrompt": NEGATIVE,
        "seed": SEED,
        "steps": STEPS,
        "guidance": GUIDANCE,
        "rank": RANK,
        "alpha": ALPHA,
        "priorWeight": PRIOR_WEIGHT,
        "gamma": GAMMA,
        "cases": cases,
    }
    FOLDER.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")
    print({k: round(v.float().abs().max().item(), 3) for k, v in results.items() if "start" not in k})


if __name__ == "__main__":
    main()
