// Writes the two LoRA files that lora.py loads into diffusers. Run after a build: node dist/scripts/goldens/lora.js
import { mkdir } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import type { Lora } from '../../src/pretrained/lora.js';
import { writeLoraFiles } from '../../src/pretrained/lora-file.js';
import { float32, type Tensor } from '../../src/tensor/tensor.js';

const rank = 2;
const alpha = 3;

/** Multiples of 1/64 between -1 and 1, other ones for each seed: the same on every platform, and exact in every format. */
function pattern(shape: [number, number], seed: number): Tensor<'float32'> {
  return float32(
    shape,
    Array.from({ length: shape[0] * shape[1] }, (_, i) => (((i * 37 + seed * 101) % 129) - 64) / 64),
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

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await mkdir('test/goldens/lora', { recursive: true });
  await writeLoraFiles('test/goldens/lora', sampleLora(), sampleDescription);
}
