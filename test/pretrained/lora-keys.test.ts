import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { ModelFamily } from '../../src/pretrained/architectures.js';
import { unetFromLdm } from '../../src/pretrained/ldm-names.js';
import type { Lora } from '../../src/pretrained/lora.js';
import { kohyaContents, parseLora } from '../../src/pretrained/lora-formats.js';
import { kohyaKey, readLoraKey } from '../../src/pretrained/lora-keys.js';
import { float32 } from '../../src/tensor/tensor.js';
import { namedCheckpoints } from './small-checkpoints.js';

const UNET = 'model.diffusion_model.';
const families = [
  ['sd1', 'stable-diffusion-v1'],
  ['sd2', 'stable-diffusion-v2'],
  ['sdxl', 'stable-diffusion-xl-v1-base'],
] as const satisfies readonly (readonly [keyof typeof namedCheckpoints, ModelFamily])[];

/** The linear layers and convolutions of a full-sized model's UNet, under their original names. */
function originalLayers(name: (typeof families)[number][0]): string[] {
  return Object.entries(namedCheckpoints[name].tensors)
    .filter(([key, shape]) => key.startsWith(UNET) && key.endsWith('.weight') && shape.length > 1)
    .map(([key]) => key.slice(UNET.length, -'.weight'.length));
}

const clipLayers = [
  'mlp.fc1',
  'mlp.fc2',
  'self_attn.k_proj',
  'self_attn.q_proj',
  'self_attn.v_proj',
  'self_attn.out_proj',
];

/** The text encoders' layers, by component. */
function textLayers(name: (typeof families)[number][0]): string[] {
  return Object.entries(namedCheckpoints[name].configs)
    .filter(([component]) => component.startsWith('text_encoder'))
    .flatMap(([component, config]) =>
      Array.from({ length: config.num_hidden_layers as number }, (_, i) =>
        clipLayers.map((layer) => `${component}.text_model.encoder.layers.${i}.${layer}`),
      ).flat(),
    );
}

/**
 * The keys that ComfyUI's comfy/lora.py looks for, as facts: `model_lora_keys_unet` maps `lora_unet_` and a weight's path with underscores, the path being either
 * the original one or diffusers'; `model_lora_keys_clip` maps six layers of each block of the text encoders, named `lora_te_` in models with one encoder and
 * `lora_te1_` and `lora_te2_` in SDXL; `load_lora` takes `.lora_up.weight`, `.lora_down.weight` and `.alpha` of each.
 */
function comfyKeys(name: (typeof families)[number][0]): Set<string> {
  const keys = new Set<string>();
  const add = (prefix: string, path: string): void => {
    for (const part of ['lora_up.weight', 'lora_down.weight', 'alpha'])
      keys.add(`${prefix}${path.replaceAll('.', '_')}.${part}`);
  };
  for (const layer of originalLayers(name)) {
    add('lora_unet_', layer);
    add('lora_unet_', unetFromLdm(layer, 2)!);
  }
  for (const module of textLayers(name)) {
    const second = module.startsWith('text_encoder_2.');
    const prefix = name === 'sdxl' ? (second ? 'lora_te2_' : 'lora_te1_') : 'lora_te_';
    add(prefix, module.slice(module.indexOf('.') + 1));
  }
  return keys;
}

for (const [name, family] of families) {
  test(`${name}: ComfyUI finds every key that we write, whatever layer of the model is updated`, () => {
    const modules = [...originalLayers(name).map((l) => `unet.${unetFromLdm(l, 2)}`), ...textLayers(name)];
    assert.ok(modules.length > 250);
    const factor = { down: float32([1, 1], [1]), up: float32([1, 1], [2]), alpha: 3 };
    const lora: Lora = new Map(modules.map((module) => [module, factor]));
    const { tensors, metadata } = kohyaContents(lora, { title: 't', base: family });
    const known = comfyKeys(name);
    assert.deepEqual(
      [...tensors.keys()].filter((key) => !known.has(key)),
      [],
    );
    assert.equal(tensors.size, 3 * modules.length);
    // And we read them back as the same modules.
    assert.deepEqual(parseLora({ tensors, metadata }, 'x'), lora);
  });
}

test("kohya's SDXL keys, in both namings of the blocks, are the same layers", () => {
  const cases: [string, string][] = [
    [
      'lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q',
      'unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q',
    ],
    ['lora_unet_middle_block_1_proj_in', 'unet.mid_block.attentions.0.proj_in'],
    [
      'lora_unet_output_blocks_5_1_transformer_blocks_1_ff_net_0_proj',
      'unet.up_blocks.1.attentions.2.transformer_blocks.1.ff.net.0.proj',
    ],
    ['lora_unet_output_blocks_2_2_conv', 'unet.up_blocks.0.upsamplers.0.conv'],
    ['lora_unet_input_blocks_3_0_op', 'unet.down_blocks.0.downsamplers.0.conv'],
    ['lora_unet_input_blocks_1_0_emb_layers_1', 'unet.down_blocks.0.resnets.0.time_emb_proj'],
    ['lora_unet_middle_block_2_in_layers_2', 'unet.mid_block.resnets.1.conv1'],
    ['lora_unet_output_blocks_0_0_skip_connection', 'unet.up_blocks.0.resnets.0.conv_shortcut'],
    ['lora_unet_time_embed_2', 'unet.time_embedding.linear_2'],
    ['lora_unet_label_emb_0_2', 'unet.add_embedding.linear_2'],
    ['lora_unet_out_2', 'unet.conv_out'],
    ['lora_te1_text_model_encoder_layers_3_mlp_fc1', 'text_encoder.text_model.encoder.layers.3.mlp.fc1'],
    [
      'lora_te2_text_model_encoder_layers_31_self_attn_out_proj',
      'text_encoder_2.text_model.encoder.layers.31.self_attn.out_proj',
    ],
    ['lora_te2_text_projection', 'text_encoder_2.text_projection'],
  ];
  for (const [key, module] of cases) {
    assert.deepEqual(readLoraKey(`${key}.alpha`), { module, part: 'alpha' }, key);
    assert.equal(kohyaKey(module, 'stable-diffusion-xl-v1-base'), key);
    const { module: again } = readLoraKey(`${kohyaKey(module, 'stable-diffusion-v1')}.lora_up.weight`)!;
    if (!module.startsWith('text_encoder.')) assert.equal(again, module);
  }
});

test('keys of no known spelling, or of no layer that a UNet has, are nothing', () => {
  for (const key of ['conv_in.weight', 'lora_unet_input_blocks_3_1_op.alpha']) {
    assert.equal(readLoraKey(key), undefined, key);
  }
});
