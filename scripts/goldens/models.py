"""Writes small random model folders with diffusers and transformers, and what those libraries compute with them.

test/goldens/models/<name>/ is a model folder; test/goldens/models/<name>.safetensors holds inputs and outputs. Run from
the repository's root:

    python scripts/goldens/models.py
"""

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

GOLDENS = Path(__file__).resolve().parents[2] / "test" / "goldens" / "models"
random = torch.Generator()


def normal(*shape):
    return torch.randn(shape, generator=random)


def randomize(model):
    """Moves every parameter off its default: no zero bias, no norm that scales by exactly one."""
    for name, p in model.named_parameters():
        if p.ndim == 1:
            p.data = (1.0 if "norm" in name and name.endswith("weight") else 0.0) + 0.2 * normal(*p.shape)
        elif "embedding" in name and "time" not in name:
            p.data = normal(*p.shape)
        else:
            p.data = normal(*p.shape) * p[0].numel() ** -0.5
    return model.eval()


def tokenizer():
    """The byte-level alphabet alone, without merges: 514 tokens."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    words = letters + [c + "</w>" for c in letters] + ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={w: i for i, w in enumerate(words)}, merges=[], model_max_length=77)


VOCABULARY = 514


def text_encoder(**config):
    shape = dict(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
    )
    return randomize(CLIPTextModel(CLIPTextConfig(**{**shape, **config})))


def unet(**config):
    return randomize(UNet2DConditionModel(cross_attention_dim=16, norm_num_groups=4, **config))


def vae(blocks, **config):
    return randomize(
        AutoencoderKL(
            block_out_channels=blocks,
            down_block_types=["DownEncoderBlock2D"] * len(blocks),
            up_block_types=["UpDecoderBlock2D"] * len(blocks),
            norm_num_groups=2,
            **config,
        )
    )


def pipeline(unet, vae, text_encoder, scheduler):
    return StableDiffusionPipeline(
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def save(name, pipe, **options):
    folder = GOLDENS / name
    shutil.rmtree(folder, ignore_errors=True)
    pipe.save_pretrained(folder, **options)
    return folder


def keep_scheduler(folder, scheduler):
    """The pipeline overwrites settings that it thinks outdated; the folder shall have them as they are."""
    scheduler.save_pretrained(folder / "scheduler")


def rename_attention(file):
    """Gives the autoencoder's attention the names that its first checkpoints had."""
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(file)
    for old, new in names.items():
        weights = {k.replace(f"attentions.0.{old}.", f"attentions.0.{new}."): v for k, v in weights.items()}
    save_file(weights, file, metadata={"format": "pt"})


def prefix_text(file):
    """Gives the text encoder the names that all published checkpoints have; transformers 5 leaves their prefix out."""
    save_file({f"text_model.{k}": v for k, v in load_file(file).items()}, file, metadata={"format": "pt"})


def sd1():
    random.manual_seed(1)
    scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        steps_offset=1,
    )
    # Stable Diffusion 1's file has this key although the class does not know it.
    scheduler.register_to_config(clip_sample=False)
    folder = save(
        "sd1-tiny",
        pipeline(
            unet(
                sample_size=8,
                block_out_channels=[8, 12],
                layers_per_block=2,
                down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
                up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
                attention_head_dim=2,
            ),
            vae([2, 4], sample_size=16),
            text_encoder(),
            scheduler,
        ),
    )
    prefix_text(folder / "text_encoder" / "model.safetensors")
    return folder


def sd2():
    random.manual_seed(2)
    return save(
        "sd2-tiny-sharded",
        pipeline(
            unet(
                sample_size=[6, 10],
                block_out_channels=[8, 8, 12],
                layers_per_block=[1, 2, 1],
                down_block_types=["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
                up_block_types=["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
                attention_head_dim=[1, 2, 4],
                use_linear_projection=True,
                upcast_attention=True,
            ),
            vae([2, 4, 4], layers_per_block=2, sample_size=[24, 40], mid_block_add_attention=False, use_quant_conv=False, use_post_quant_conv=False),
            text_encoder(hidden_act="gelu", num_hidden_layers=1),
            DDIMScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                prediction_type="v_prediction",
                clip_sample=False,
                set_alpha_to_one=False,
                steps_offset=1,
            ),
        ),
        max_shard_size="90KB",
    )


def half():
    random.manual_seed(3)
    pipe = pipeline(
        unet(
            sample_size=8,
            block_out_channels=[8, 12],
            layers_per_block=1,
            down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
            up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
            attention_head_dim=4,
            transformer_layers_per_block=2,
            downsample_padding=0,
            flip_sin_to_cos=False,
            freq_shift=1,
            conv_in_kernel=5,
            conv_out_kernel=1,
            center_input_sample=True,
            norm_eps=1e-3,
        ),
        vae([4, 8], sample_size=16, latent_channels=4, scaling_factor=0.5),
        text_encoder(max_position_embeddings=20),
        DDIMScheduler(),
    )
    pipe.tokenizer.model_max_length = 20
    folder = save("half-tiny", pipe.to(torch.float16), variant="fp16")
    keep_scheduler(
        folder,
        DDIMScheduler(
            beta_schedule="squaredcos_cap_v2",
            timestep_spacing="trailing",
            clip_sample=True,
            clip_sample_range=2.0,
        ),
    )
    rename_attention(folder / "vae" / "diffusion_pytorch_model.fp16.safetensors")
    return folder


@torch.enable_grad()
def gradients(unet, sample, timestep, hidden):
    """Of the mean square of the prediction: one parameter of each kind, and the text condition."""
    hidden = hidden.clone().requires_grad_()
    wanted = [
        "conv_in.weight",
        "time_embedding.linear_1.bias",
        "mid_block.resnets.0.norm1.weight",
        "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight",
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight",
        "mid_block.attentions.0.transformer_blocks.0.norm3.bias",
        "up_blocks.0.upsamplers.0.conv.weight",
        "down_blocks.0.downsamplers.0.conv.bias",
    ]
    unet.zero_grad()
    unet(sample, timestep, hidden).sample.square().mean().backward()
    parameters = dict(unet.named_parameters())
    found = {f"unet.gradient.{name}": parameters[name].grad.clone() for name in wanted}
    unet.zero_grad()
    return found | {"unet.gradient.encoder_hidden_states": hidden.grad}


def initial():
    """Writes initial.json: the mean and standard deviation of every parameter of fresh models."""
    torch.manual_seed(9)
    models = {
        "unet": UNet2DConditionModel(
            block_out_channels=[32, 64],
            layers_per_block=1,
            down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
            up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
            cross_attention_dim=48,
            attention_head_dim=4,
            norm_num_groups=8,
        ),
        "vae": AutoencoderKL(block_out_channels=[16, 32], down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, norm_num_groups=8),
        "text_encoder": CLIPTextModel(CLIPTextConfig(vocab_size=VOCABULARY, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4)),
    }
    statistics = {
        part: {
            "config": json.loads(model.config.to_json_string() if part == "text_encoder" else model.to_json_string()),
            "parameters": {
                name: {"shape": list(p.shape), "mean": p.mean().item(), "std": p.std(correction=0).item()}
                for name, p in model.named_parameters()
            },
        }
        for part, model in models.items()
    }
    (GOLDENS / "initial.json").write_text(json.dumps(statistics) + "\n")


@torch.no_grad()
def compute(folder, variant=None):
    pipe = StableDiffusionPipeline.from_pretrained(folder, variant=variant, torch_dtype=torch.float32, safety_checker=None)
    length = pipe.text_encoder.config.max_position_embeddings
    size = pipe.unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    factor = 2 ** (len(pipe.vae.config.block_out_channels) - 1)

    tokens = torch.randint(0, VOCABULARY, (2, length), generator=random)
    hidden = pipe.text_encoder(tokens).last_hidden_state
    results = {
        "text.tokens": tokens,
        "text.hidden": hidden,
        "text.short_tokens": tokens[:, :9].contiguous(),
        "text.short_hidden": pipe.text_encoder(tokens[:, :9]).last_hidden_state,
    }

    for name, shape, steps in [("trained", (height, width), (999, 3)), ("odd", (7, 5), (500, 0))]:
        sample = normal(2, 4, *shape)
        timestep = torch.tensor(steps)
        results[f"unet.{name}.sample"] = sample
        results[f"unet.{name}.timestep"] = timestep
        results[f"unet.{name}.prediction"] = pipe.unet(sample, timestep, hidden).sample
    results |= gradients(pipe.unet, *(results[f"unet.trained.{k}"] for k in ("sample", "timestep")), hidden)

    pixels = torch.rand(2, 3, height * factor, width * factor, generator=random) * 2 - 1
    posterior = pipe.vae.encode(pixels).latent_dist
    latents = normal(2, 4, height, width)
    results |= {
        "vae.pixels": pixels,
        "vae.mean": posterior.mean,
        "vae.log_variance": posterior.logvar,
        "vae.latents": latents,
        "vae.decoded": pipe.vae.decode(latents).sample,
    }

    ddim = DDIMScheduler.from_pretrained(folder / "scheduler")
    ddim.set_timesteps(10)
    noise = normal(1, 4, height, width)
    sample = noise
    for t in ddim.timesteps:
        prediction = pipe.unet(torch.cat([sample, sample]), t, hidden).sample
        without, conditional = prediction.chunk(2)
        sample = ddim.step(without + 7.5 * (conditional - without), t, sample).prev_sample
    results |= {"ddim.noise": noise, "ddim.sample": sample, "ddim.timesteps": ddim.timesteps, "alphas_cumprod": ddim.alphas_cumprod}

    for name, value in results.items():
        assert value.dtype == torch.int64 or (value.isfinite().all() and value.abs().max() > (0 if "gradient" in name else 0.1)), name
    save_file({k: v.contiguous() for k, v in results.items()}, folder.with_suffix(".safetensors"))
    print(folder.name, {k: round(v.float().abs().max().item(), 3) for k, v in results.items()})


if __name__ == "__main__":
    GOLDENS.mkdir(parents=True, exist_ok=True)
    compute(sd1())
    compute(sd2())
    compute(half(), variant="fp16")
    initial()
