// Writes the LoRA files that lora.py loads into diffusers. Run after a build: node dist/scripts/goldens/lora.js
import { mkdir } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { writeSafetensorsFile } from '../../src/formats/safetensors-file.js';
import type { Lora } from '../../src/pretrained/lora.js';
import { writeLoraFiles } from '../../src/pretrained/lora-file.js';
import { diffusersContents, kohyaContents, peftContents } from '../../src/pretrained/lora-formats.js';
import { elementCount, float32, type Tensor } from '../../src/tensor/tensor.js';

const rank = 2;
const alpha = 3;

/** Multiples of 1/64 between -1 and 1, other ones for each seed: the same on every platform, and exact in every format. */
function pattern(shape: readonly number[], seed: number): Tensor<'float32'> {
  return float32(
    shape,
    Array.from({ length: elementCount(shape) }, (_, i) => (((i * 37 + seed * 101) % 129) - 64) / 64),
  );
}

/** A LoRA for attention layers of the sd1-tiny checkpoint. */
export function sampleLora(): Lora {
  const blocks: [string, number][] = [
    ['unet.down_blocks.0.attentions.0', 8],
    ['unet.mid_block.attentions.0', 12],
    ['unet.up_blocks.1.attentions.2', 8],
  ];
  const shapes = new Map<string, [number, number]>();
  for (const [block, channels] of blocks) {
    for (const attention of ['attn1', 'attn2']) {
      for (const layer of ['to_q', 'to_k', 'to_v', 'to_out.0']) {
        const fromText = attention === 'attn2' && (layer === 'to_k' || layer === 'to_v');
        shapes.set(`${block}.transformer_blocks.0.${attention}.${layer}`, [
          channels,
          fromText ? 16 : channels,
        ]);
      }
    }
  }
  for (const layer of ['q_proj', 'k_proj', 'v_proj', 'out_proj']) {
    shapes.set(`text_encoder.text_model.encoder.layers.1.self_attn.${layer}`, [16, 16]);
  }
  return new Map(
    [...shapes].map(([module, [out, into]], i) => [
      module,
      { down: pattern([rank, into], 2 * i), up: pattern([out, rank], 2 * i + 1), alpha },
    ]),
  );
}

/** What the kohya file says about itself. */
export const sampleDescription = {
  title: 'sks',
  base: 'stable-diffusion-v1',
  prediction: 'epsilon',
  resolution: 64,
  triggerPhrase: 'sks backpack',
  steps: 10,
  learningRate: 0.0001,
} as const;

/** A LoRA for convolutions and other layers of the sd1-tiny checkpoint, with ranks and alphas that differ. */
export function convolutionLora(): Lora {
  const weights: readonly (readonly [string, readonly number[]])[] = [
    ['unet.conv_in', [8, 4, 3, 3]],
    ['unet.down_blocks.0.resnets.0.conv1', [8, 8, 3, 3]],
    ['unet.down_blocks.0.resnets.1.time_emb_proj', [8, 32]],
    ['unet.down_blocks.0.downsamplers.0.conv', [8, 8, 3, 3]],
    ['unet.down_blocks.0.attentions.0.proj_in', [8, 8, 1, 1]],
    ['unet.up_blocks.1.attentions.2.transformer_blocks.0.ff.net.0.proj', [64, 8]],
    ['unet.up_blocks.1.attentions.2.transformer_blocks.0.attn1.to_q', [8, 8]],
  ];
  return new Map(
    weights.map(([module, [out, ...into]], i) => {
      const moduleRank = 1 + (i % 3);
      return [
        module,
        {
          down: scaled(pattern([moduleRank, ...into], 100 + i), 0.25),
          up: scaled(pattern([out!, moduleRank, ...into.slice(1).map(() => 1)], 200 + i), 0.25),
          // diffusers loses the alpha of an attention layer that is not the most common one.
          alpha: module.endsWith('to_q') ? 1 : 1 + i / 2,
        },
      ];
    }),
  );
}

function scaled(t: Tensor<'float32'>, by: number): Tensor<'float32'> {
  return float32(
    t.shape,
    t.data.map((v) => v * by),
  );
}

/** A LoRA for layers of the small SDXL checkpoint of single_file.py, in its UNet and both text encoders. */
export function xlLora(): Lora {
  const weights: readonly (readonly [string, readonly [number, number]])[] = [
    ['unet.down_blocks.1.attentions.1.transformer_blocks.1.attn1.to_q', [64, 64]],
    ['unet.down_blocks.2.attentions.0.transformer_blocks.2.attn2.to_k', [64, 192]],
    ['unet.down_blocks.2.attentions.0.proj_in', [64, 64]],
    ['unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0', [64, 64]],
    ['unet.up_blocks.0.attentions.2.transformer_blocks.0.attn1.to_v', [64, 64]],
    ['unet.up_blocks.1.attentions.0.transformer_blocks.1.ff.net.2', [64, 256]],
    ['text_encoder.text_model.encoder.layers.0.self_attn.q_proj', [64, 64]],
    ['text_encoder_2.text_model.encoder.layers.1.self_attn.v_proj', [128, 128]],
  ];
  return new Map(
    weights.map(([module, [out, into]], i) => [
      module,
      { down: scaled(pattern([rank, into], 300 + i), 0.125), up: pattern([out, rank], 400 + i), alpha },
    ]),
  );
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const folder = 'test/goldens/lora';
  await mkdir(folder, { recursive: true });
  await writeLoraFiles(folder, sampleLora(), sampleDescription);
  const others = [
    ['convolutions.safetensors', kohyaContents(convolutionLora(), sampleDescription)],
    ['converted.safetensors', diffusersContents(sampleLora())],
    ['xl_kohya.safetensors', kohyaContents(xlLora(), { title: 'xl', base: 'stable-diffusion-xl-v1-base' })],
    ['xl_peft.safetensors', peftContents(xlLora())],
  ] as const;
  for (const [name, { tensors, metadata }] of others) {
    await writeSafetensorsFile(`${folder}/${name}`, tensors, metadata);
  }
}
