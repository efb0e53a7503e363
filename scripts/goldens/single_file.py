"""Single-file checkpoints as diffusers reads them, for test/pretrained/single-file.test.ts.

    python scripts/goldens/single_file.py DIFFUSERS

DIFFUSERS is a clone of https://github.com/huggingface/diffusers: its scripts convert_diffusers_to_original_*.py give the names that the original
checkpoints have. Of small models, and of full-sized ones on the meta device, test/goldens/single-file/names.json.gz gets the names and shapes in the single
file and the configurations of the folder. The small ones' files are filled with numbers that follow from names and positions (`pattern`, which the test
repeats), read by from_single_file, and what they compute goes to test/goldens/single-file/<name>.safetensors.
"""

import gzip
import importlib.util
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

ROOT = Path(__file__).resolve().parents[2]
GOLDENS = ROOT / "test" / "goldens" / "single-file"
TOKENIZER = ROOT / "models" / "clip-tokenizer"


def script(name):
    spec = importlib.util.spec_from_file_location(name, Path(sys.argv[1]) / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pattern(name, shape):
    """Numbers that follow from a tensor's name: multiples of a power of two that half floats hold exactly."""
    seed = 0x811C9DC5
    for byte in name.encode():
        seed = ((seed ^ byte) * 0x01000193) & 0xFFFFFFFF
    with np.errstate(over="ignore"):
        h = np.arange(int(np.prod(shape)), dtype=np.uint32) * np.uint32(0x9E3779B1) + np.uint32(seed)
        h ^= h >> np.uint32(16)
        h *= np.uint32(0x85EBCA6B)
        h ^= h >> np.uint32(13)
        h *= np.uint32(0xC2B2AE35)
        h ^= h >> np.uint32(16)
    v = (h >> np.uint32(24)).astype(np.float32) / 128 - 1
    if len(shape) < 2:
        v = v / 4 + (1 if name.endswith("weight") else 0)
    elif "embedding" not in name:
        v = v * 2.0 ** -np.floor(np.log2(np.prod(shape[1:])) / 2 - 0.5)
    return torch.from_numpy(v.astype(np.float32).reshape(shape))


def unet(**config):
    return UNet2DConditionModel(**{"layers_per_block": 2, "sample_size": 8, **config})


LEVELS4 = dict(
    down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
)
LEVELS3 = dict(
    down_block_types=["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
    up_block_types=["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    use_linear_projection=True,
)


def vae(channels, **config):
    return AutoencoderKL(
        block_out_channels=channels,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=2,
        **config,
    )


def text(width, inner, layers, heads, activation, kind=CLIPTextModel, projection=None):
    return kind(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            hidden_act=activation,
            max_position_embeddings=77,
            projection_dim=projection or width,
            bos_token_id=0,
            eos_token_id=2,
            pad_token_id=1,
        )
    )


def small():
    c4, c3 = [32, 32, 64, 64], [64, 64, 64]
    v = [32, 32, 64, 64]
    return {
        "sd1-small": (
            unet(block_out_channels=c4, cross_attention_dim=64, attention_head_dim=8, **LEVELS4),
            vae(v),
            [text(64, 96, 2, 1, "quick_gelu")],
        ),
        "sd2-small": (
            unet(block_out_channels=[64] * 4, cross_attention_dim=64, attention_head_dim=[1] * 4, use_linear_projection=True, **LEVELS4),
            vae(v),
            [text(64, 64, 23, 1, "gelu")],
        ),
        "sdxl-small": (
            unet(block_out_channels=c3, cross_attention_dim=192, attention_head_dim=[1] * 3, transformer_layers_per_block=[1, 2, 3], projection_class_embeddings_input_dim=1536 + 64, **LEVELS3),
            vae(v, scaling_factor=0.13025),
            [text(64, 96, 2, 1, "quick_gelu"), text(128, 128, 3, 2, "gelu", CLIPTextModelWithProjection, 64)],
        ),
    }


def full():
    c4, c3 = [320, 640, 1280, 1280], [320, 640, 1280]
    v = [128, 256, 512, 512]
    return {
        "sd1": (
            unet(block_out_channels=c4, cross_attention_dim=768, attention_head_dim=8, sample_size=64, **LEVELS4),
            vae(v, sample_size=512),
            [text(768, 3072, 12, 12, "quick_gelu")],
        ),
        "sd2": (
            unet(block_out_channels=c4, cross_attention_dim=1024, attention_head_dim=[5, 10, 20, 20], use_linear_projection=True, sample_size=96, **LEVELS4),
            vae(v, sample_size=768),
            [text(1024, 4096, 23, 16, "gelu")],
        ),
        "sdxl": (
            unet(block_out_channels=c3, cross_attention_dim=2048, attention_head_dim=[5, 10, 20], transformer_layers_per_block=[1, 2, 10], projection_class_embeddings_input_dim=2816, sample_size=128, **LEVELS3),
            vae(v, scaling_factor=0.13025, sample_size=1024),
            [text(768, 3072, 12, 12, "quick_gelu"), text(1280, 5120, 32, 20, "gelu", CLIPTextModelWithProjection, 1280)],
        ),
    }


def prefixed_text(encoder):
    return {k if k.startswith(("text_model.", "text_projection.")) else f"text_model.{k}": v for k, v in encoder.state_dict().items() if not k.endswith("position_ids")}


def original(unet, vae, encoders):
    """The checkpoint's tensors under their original names, and those that the published files have besides."""
    names = script("convert_diffusers_to_original_sdxl" if len(encoders) == 2 else "convert_diffusers_to_original_stable_diffusion")
    found = {f"model.diffusion_model.{k}": v for k, v in names.convert_unet_state_dict(unet.state_dict()).items()}
    found |= {f"first_stage_model.{k}": v for k, v in names.convert_vae_state_dict(vae.state_dict()).items()}
    first = prefixed_text(encoders[0])
    ids = torch.arange(77)[None]
    width = encoders[0].config.hidden_size
    if len(encoders) == 2:
        found |= {f"conditioner.embedders.0.transformer.{k}": v for k, v in first.items()}
        found["conditioner.embedders.0.transformer.text_model.embeddings.position_ids"] = ids
        second = names.convert_openclip_text_enc_state_dict(prefixed_text(encoders[1]))
        second["text_projection"] = second.pop("text_projection.weight").T.contiguous()
        second["logit_scale"] = torch.ones(())
        found |= {f"conditioner.embedders.1.model.{k}": v for k, v in second.items()}
    elif len(encoders[0].text_model.encoder.layers if hasattr(encoders[0], "text_model") else encoders[0].encoder.layers) >= 23:
        clip = names.convert_text_enc_state_dict_v20({f"transformer.{k}": v for k, v in first.items()})
        clip |= {k.replace("resblocks.22.", "resblocks.23."): v for k, v in clip.items() if "resblocks.22." in k}
        clip |= {"text_projection": torch.empty(width, width, device="meta"), "logit_scale": torch.ones(())}
        found |= {f"cond_stage_model.model.{k}": v for k, v in clip.items()}
    else:
        found |= {f"cond_stage_model.transformer.{k}": v for k, v in first.items()}
        found["cond_stage_model.transformer.text_model.embeddings.position_ids"] = ids
    found |= {"betas": torch.empty(1000), "model_ema.decay": torch.ones(())}
    return found


def described(tensors, unet, vae, encoders):
    configs = {"unet": dict(unet.config), "vae": dict(vae.config)}
    configs |= {f"text_encoder{'_2' * i}": json.loads(e.config.to_json_string(use_diff=False)) for i, e in enumerate(encoders)}
    return {
        "tensors": {k: list(v.shape) for k, v in tensors.items()},
        "integers": [k for k, v in tensors.items() if v.dtype == torch.int64],
        "configs": configs,
    }


def pipeline(unet, vae, encoders):
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER)
    common = dict(unet=unet, vae=vae, text_encoder=encoders[0], tokenizer=tokenizer)
    if len(encoders) == 2:
        return StableDiffusionXLPipeline(**common, text_encoder_2=encoders[1], tokenizer_2=tokenizer, scheduler=EulerDiscreteScheduler())
    return StableDiffusionPipeline(**common, scheduler=DDIMScheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False)


@torch.no_grad()
def compute(name, tensors, parts):
    with tempfile.TemporaryDirectory() as folder:
        pipe = pipeline(*parts)
        pipe.save_pretrained(f"{folder}/config")
        filled = {k: v if v.dtype == torch.int64 else pattern(k, tuple(v.shape)).half() for k, v in tensors.items()}
        save_file({k: v.contiguous() for k, v in filled.items()}, f"{folder}/model.safetensors")
        pipe = type(pipe).from_single_file(f"{folder}/model.safetensors", config=f"{folder}/config", torch_dtype=torch.float32, local_files_only=True)
    random = torch.Generator().manual_seed(5)
    tokens = torch.tensor([pipe.tokenizer("a photo of sks dog", padding="max_length", max_length=77).input_ids])
    results = {"tokens": tokens}
    if len(parts[2]) == 2:
        first = pipe.text_encoder(tokens, output_hidden_states=True)
        second = pipe.text_encoder_2(tokens, output_hidden_states=True)
        results |= {"hidden.0": first.hidden_states[-2], "hidden.1": second.hidden_states[-2], "pooled": second[0]}
        hidden = torch.cat([results["hidden.0"], results["hidden.1"]], -1)
        added = {"text_embeds": second[0], "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]])}
        more = dict(added_cond_kwargs=added)
    else:
        hidden = results["hidden.0"] = pipe.text_encoder(tokens).last_hidden_state
        more = {}
    sample = torch.randn(1, 4, 8, 8, generator=random)
    pixels = torch.rand(1, 3, 32, 32, generator=random) * 2 - 1
    latents = torch.randn(1, 4, 4, 4, generator=random)
    results |= {
        "sample": sample,
        "prediction": pipe.unet(sample, torch.tensor([321]), hidden, **more).sample,
        "pixels": pixels,
        "mean": pipe.vae.encode(pixels).latent_dist.mean,
        "latents": latents,
        "decoded": pipe.vae.decode(latents).sample,
    }
    print(name, {k: round(v.float().std().item(), 4) for k, v in results.items()})
    save_file({k: v.contiguous() for k, v in results.items()}, GOLDENS / f"{name}.safetensors")


def main():
    GOLDENS.mkdir(parents=True, exist_ok=True)
    names = {}
    for name, parts in small().items():
        tensors = original(*parts)
        names[name] = described(tensors, *parts)
        compute(name, tensors, parts)
    with torch.device("meta"):
        for name, parts in full().items():
            names[name] = described(original(*parts), *parts)
    with gzip.GzipFile(GOLDENS / "names.json.gz", "wb", mtime=0) as file:
        file.write(json.dumps(names, separators=(",", ":"), default=str).encode())


main()
