"""Loads the LoRA files written by lora.ts with diffusers, and writes one as diffusers does, for test/pretrained/lora-file.test.ts.

1. pytorch_lora_weights.safetensors, and the UNet part of kohya_lora_weights.safetensors, loaded with load_lora_weights into the sd1-tiny checkpoint: the outputs of
   UNet and text encoder must be those of the checkpoint with alpha / rank * up @ down added to its weights by hand (relative error at most 1e-5).
   So must converted.safetensors, the same update in diffusers' own format.
2. test/goldens/lora/diffusers.safetensors: the same update, trained-like as PEFT adapters with their own alpha, saved by save_lora_weights.
3. xl_kohya.safetensors and xl_peft.safetensors, loaded into a small SDXL pipeline, must change its weights by alpha / rank * up @ down.
4. test/goldens/lora/applied.safetensors: what the sd1-tiny checkpoint computes with pytorch_lora_weights.safetensors at 0.7 and convolutions.safetensors at -0.5
   loaded as adapters, and the weights that fuse_lora makes of them.
5. test/goldens/lora/half.safetensors: a LoRA for the sdxl-tiny checkpoint, whose weights are float16, and test/goldens/lora/half_fused.safetensors: the weights
   that diffusers saves as float16 after fuse_lora at 0.7, computed in float32 and in float16.

Needs: pip install torch diffusers transformers 'peft>=0.22' safetensors
"""

import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from safetensors.torch import load_file, save_file

MODEL = "test/goldens/models/sd1-tiny"
FOLDER = "test/goldens/lora"
ALPHA = 3.0


def pipeline():
    return StableDiffusionPipeline.from_pretrained(MODEL, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def inputs():
    generator = torch.Generator().manual_seed(0)
    return {"sample": torch.randn(2, 4, 8, 8, generator=generator), "context": torch.randn(2, 7, 16, generator=generator)}


def outputs(pipe):
    sample, context = inputs().values()
    tokens = torch.tensor([[0, 5, 9, 17, 1, 1, 1]])
    with torch.no_grad():
        return {
            "unet": pipe.unet(sample, torch.tensor([3, 500]), encoder_hidden_states=context).sample,
            "text_encoder": pipe.text_encoder(tokens)[0],
        }


def factors():
    """Raw factors by module, from the kohya file, whose alpha is not folded in."""
    kohya = load_file(f"{FOLDER}/kohya_lora_weights.safetensors")
    return {key.removesuffix(".alpha"): (kohya[key.replace(".alpha", ".lora_down.weight")], kohya[key.replace(".alpha", ".lora_up.weight")], kohya[key].item())
            for key in kohya if key.endswith(".alpha")}


def kohya_name(prefix, name):
    return prefix + name.replace(".", "_")


def text_name(name):
    return name if name.startswith("text_model.") else f"text_model.{name}"


def merged(components):
    pipe = pipeline()
    wanted = factors()
    with torch.no_grad():
        for component, prefix in (("unet", "lora_unet_"), ("text_encoder", "lora_te_")):
            if component not in components:
                continue
            for name, module in getattr(pipe, component).named_modules():
                key = kohya_name(prefix, name if component == "unet" else text_name(name))
                if key in wanted:
                    down, up, alpha = wanted.pop(key)
                    module.weight += alpha / down.shape[0] * up @ down
    assert not [k for k in wanted if any(k.startswith({"unet": "lora_unet_", "text_encoder": "lora_te_"}[c]) for c in components)], wanted.keys()
    return pipe


def error(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def check(name, weights, components):
    base, expected = outputs(pipeline()), outputs(merged(components))
    pipe = pipeline()
    pipe.load_lora_weights(weights)
    found = outputs(pipe)
    for component in components:
        moved = error(base[component], expected[component])
        off = error(found[component], expected[component])
        print(f"{name}: {component}: {off:.1e} from the merged weights; the update itself is {moved:.1e}")
        assert off < 1e-5 < 1e-3 < moved


def save_as_diffusers():
    pipe = pipeline()
    wanted = factors()
    layers, metadata = {}, {}
    for component, prefix in (("unet", "lora_unet_"), ("text_encoder", "lora_te_")):
        model = getattr(pipe, component)
        name_of = (lambda n: n) if component == "unet" else text_name
        targets = [n for n, _ in model.named_modules() if kohya_name(prefix, name_of(n)) in wanted]
        config = LoraConfig(r=2, lora_alpha=ALPHA, target_modules=targets)
        model.add_adapter(config)
        with torch.no_grad():
            for name, module in model.named_modules():
                key = kohya_name(prefix, name_of(name))
                if key in wanted and hasattr(module, "lora_A"):
                    down, up, _ = wanted[key]
                    module.lora_A["default"].weight.copy_(down)
                    module.lora_B["default"].weight.copy_(up)
        layers[component] = convert_state_dict_to_diffusers(get_peft_model_state_dict(model))
        metadata[component] = {**config.to_dict(), "target_modules": sorted(targets)}
    StableDiffusionPipeline.save_lora_weights(
        FOLDER,
        unet_lora_layers=layers["unet"],
        text_encoder_lora_layers=layers["text_encoder"],
        weight_name="diffusers.safetensors",
        unet_lora_adapter_metadata=metadata["unet"],
        text_encoder_lora_adapter_metadata=metadata["text_encoder"],
    )


def small_xl():
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=[64] * 3, layers_per_block=2, cross_attention_dim=192, attention_head_dim=[1] * 3,
        transformer_layers_per_block=[1, 2, 3], projection_class_embeddings_input_dim=1536 + 64, addition_embed_type="text_time", addition_time_embed_dim=256,
        use_linear_projection=True, down_block_types=["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2, up_block_types=["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
    )
    text = dict(vocab_size=600, intermediate_size=64, num_hidden_layers=2, bos_token_id=0, eos_token_id=2, pad_token_id=1)
    return StableDiffusionXLPipeline(
        unet=unet,
        vae=AutoencoderKL(),
        text_encoder=CLIPTextModel(CLIPTextConfig(hidden_size=64, num_attention_heads=1, **text)),
        text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(hidden_size=128, num_attention_heads=2, projection_dim=64, **text)),
        tokenizer=None, tokenizer_2=None, scheduler=EulerDiscreteScheduler(),
    )


def plain_names(model):
    """Weights by module path, whatever level of wrapping PEFT has added."""
    return {n.removesuffix(".weight").replace(".base_layer", ""): p for n, p in model.named_parameters() if n.endswith(".weight") and ".lora_" not in n}


def check_xl(name, components):
    peft = load_file(f"{FOLDER}/xl_peft.safetensors")
    expected = {k.removesuffix(".lora_A.weight"): peft[k.replace("lora_A", "lora_B")] @ peft[k] for k in peft if ".lora_A." in k}
    expected = {k: v for k, v in expected.items() if k.split(".")[0] in components}
    pipe = small_xl()
    before = {c: {n: p.clone() for n, p in plain_names(getattr(pipe, c)).items()} for c in components}
    # diffusers does not read kohya's names of text encoder layers.
    weights = {k: v for k, v in load_file(f"{FOLDER}/{name}").items() if not k.startswith("lora_te")}
    pipe.load_lora_weights(weights)
    pipe.fuse_lora(components=components)
    left = dict(expected)
    for component, originals in before.items():
        for path, weight in plain_names(getattr(pipe, component)).items():
            module = f"{component}.{path}"
            update = left.pop(module, None) if component == "unet" else left.pop(module, left.pop(f"{component}.text_model.{path}", None))
            moved = weight - originals[path]
            if update is None:
                assert moved.abs().max() == 0, module
            else:
                assert update.abs().max() > 1e-2 and error(moved, update) < 1e-4, (module, error(moved, update))
    assert not left, left.keys()
    print(f"{name}: all {len(expected)} modules of a small SDXL pipeline changed as they should, and nothing else")


def applied():
    def with_adapters():
        pipe = pipeline()
        pipe.load_lora_weights(FOLDER, weight_name="pytorch_lora_weights.safetensors", adapter_name="subject")
        pipe.load_lora_weights(FOLDER, weight_name="convolutions.safetensors", adapter_name="convolutions")
        pipe.set_adapters(["subject", "convolutions"], [0.7, -0.5])
        return pipe

    found = outputs(with_adapters())
    base = outputs(pipeline())
    pipe = with_adapters()
    pipe.fuse_lora(adapter_names=["subject", "convolutions"])
    results = {f"input.{k}": v for k, v in inputs().items()} | {f"output.{k}": v for k, v in found.items()}
    plain = pipeline()
    for component in ("unet", "text_encoder"):
        print(f"adapters: {component} moves by {error(found[component], base[component]):.1e}")
        before = plain_names(getattr(plain, component))
        changed = 0
        for path, weight in plain_names(getattr(pipe, component)).items():
            if not torch.equal(weight, before[path]):
                results[f"{component}.{path}.weight"] = weight.detach().clone()
                changed += 1
        print(f"fused: {changed} weights of {component}")
    save_file(results, f"{FOLDER}/applied.safetensors")


HALF_MODEL = "test/goldens/models/sdxl-tiny"
HALF_TARGETS = {
    "unet": [
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        "down_blocks.2.attentions.1.transformer_blocks.1.attn2.to_k",
        "mid_block.attentions.0.proj_in",
        "mid_block.resnets.0.conv1",
        "up_blocks.0.attentions.2.transformer_blocks.0.ff.net.2",
        "up_blocks.1.attentions.1.transformer_blocks.0.attn1.to_out.0",
    ],
    "text_encoder": ["encoder.layers.0.self_attn.q_proj", "encoder.layers.1.mlp.fc1"],
    "text_encoder_2": ["encoder.layers.1.self_attn.v_proj", "encoder.layers.0.self_attn.out_proj"],
}


def half_pipeline(dtype):
    return StableDiffusionXLPipeline.from_pretrained(HALF_MODEL, variant="fp16", torch_dtype=dtype, add_watermarker=False)


def half():
    generator = torch.Generator().manual_seed(4)
    pipe = half_pipeline(torch.float32)
    layers, metadata = {}, {}
    for component, targets in HALF_TARGETS.items():
        model = getattr(pipe, component)
        names = [n for n, _ in model.named_modules() if any(n.removeprefix("text_model.") == t for t in targets)]
        assert len(names) == len(targets)
        config = LoraConfig(r=3, lora_alpha=2, target_modules=names)
        model.add_adapter(config)
        for name, p in model.named_parameters():
            if ".lora_" in name:
                p.data.copy_(torch.randn(p.shape, generator=generator) * 0.3)
        layers[component] = convert_state_dict_to_diffusers(get_peft_model_state_dict(model))
        metadata[component] = {**config.to_dict(), "target_modules": sorted(names)}
    arguments = {f"{c}_lora_layers": v for c, v in layers.items()} | {f"{c}_lora_adapter_metadata": v for c, v in metadata.items()}
    StableDiffusionXLPipeline.save_lora_weights(FOLDER, weight_name="half.safetensors", **arguments)

    results = {}
    for dtype in (torch.float32, torch.float16):
        pipe = half_pipeline(dtype)
        pipe.load_lora_weights(FOLDER, weight_name="half.safetensors")
        pipe.fuse_lora(lora_scale=0.7)
        pipe.unload_lora_weights()
        with tempfile.TemporaryDirectory() as folder:
            pipe.to(torch.float16).save_pretrained(folder, variant="fp16")
            for component, targets in HALF_TARGETS.items():
                stem = "diffusion_pytorch_model" if component == "unet" else "model"
                before, after = (load_file(Path(f) / component / f"{stem}.fp16.safetensors") for f in (HALF_MODEL, folder))
                changed = [k for k in after if not torch.equal(after[k], before[k])]
                assert len(changed) == len(targets), (component, changed)
                results |= {f"{str(dtype).removeprefix('torch.')}.{component}.{k}": after[k] for k in changed}
    save_file(results, f"{FOLDER}/half_fused.safetensors")


def main():
    check("peft", load_file(f"{FOLDER}/pytorch_lora_weights.safetensors"), ["unet", "text_encoder"])
    kohya = load_file(f"{FOLDER}/kohya_lora_weights.safetensors")
    check("kohya, UNet", {k: v for k, v in kohya.items() if k.startswith("lora_unet_")}, ["unet"])
    check("diffusers", FOLDER + "/converted.safetensors", ["unet", "text_encoder"])
    check_xl("xl_peft.safetensors", ["unet", "text_encoder", "text_encoder_2"])
    check_xl("xl_kohya.safetensors", ["unet"])
    applied()
    save_as_diffusers()
    half()

if __name__ == "__main__":
    main()
