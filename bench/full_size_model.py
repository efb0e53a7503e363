"""Writes a model folder of the shape of Stable Diffusion 1.5 with random weights (4 GB) into the folder of the first argument.

The second argument is the folder of a small model, whose tokenizer and index it borrows. bench/run.ts --full starts it.
"""

import shutil
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

folder, small = Path(sys.argv[1]), Path(sys.argv[2])
torch.manual_seed(0)
unet = UNet2DConditionModel(
    sample_size=64,
    block_out_channels=(320, 640, 1280, 1280),
    down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    layers_per_block=2,
    cross_attention_dim=768,
    attention_head_dim=8,
)
unet.save_pretrained(folder / "unet", max_shard_size="10GB")
vae = AutoencoderKL(
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=(128, 256, 512, 512),
    layers_per_block=2,
    sample_size=512,
)
vae.save_pretrained(folder / "vae")
text = CLIPTextModel(
    CLIPTextConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=77,
        hidden_act="quick_gelu",
    )
)
text.save_pretrained(folder / "text_encoder")
scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
scheduler.save_pretrained(folder / "scheduler")
shutil.copytree(small / "tokenizer", folder / "tokenizer")
shutil.copy(small / "model_index.json", folder)
