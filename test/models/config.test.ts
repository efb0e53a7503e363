import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ModelError } from '../../src/errors.js';
import { type Config, parseConfig } from '../../src/formats/json-config.js';
import { readAutoencoderKLConfig } from '../../src/models/autoencoder-kl.js';
import { readClipTextConfig } from '../../src/models/clip-text.js';
import { readUNet2DConditionConfig, unet2DCondition } from '../../src/models/unet-2d-condition.js';
import { InputParameters, Scope } from '../../src/nn/parameters.js';
import { Graph } from '../../src/onnx/graph.js';
import { goldenJson } from '../goldens.js';

type Settings = Record<string, unknown>;

/** Reads a good configuration with some settings changed. */
const changed = (file: string, settings: Settings): Config =>
  parseConfig(JSON.stringify({ ...goldenJson<Settings>(`models/sd1-tiny/${file}`), ...settings }), file);

const readers: Record<string, (config: Config) => unknown> = {
  'unet/config.json': readUNet2DConditionConfig,
  'vae/config.json': readAutoencoderKLConfig,
  'text_encoder/config.json': readClipTextConfig,
};

const unsupported: Record<string, Settings[]> = {
  'unet/config.json': [
    { _class_name: 'UNet2DModel' },
    { act_fn: 'gelu' },
    { down_block_types: ['AttnDownBlock2D', 'DownBlock2D'] },
    { down_block_types: ['DownBlock2D'] },
    { up_block_types: ['UpBlock2D', 'ResnetUpsampleBlock2D'] },
    { mid_block_type: 'UNetMidBlock2DSimpleCrossAttn' },
    { attention_head_dim: 5 },
    { attention_head_dim: [2] },
    { norm_num_groups: 3 },
    { norm_num_groups: null },
    { addition_embed_type: 'text' },
    { projection_class_embeddings_input_dim: 2816 },
    { addition_time_embed_dim: 256 },
    { class_embed_type: 'projection' },
    { num_class_embeds: 1000 },
    { time_embedding_type: 'fourier' },
    { time_cond_proj_dim: 256 },
    { resnet_time_scale_shift: 'scale_shift' },
    { only_cross_attention: true },
    { dual_cross_attention: true },
    { encoder_hid_dim_type: 'text_proj' },
    { mid_block_scale_factor: 2 },
    { downsample_padding: 2 },
    { cross_attention_dim: [16, 32] },
    { in_channels: 0 },
    { layers_per_block: '2' },
    { something_new: 'on' },
  ],
  'vae/config.json': [
    { _class_name: 'AutoencoderTiny' },
    { act_fn: 'relu' },
    { shift_factor: 0.1 },
    { latents_mean: [0, 0, 0, 0] },
    { down_block_types: ['DownEncoderBlock2D', 'AttnDownEncoderBlock2D'] },
    { scaling_factor: 0 },
    { norm_num_groups: 3 },
    { block_out_channels: [] },
  ],
  'text_encoder/config.json': [
    { architectures: ['T5EncoderModel'] },
    { model_type: 't5' },
    { hidden_act: 'relu' },
    { num_attention_heads: 3 },
    { hidden_size: null },
    { rope_theta: 10000 },
  ],
};

for (const [file, cases] of Object.entries(unsupported)) {
  for (const settings of cases) {
    const [[key, value]] = Object.entries(settings) as [[string, unknown]];
    test(`${file} with ${key} = ${JSON.stringify(value)} is refused`, () => {
      assert.throws(
        () => readers[file]!(changed(file, settings)),
        (error) =>
          error instanceof ModelError &&
          error.message.includes(file) &&
          error.message.includes(`"${key}"`) &&
          error.message.includes(JSON.stringify(value)) &&
          /supported/i.test(error.message),
      );
    });
  }
}

test('absent keys take the defaults of the library that wrote the file', () => {
  const empty = parseConfig('{"_class_name": "UNet2DConditionModel"}', 'config.json');
  const config = readUNet2DConditionConfig(empty);
  assert.deepEqual(config.blockOutChannels, [320, 640, 1280, 1280]);
  assert.deepEqual(config.attentionHeads, [8, 8, 8, 8]);
  assert.equal(config.normGroups, 32);
  assert.equal(config.sampleSize, undefined);
  assert.equal(readClipTextConfig(parseConfig('{}', 'config.json')).activation, 'quick_gelu');
  assert.equal(readAutoencoderKLConfig(parseConfig('{}', 'config.json')).scalingFactor, 0.18215);
});

test('settings are read by their meaning', () => {
  const config = readUNet2DConditionConfig(
    changed('unet/config.json', {
      sample_size: [6, 10],
      attention_head_dim: [1, 3],
      layers_per_block: [1, 2],
    }),
  );
  assert.deepEqual(config.sampleSize, [6, 10]);
  assert.deepEqual(config.attentionHeads, [1, 3]);
  assert.deepEqual(config.layersPerBlock, [1, 2]);
});

test('a text encoder of another width than the UNet attends to is refused', () => {
  const graph = new Graph();
  const config = readUNet2DConditionConfig(changed('unet/config.json', {}));
  assert.throws(
    () =>
      unet2DCondition(new Scope(new InputParameters(graph)), config, {
        sample: graph.input('sample', 'float32', [1, 4, 8, 8]),
        timestep: graph.input('timestep', 'int64', [1]),
        encoderHiddenStates: graph.input('context', 'float32', [1, 77, 24]),
      }),
    (error) =>
      error instanceof ModelError && /24 .*hidden_size.*16 .*cross_attention_dim/.test(error.message),
  );
});
