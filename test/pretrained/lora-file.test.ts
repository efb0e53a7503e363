import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { sampleDescription, sampleLora, xlLora } from '../../scripts/goldens/lora.js';
import { ModelError } from '../../src/errors.js';
import { readSafetensorsFile } from '../../src/formats/safetensors-file.js';
import { type Lora, loraFamily, loraFromFactors } from '../../src/pretrained/lora.js';
import { kohyaFileName, peftFileName, readLoraFile, writeLoraFiles } from '../../src/pretrained/lora-file.js';
import {
  diffusersContents,
  kohyaContents,
  parseLora,
  peftContents,
} from '../../src/pretrained/lora-formats.js';
import { float32, type Tensor } from '../../src/tensor/tensor.js';
import { goldenPath } from '../goldens.js';
import { temporaryFolder } from '../temporary-folder.js';

const golden = (name: string): string => fileURLToPath(goldenPath(`lora/${name}`));
const sorted = (lora: Lora): unknown => [...lora].sort(([a], [b]) => (a < b ? -1 : 1));
const parse = (tensors: Iterable<[string, Tensor]>, metadata: [string, string][] = []): Lora =>
  parseLora({ tensors: new Map(tensors), metadata: new Map(metadata) }, 'x.safetensors');

/** The update itself, alpha / rank * up · down, by module. */
function updates(lora: Lora): Map<string, number[]> {
  return new Map(
    [...lora].map(([module, { down, up, alpha }]) => {
      const [rank, into] = down.shape as [number, number];
      const product = Array.from({ length: up.shape[0]! * into }, (_, i) => {
        let sum = 0;
        for (let r = 0; r < rank; r++)
          sum += up.data[Math.floor(i / into) * rank + r]! * down.data[r * into + (i % into)]!;
        return (alpha / rank) * sum;
      });
      return [module, product];
    }),
  );
}

test('the two files are, byte for byte, those that diffusers was seen to load exactly', async (t) => {
  const folder = await temporaryFolder(t);
  const paths = await writeLoraFiles(folder, sampleLora(), sampleDescription);
  assert.deepEqual(paths, [join(folder, peftFileName), join(folder, kohyaFileName)]);
  for (const name of [peftFileName, kohyaFileName]) {
    assert.ok((await readFile(join(folder, name))).equals(await readFile(golden(name))), name);
  }
});

test('kohya keeps factors and alpha; PEFT keeps the update', async () => {
  assert.deepEqual(sorted(await readLoraFile(golden(kohyaFileName))), sorted(sampleLora()));
  const peft = await readLoraFile(golden(peftFileName));
  assert.deepEqual(updates(peft), updates(new Map([...peft.keys()].map((k) => [k, sampleLora().get(k)!]))));
  assert.equal(peft.size, sampleLora().size);
});

test('PEFT files note the alpha that is folded in', async () => {
  const peft = await readLoraFile(golden(peftFileName));
  assert.deepEqual(new Set([...peft.values()].map((m) => m.alpha)), new Set([3]));
  const mixed: Lora = new Map([
    ['unet.a', { down, up, alpha: 1 }],
    ['unet.b', { down, up, alpha: 2 }],
  ]);
  const { tensors, metadata } = peftContents(mixed);
  assert.deepEqual(
    tensors.get('unet.a.lora_B.weight')!.data,
    up.data.map((v) => v / 2),
  );
  assert.deepEqual(parse(tensors, [...metadata]), mixed);
});

test('the file that diffusers was seen to load exactly in its own format is what we write', async () => {
  const { tensors, metadata } = diffusersContents(sampleLora());
  const file = await readSafetensorsFile(golden('converted.safetensors'));
  assert.deepEqual(new Map([...file.tensors].sort()), new Map([...tensors].sort()));
  assert.deepEqual(new Map([...file.metadata].sort()), new Map([...metadata].sort()));
  assert.deepEqual(sorted(await readLoraFile(golden('converted.safetensors'))), sorted(sampleLora()));
});

test('SDXL files, which diffusers was seen to load exactly, hold what they were made of', async () => {
  const kohya = await readSafetensorsFile(golden('xl_kohya.safetensors'));
  assert.ok(kohya.tensors.has('lora_unet_input_blocks_5_1_transformer_blocks_1_attn1_to_q.lora_down.weight'));
  assert.ok(kohya.tensors.has('lora_te2_text_model_encoder_layers_1_self_attn_v_proj.alpha'));
  assert.deepEqual(sorted(await readLoraFile(golden('xl_kohya.safetensors'))), sorted(xlLora()));
  assert.equal(loraFamily(xlLora()), 'stable-diffusion-xl-v1-base');
});

test('a file saved by diffusers, with the alphas in its header, reads as what it was made of', async () => {
  assert.deepEqual(sorted(await readLoraFile(golden('diffusers.safetensors'))), sorted(sampleLora()));
});

test('keys are literally those that the loaders look for', () => {
  const lora = sampleLora();
  const attention = 'down_blocks.0.attentions.0.transformer_blocks.0.attn1';
  const peft = peftContents(lora).tensors;
  assert.deepEqual(peft.get(`unet.${attention}.to_k.lora_A.weight`)?.shape, [2, 8]);
  assert.deepEqual(
    peft.get('text_encoder.text_model.encoder.layers.1.self_attn.k_proj.lora_B.weight')?.shape,
    [16, 2],
  );
  const kohya = kohyaContents(lora, sampleDescription).tensors;
  const unet = `lora_unet_${attention.replaceAll('.', '_')}_to_out_0`;
  assert.deepEqual(kohya.get(`${unet}.alpha`), float32([], [3]));
  assert.deepEqual(
    kohya.get('lora_te_text_model_encoder_layers_1_self_attn_q_proj.lora_up.weight')?.shape,
    [16, 2],
  );
  assert.equal(kohya.size, 3 * lora.size);
});

test('the kohya header names rank, alpha, base and picture size', async () => {
  const { metadata } = await readSafetensorsFile(golden(kohyaFileName));
  const expected = {
    ss_network_module: 'networks.lora',
    ss_network_dim: '2',
    ss_network_alpha: '3',
    ss_base_model_version: 'sd_v1',
    ss_v2: 'False',
    ss_resolution: '(64, 64)',
    ss_output_name: 'sks',
    ss_steps: '10',
    ss_learning_rate: '0.0001',
    'modelspec.sai_model_spec': '1.0.0',
    'modelspec.architecture': 'stable-diffusion-v1/lora',
    'modelspec.implementation': 'diffusers',
    'modelspec.title': 'sks',
    'modelspec.resolution': '64x64',
    'modelspec.prediction_type': 'epsilon',
    'modelspec.trigger_phrase': 'sks backpack',
  };
  assert.deepEqual(
    Object.fromEntries([...metadata].sort()),
    Object.fromEntries(Object.entries(expected).sort()),
  );
  const { metadata: second } = kohyaContents(sampleLora(), {
    title: 't',
    base: 'stable-diffusion-v2',
    prediction: 'v_prediction',
    resolution: 512,
    date: '2026-01-02T03:04:05Z',
  });
  assert.equal(second.get('modelspec.architecture'), 'stable-diffusion-v2-768-v/lora');
  assert.equal(second.get('modelspec.prediction_type'), 'v');
  assert.equal(second.get('modelspec.date'), '2026-01-02T03:04:05Z');
  assert.equal(second.get('ss_base_model_version'), 'sd_v2');
});

test('ranks and alphas that differ from layer to layer survive', () => {
  const lora: Lora = new Map([
    [
      'unet.mid_block.attentions.0.proj_in',
      { down: float32([1, 2], [1, 2]), up: float32([2, 1], [3, 4]), alpha: 0.5 },
    ],
    [
      'unet.mid_block.resnets.0.time_emb_proj',
      { down: float32([2, 1], [1, 2]), up: float32([1, 2], [3, 4]), alpha: 8 },
    ],
    [
      'unet.up_blocks.3.upsamplers.0.conv',
      { down: float32([1, 1, 1, 1], [2]), up: float32([1, 1, 1, 1], [3]), alpha: 1 },
    ],
  ]);
  const kohya = kohyaContents(lora, sampleDescription);
  assert.deepEqual(parse(kohya.tensors), lora);
  assert.deepEqual(updates(parse(peftContents(lora).tensors)), updates(lora));
  assert.equal(kohya.metadata.get('ss_network_dim'), 'Dynamic');
});

const down = float32([2, 3], [1, 2, 3, 4, 5, 6]);
const up = float32([1, 2], [7, 8]);

test('each spelling that files have used leads to the same module', () => {
  const cases: [string, string, string][] = [
    ['unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q', '.lora_A.weight', '.lora_B.weight'],
    [
      'unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q',
      '.lora_A.default.weight',
      '.lora_B.default.weight',
    ],
    ['unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q', '.lora.down.weight', '.lora.up.weight'],
    [
      'unet.mid_block.attentions.0.transformer_blocks.0.attn1',
      '.processor.to_q_lora.down.weight',
      '.processor.to_q_lora.up.weight',
    ],
    [
      'mid_block.attentions.0.transformer_blocks.0.attn1',
      '.processor.to_q_lora.down.weight',
      '.processor.to_q_lora.up.weight',
    ],
    [
      'base_model.model.mid_block.attentions.0.transformer_blocks.0.attn1.to_q',
      '.lora_A.weight',
      '.lora_B.weight',
    ],
    [
      'lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q',
      '.lora_down.weight',
      '.lora_up.weight',
    ],
  ];
  for (const [stem, a, b] of cases) {
    const lora = parse([
      [stem + a, down],
      [stem + b, up],
    ]);
    assert.deepEqual(
      [...lora.keys()],
      ['unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q'],
      stem + a,
    );
    assert.deepEqual([...lora.values()], [{ down, up, alpha: 2 }]);
  }
  const output = parse([
    ['unet.x.attn1.processor.to_out_lora.down.weight', down],
    ['unet.x.attn1.processor.to_out_lora.up.weight', up],
  ]);
  assert.deepEqual([...output.keys()], ['unet.x.attn1.to_out.0']);
  const layer = 'encoder.layers.0.self_attn.q_proj';
  for (const stem of [
    `text_encoder.text_model.${layer}`,
    `text_encoder.${layer}`,
    `lora_te_text_model_${layer.replaceAll('.', '_')}`,
    `lora_te1_${layer.replaceAll('.', '_')}`,
  ]) {
    const [a, b] = stem.startsWith('lora')
      ? ['.lora_down.weight', '.lora_up.weight']
      : ['.lora_linear_layer.down.weight', '.lora_linear_layer.up.weight'];
    const lora = parse([
      [stem + a, down],
      [stem + b, up],
      [`${stem}.alpha`, float32([], [6])],
    ]);
    assert.deepEqual([...lora], [[`text_encoder.text_model.${layer}`, { down, up, alpha: 6 }]]);
  }
});

test('training’s own names become modules', () => {
  const lora = loraFromFactors(
    new Map([
      ['unet.conv_in.weight', float32([1], [1])],
      ['unet.a.to_q.lora_A.weight', down],
      ['unet.a.to_q.lora_B.weight', up],
      ['text_encoder.encoder.layers.0.mlp.fc1.lora_B.weight', up],
      ['text_encoder.encoder.layers.0.mlp.fc1.lora_A.weight', down],
    ]),
    5,
  );
  assert.deepEqual(sorted(lora), [
    ['text_encoder.text_model.encoder.layers.0.mlp.fc1', { down, up, alpha: 5 }],
    ['unet.a.to_q', { down, up, alpha: 5 }],
  ]);
});

const bad: readonly { what: string; tensors: [string, Tensor][]; message: RegExp }[] = [
  { what: 'nothing', tensors: [], message: /holds no tensors/ },
  {
    what: 'a whole model',
    tensors: [['conv_in.weight', down]],
    message: /is not a LoRA file.*"conv_in\.weight" belongs to no module/,
  },
  {
    what: 'half a pair',
    tensors: [['unet.a.lora_A.weight', down]],
    message: /unet\.a has no up \(B\) factor/,
  },
  {
    what: 'the other half',
    tensors: [['unet.a.lora_B.weight', up]],
    message: /unet\.a has no down \(A\) factor/,
  },
  {
    what: 'ranks that differ',
    tensors: [
      ['unet.a.lora_A.weight', down],
      ['unet.a.lora_B.weight', float32([1, 3], [1, 2, 3])],
    ],
    message: /factors of unet\.a are \[2, 3\] and \[1, 3\]; expected \[rank, in\] and \[out, rank\]/,
  },
  {
    what: 'the same module twice',
    tensors: [
      ['unet.a.lora_A.weight', down],
      ['unet.a.lora.down.weight', down],
    ],
    message: /two tensors for down of unet\.a/,
  },
  {
    what: 'rank zero',
    tensors: [
      ['unet.a.lora_A.weight', float32([0, 3], [])],
      ['unet.a.lora_B.weight', float32([1, 0], [])],
    ],
    message: /factors of unet\.a are \[0, 3\]/,
  },
  {
    what: 'numbers that are none',
    tensors: [
      ['unet.a.lora_A.weight', down],
      ['unet.a.lora_B.weight', float32([1, 2], [1, Number.NaN])],
    ],
    message: /update of unet\.a has a value that is infinite or not a number/,
  },
  {
    what: 'an alpha that is none',
    tensors: [
      ['unet.a.lora_A.weight', down],
      ['unet.a.lora_B.weight', up],
      ['unet.a.alpha', float32([], [Number.POSITIVE_INFINITY])],
    ],
    message: /update of unet\.a has a value that is infinite/,
  },
  { what: 'LoKr', tensors: [['lora_unet_x.lokr_w1', down]], message: /is LoKr/ },
  { what: 'full differences', tensors: [['lora_unet_x.diff', down]], message: /full differences/ },
  {
    what: 'Flux',
    tensors: [['transformer.x.lora_A.weight', down]],
    message: /LoRA for Flux or Stable Diffusion 3.*supported: LoRA for Stable Diffusion 1, 2 and XL/,
  },
  { what: 'LoHa', tensors: [['lora_unet_x.hada_w1_a', down]], message: /is LoHa/ },
  { what: 'DoRA', tensors: [['unet.a.lora_magnitude_vector', up]], message: /is DoRA/ },
];

for (const { what, tensors, message } of bad) {
  test(`not a usable LoRA: ${what}`, () => {
    assert.throws(
      () => parse(tensors),
      (error) => {
        assert.ok(error instanceof ModelError, String(error));
        assert.match(error.message, message);
        assert.match(error.message, /^x\.safetensors/);
        return true;
      },
    );
  });
}
