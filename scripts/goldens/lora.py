"""Loads the LoRA files written by lora.ts with diffusers, and writes one as diffusers does, for test/pretrained/lora-file.test.ts.

1. pytorch_lora_weights.safetensors, and the UNet part of kohya_lora_weights.safetensors, loaded with load_lora_weights into the sd1-tiny checkpoint: the outputs of
   UNet and text encoder must be those of the checkpoint with alpha / rank * up @ down added to its weights by hand (relative error at most 1e-5).
2. test/goldens/lora/diffusers.safetensors: the same update, trained-like as PEFT adapters with their own alpha, saved by save_lora_weights.

Needs: pip install torch diffusers transformers peft safetensors
"""

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file

MODEL = "test/goldens/models/sd1-tiny"
FOLDER = "test/goldens/lora"
ALPHA = 3.0


def pipeline():
    return StableDiffusionPipeline.from_pretrained(MODEL, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def outputs(pipe):
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(2, 4, 8, 8, generator=generator)
    context = torch.randn(2, 7, 16, generator=generator)
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


def main():
    check("peft", load_file(f"{FOLDER}/pytorch_lora_weights.safetensors"), ["unet", "text_encoder"])
    kohya = load_file(f"{FOLDER}/kohya_lora_weights.safetensors")
    check("kohya, UNet", {k: v for k, v in kohya.items() if k.startswith("lora_unet_")}, ["unet"])
    save_as_diffusers()


main()
