"""The diffusers side of the reference suite for one model of full shape: writes the model, with seeded random weights, and what diffusers, transformers and
peft compute with it.

    python models.py NAME FOLDER TOKENIZER

FOLDER/model is a model folder; FOLDER/expected.safetensors holds inputs and outputs. One network at a time is made, and all are read back from their files, so
that no more than the largest one's weights need to be in memory.
"""

import sys
from pathlib import Path

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from peft import LoraConfig, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

diffusers.logging.set_verbosity_error()
diffusers.logging.disable_progress_bar()

LATENT_SIDE = 16
RANK = 4
STEPS = 10
GUIDANCE = 7.5
PROMPTS = ["a photo of sks backpack on the beach", "a photo of backpack"]
SEED = 11
# Height and width of the original, top and left of the crop, height and width of the target, for each prompt.
TIME_IDS = torch.tensor([[1024.0, 768, 0, 32, 128, 128], [300, 400, 8, 0, 128, 128]])
random = torch.Generator()

UNET = dict(
    in_channels=4,
    out_channels=4,
    block_out_channels=[320, 640, 1280, 1280],
    layers_per_block=2,
    down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
)
VAE = dict(
    block_out_channels=[128, 256, 512, 512],
    layers_per_block=2,
    down_block_types=["DownEncoderBlock2D"] * 4,
    up_block_types=["UpDecoderBlock2D"] * 4,
    scaling_factor=0.18215,
)
TEXT = dict(vocab_size=49408, max_position_embeddings=77, bos_token_id=49406, eos_token_id=49407)
SCHEDULE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, set_alpha_to_one=False)


def text_encoder(kind=CLIPTextModel, **shape):
    return lambda: kind(CLIPTextConfig(**TEXT | shape))


CLIP_L = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, hidden_act="quick_gelu", projection_dim=768, pad_token_id=1)


def stable_diffusion_1():
    return dict(
        pipeline=StableDiffusionPipeline,
        networks=dict(
            unet=lambda: UNet2DConditionModel(**UNET, sample_size=64, cross_attention_dim=768, attention_head_dim=8),
            vae=lambda: AutoencoderKL(**VAE, sample_size=512),
            text_encoder=text_encoder(**CLIP_L),
        ),
        scheduler=PNDMScheduler(**SCHEDULE, skip_prk_steps=True),
        tokenizers=dict(tokenizer={}),
        half=True,
    )


def stable_diffusion_2():
    return dict(
        pipeline=StableDiffusionPipeline,
        networks=dict(
            unet=lambda: UNet2DConditionModel(
                **UNET, sample_size=96, cross_attention_dim=1024, attention_head_dim=[5, 10, 20, 20], use_linear_projection=True, upcast_attention=True
            ),
            vae=lambda: AutoencoderKL(**VAE, sample_size=768),
            text_encoder=text_encoder(
                hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16, hidden_act="gelu", projection_dim=512, pad_token_id=1
            ),
        ),
        scheduler=DDIMScheduler(**SCHEDULE, clip_sample=False, prediction_type="v_prediction"),
        tokenizers=dict(tokenizer=dict(pad_token="!")),
        half=False,
    )


def stable_diffusion_xl():
    return dict(
        pipeline=StableDiffusionXLPipeline,
        networks=dict(
            unet=lambda: UNet2DConditionModel(
                sample_size=128,
                block_out_channels=[320, 640, 1280],
                down_block_types=["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
                up_block_types=["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
                layers_per_block=2,
                transformer_layers_per_block=[1, 2, 10],
                attention_head_dim=[5, 10, 20],
                cross_attention_dim=2048,
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=256,
                projection_class_embeddings_input_dim=2816,
            ),
            vae=lambda: AutoencoderKL(**VAE | dict(sample_size=1024, scaling_factor=0.13025, force_upcast=True)),
            text_encoder=text_encoder(**CLIP_L),
            text_encoder_2=text_encoder(
                CLIPTextModelWithProjection,
                hidden_size=1280,
                intermediate_size=5120,
                num_hidden_layers=32,
                num_attention_heads=20,
                hidden_act="gelu",
                projection_dim=1280,
                pad_token_id=1,
            ),
        ),
        scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1),
        tokenizers=dict(tokenizer={}, tokenizer_2=dict(pad_token="!")),
        half=False,
    )


MODELS = {
    "stable-diffusion-1": stable_diffusion_1,
    "stable-diffusion-2": stable_diffusion_2,
    "stable-diffusion-xl": stable_diffusion_xl,
}


class without_initialisation:
    """Layers keep whatever is in their memory: every weight is written afterwards."""

    def __enter__(self):
        self.saved = {name: f for name, f in vars(torch.nn.init).items() if name.endswith("_") and callable(f)}
        for name in self.saved:
            setattr(torch.nn.init, name, lambda tensor, *_, **__: tensor)

    def __exit__(self, *_):
        for name, f in self.saved.items():
            setattr(torch.nn.init, name, f)


def placed(model, file):
    """Moves the weights, which nothing has touched yet, into a file that is mapped, so that the largest of networks needs no memory of its own."""
    parameters = list(model.parameters())
    storage = torch.UntypedStorage.from_file(str(file), shared=True, nbytes=4 * sum(p.numel() for p in parameters))
    place = 0
    for p in parameters:
        shape = p.shape
        p.data = torch.empty(0).set_(storage, place, shape)
        place += p.numel()
    return model


@torch.no_grad()
def randomized(build, half, scratch):
    """Weights that keep a signal's size, away from every default; with `half`, values that 16 bits can hold."""
    with without_initialisation():
        model = placed(build(), scratch)
    for name, p in model.named_parameters():
        if p.ndim == 1:
            p.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.1, generator=random)
        elif "token_embedding" in name or "position_embedding" in name:
            p.normal_(0, 0.5, generator=random)
        else:
            p.normal_(0, p[0].numel() ** -0.5, generator=random)
        if half:
            p.copy_(p.half())
    return model.eval().requires_grad_(False)


def normal(*shape):
    return torch.randn(shape, generator=random)


def add_lora(model, prefix, targets, text):
    """A LoRA by peft, with factors that are all nonzero; gives its parameters and start values under the names of a PEFT file."""
    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets), model, "default")
    start = {}
    for name, value in get_peft_model_state_dict(model, adapter_name="default").items():
        start[name] = normal(*value.shape) * (value.shape[1] ** -0.5 if "lora_A" in name else 0.05)
    set_peft_model_state_dict(model, start, adapter_name="default")
    parameters = {}
    for name, p in model.named_parameters():
        if ".default." in name:
            plain = name.replace(".default.", ".")
            assert torch.equal(p, start[plain]), name
            # transformers 5 leaves out the prefix that all published text encoders have.
            stem = f"text_model.{plain.removeprefix('text_model.')}" if text else plain
            parameters[f"{prefix}.{stem}"] = p.requires_grad_(True)
    return parameters


def text_embedding(pipe, tokens):
    """What the denoiser is conditioned on, as arguments of its call, by the token ids of each text encoder."""
    if not hasattr(pipe, "text_encoder_2"):
        return {"encoder_hidden_states": pipe.text_encoder(tokens["tokens"]).last_hidden_state}
    first = pipe.text_encoder(tokens["tokens"], output_hidden_states=True)
    second = pipe.text_encoder_2(tokens["tokens_2"], output_hidden_states=True)
    return {
        "encoder_hidden_states": torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1),
        "added_cond_kwargs": {"text_embeds": second.text_embeds, "time_ids": TIME_IDS},
    }


def losses_and_gradients(pipe, results):
    """DreamBooth with one picture and one of its class: the loss, and its gradients by the LoRA's factors."""
    shape = (2, 4, LATENT_SIDE, LATENT_SIDE)
    schedule = pipe.scheduler
    mean, logvar, drawn, noise = normal(*shape) / 0.18215, normal(*shape) - 1, normal(*shape), normal(*shape)
    timesteps = torch.tensor([411, 77])
    clean = (mean + torch.exp(0.5 * logvar) * drawn) * pipe.vae.config.scaling_factor
    alpha_bar = schedule.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    signal, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    noisy = signal * clean + sigma * noise
    velocity = schedule.config.prediction_type == "v_prediction"
    target = signal * noise - sigma * clean if velocity else noise
    results |= {"train.mean": mean, "train.logvar": logvar, "train.drawn": drawn, "train.noise": noise, "train.timesteps": timesteps}

    parameters = add_lora(pipe.unet, "unet", ["to_q", "to_k", "to_v", "to_out.0"], text=False)
    for name, text in (("denoiser", False), ("denoiser and text encoder", True)):
        if text:
            for encoder in ("text_encoder", "text_encoder_2"):
                if hasattr(pipe, encoder):
                    parameters |= add_lora(getattr(pipe, encoder), encoder, ["q_proj", "k_proj", "v_proj", "out_proj"], text=True)
        prediction = pipe.unet(noisy, timesteps, **text_embedding(pipe, results)).sample
        errors = (prediction - target).square().mean((1, 2, 3))
        loss = errors[0] + errors[1]
        for p in parameters.values():
            p.grad = None
        loss.backward()
        results[f"train.{name}.loss"] = loss.detach().reshape(1)
        # SDXL reads its first text encoder before the last layer, whose factors then change nothing.
        used = {key: p for key, p in parameters.items() if p.grad is not None}
        assert all(key.startswith("text_encoder.text_model.encoder.layers.11.") for key in parameters.keys() - used.keys())
        assert len(used) == len(parameters) or hasattr(pipe, "text_encoder_2")
        for key, p in used.items():
            results[f"train.{name}.start.{key}"] = p.detach()
            results[f"train.{name}.gradient.{key}"] = p.grad.clone()


@torch.no_grad()
def outputs(pipe):
    """What each network gives, and the pipeline's picture."""
    side = LATENT_SIDE * 8
    tokenizers = {"tokens": pipe.tokenizer} | ({"tokens_2": pipe.tokenizer_2} if hasattr(pipe, "tokenizer_2") else {})
    tokens = {key: t(PROMPTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids for key, t in tokenizers.items()}
    condition = text_embedding(pipe, tokens)
    sample, timesteps = normal(2, 4, LATENT_SIDE, LATENT_SIDE), torch.tensor([981, 21])
    pixels = torch.rand(1, 3, side, side, generator=random) * 2 - 1
    posterior = pipe.vae.encode(pixels).latent_dist
    latents = normal(1, 4, LATENT_SIDE, LATENT_SIDE)
    pipe.set_progress_bar_config(disable=True)
    picture = pipe(
        PROMPTS[0],
        height=side,
        width=side,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=torch.Generator("cpu").manual_seed(SEED),
        output_type="np",
    ).images
    added = condition.get("added_cond_kwargs")
    return tokens | {
        "text.condition": condition["encoder_hidden_states"],
        **({"text.pooled": added["text_embeds"], "time_ids": added["time_ids"]} if added else {}),
        "unet.sample": sample,
        "unet.timesteps": timesteps,
        "unet.prediction": pipe.unet(sample, timesteps, **condition).sample,
        "vae.pixels": pixels,
        "vae.mean": posterior.mean,
        "vae.logvar": posterior.logvar,
        "vae.latents": latents,
        "vae.decoded": pipe.vae.decode(latents).sample,
        "picture": torch.from_numpy((picture * 255).round().astype("uint8")),
    }


def write_model(made, folder, tokenizer):
    half = made["half"]
    folder.mkdir()
    scratch = folder.parent / "scratch"
    for name, build in made["networks"].items():
        network = randomized(build, half, scratch)
        if half:
            network.half().save_pretrained(folder / name, variant="fp16")
        else:
            network.save_pretrained(folder / name, max_shard_size="2GB")
        del network
        scratch.unlink()
    with torch.device("meta"):
        networks = {name: build() for name, build in made["networks"].items()}
    tokenizers = {name: CLIPTokenizer.from_pretrained(tokenizer, **settings) for name, settings in made["tokenizers"].items()}
    unsafe = dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    more = unsafe if made["pipeline"] is StableDiffusionPipeline else dict(add_watermarker=False)
    # The pipeline writes its own index; the networks are written already.
    made["pipeline"](**networks, **tokenizers, scheduler=made["scheduler"], **more).save_config(folder)
    made["scheduler"].save_pretrained(folder / "scheduler")
    for name, one in tokenizers.items():
        one.save_pretrained(folder / name)
    return made["pipeline"].from_pretrained(folder, **more, variant="fp16" if half else None, torch_dtype=torch.float32)


def main(name, folder, tokenizer):
    random.manual_seed(5)
    pipe = write_model(MODELS[name](), folder / "model", tokenizer)
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval().requires_grad_(False)
    results = outputs(pipe)
    losses_and_gradients(pipe, results)
    for key, value in results.items():
        assert value.dtype in (torch.int64, torch.uint8) or value.isfinite().all(), key
    save_file({k: v.clone().contiguous() for k, v in results.items()}, folder / "expected.safetensors")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
