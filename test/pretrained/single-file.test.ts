import assert from 'node:assert/strict';
import { rename, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { createNodeEngine } from '../../src/engine/node.js';
import { ModelError } from '../../src/errors.js';
import {
  openSafetensors,
  readSafetensorsFile,
  writeSafetensorsFile,
} from '../../src/formats/safetensors-file.js';
import { Graph, type Value } from '../../src/onnx/graph.js';
import { unetFromLdm, unetToLdm, vaeFromLdm, vaeToLdm } from '../../src/pretrained/ldm-names.js';
import { openSingleFile, readSingleFile } from '../../src/pretrained/single-file.js';
import { StableDiffusion } from '../../src/pretrained/stable-diffusion.js';
import { weightShape } from '../../src/pretrained/weight.js';
import { float32, int64, type Tensor, tensor } from '../../src/tensor/tensor.js';
import { goldenTensors, relativeError } from '../goldens.js';
import { temporaryFolder } from '../temporary-folder.js';
import { namedCheckpoints, writeSmallCheckpoint } from './small-checkpoints.js';

const engine = createNodeEngine({ threads: 2 });
after(() => engine.close());

for (const name of ['sd1-small', 'sd2-small', 'sdxl-small'] as const) {
  test(`${name}: text, denoiser and autoencoder compute what diffusers computes with the same file`, async (t) => {
    const path = await writeSmallCheckpoint(await temporaryFolder(t), name);
    const golden = goldenTensors(`single-file/${name}.safetensors`);
    const get = (key: string): Tensor => golden.get(key)!;
    const model = await StableDiffusion.open(path);
    const { tokens } = model.tokenize('a photo of sks dog');
    // Up to the end token; what pads the rest differs between the text encoders, and none of it is seen by what is before.
    const length = 7;
    for (const ids of Object.values(tokens))
      assert.deepEqual(ids.data.slice(0, length), (get('tokens').data as BigInt64Array).slice(0, length));
    const joined = ['hidden.0', ...(golden.has('hidden.1') ? ['hidden.1'] : [])].map(
      get,
    ) as Tensor<'float32'>[];
    const sizes = { originalSize: [64, 64], cropTopLeft: [0, 0], targetSize: [64, 64] } as const;
    const feeds: Record<string, Tensor> = {
      ...Object.fromEntries(Object.keys(tokens).map((input) => [input, get('tokens')])),
      sample: get('sample'),
      timestep: int64([1], [321]),
      condition: joinedFeatures(joined),
      ...(golden.has('pooled') && { pooled: get('pooled') }),
      ...model.sizeFeeds(sizes),
      pixels: get('pixels'),
      latents: get('latents'),
    };
    const graph = new Graph('test');
    const input = (key: string): Value => graph.input(key, feeds[key]!.dtype, feeds[key]!.shape);
    const text = model.textEncoder(graph, 1).result;
    graph.output('hidden', text.condition);
    if (text.pooled) graph.output('summary', text.pooled);
    const [sample, timestep] = [input('sample'), input('timestep')];
    const condition = model.condition(graph, 1);
    graph.output('prediction', model.denoiser(graph, { sample, timestep, condition }).result);
    graph.output('mean', model.encoder(graph, input('pixels')).mean);
    graph.output('decoded', model.decoder(graph, input('latents')));
    const program = await engine.compile(graph);
    const results = await program.run(feeds);
    await program.release();
    const expected: Record<string, Tensor> = {
      hidden: feeds.condition!,
      ...(text.pooled && { summary: get('pooled') }),
      prediction: get('prediction'),
      mean: get('mean'),
      decoded: get('decoded'),
    };
    assert.deepEqual(Object.keys(results).sort(), Object.keys(expected).sort());
    for (const [key, tensor] of Object.entries(expected)) {
      const error = relativeError(results[key]!, tensor);
      assert.ok(error < 1e-5, `${key}: relative error ${error}`);
    }
  });
}

/** [1, T, A] and [1, T, B] to [1, T, A + B]. */
function joinedFeatures(parts: readonly Tensor<'float32'>[]): Tensor<'float32'> {
  const length = parts[0]!.shape[1]!;
  const rows = Array.from({ length }, (_, i) =>
    parts.flatMap(({ shape, data }) => [...data.subarray(i * shape[2]!, (i + 1) * shape[2]!)]),
  );
  return float32([1, length, rows[0]!.length], rows.flat());
}

/** A file with the names and shapes of a full-sized checkpoint, whose tensors are a hole in the disk. */
async function hollowCheckpoint(folder: string, name: 'sd1' | 'sd2' | 'sdxl'): Promise<string> {
  let position = 0;
  const header = Object.fromEntries(
    Object.entries(namedCheckpoints[name].tensors).map(([key, shape]) => {
      const start = position;
      position += 2 * shape.reduce((n, d) => n * d, 1);
      return [key, { dtype: 'F16', shape, data_offsets: [start, position] }];
    }),
  );
  const json = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  const path = join(folder, `${name}.safetensors`);
  await writeFile(path, Buffer.concat([length, json]));
  await truncate(path, 8 + json.length + position);
  return path;
}

/** What the configurations of the published models say of each component; the rest has diffusers' defaults. */
const watched = {
  unet: [
    'in_channels',
    'out_channels',
    'sample_size',
    'block_out_channels',
    'layers_per_block',
    'down_block_types',
    'up_block_types',
    'attention_head_dim',
    'cross_attention_dim',
    'use_linear_projection',
    'norm_num_groups',
    'norm_eps',
    'flip_sin_to_cos',
    'freq_shift',
    'addition_embed_type',
    'addition_time_embed_dim',
    'projection_class_embeddings_input_dim',
    'transformer_layers_per_block',
  ],
  vae: [
    'in_channels',
    'out_channels',
    'latent_channels',
    'block_out_channels',
    'layers_per_block',
    'norm_num_groups',
    'scaling_factor',
    'sample_size',
  ],
  text_encoder: [
    'vocab_size',
    'hidden_size',
    'intermediate_size',
    'num_hidden_layers',
    'num_attention_heads',
    'hidden_act',
    'max_position_embeddings',
    'projection_dim',
    'layer_norm_eps',
    'eos_token_id',
  ],
} as const;

for (const [name, family] of [
  ['sd1', 'stable-diffusion-v1'],
  ['sd2', 'stable-diffusion-v2'],
  ['sdxl', 'stable-diffusion-xl-v1-base'],
] as const) {
  test(`full-sized ${name}: the configurations follow from names and shapes`, async (t) => {
    const path = await hollowCheckpoint(await temporaryFolder(t), name);
    const found = await readSingleFile(path, name === 'sd2' ? 'v_prediction' : undefined);
    assert.equal(found.family, family);
    const { configs } = namedCheckpoints[name];
    assert.deepEqual(Object.keys(configs), Object.keys(found.weights));
    for (const [component, expected] of Object.entries(configs)) {
      const ours = found.configurations[component as 'unet'] as Record<string, unknown>;
      const keys = watched[component.replace('_2', '') as 'unet'] as readonly string[];
      for (const key of keys) {
        assert.deepEqual(ours[key] ?? null, expected[key] ?? null, `${component} ${key}`);
      }
    }
    assert.deepEqual(
      found.configurations.model_index._class_name,
      name === 'sdxl' ? 'StableDiffusionXLPipeline' : 'StableDiffusionPipeline',
    );
  });
}

test('the parameters of a file lie where they are in the file, also where one tensor holds three', async (t) => {
  const path = await writeSmallCheckpoint(await temporaryFolder(t), 'sd2-small');
  const { weights } = await readSingleFile(path);
  const file = await openSafetensors(path);
  const whole = file.entries.get('cond_stage_model.model.transformer.resblocks.3.attn.in_proj_weight')!;
  ['q_proj', 'k_proj', 'v_proj'].forEach((projection, i) => {
    const part = weights.text_encoder.get(`text_model.encoder.layers.3.self_attn.${projection}.weight`)!;
    assert.deepEqual(part.entry.shape, [64, 64]);
    assert.equal(part.entry.offset, whole.offset + i * 64 * 64 * 2);
  });
  const projection = weights.vae.get('encoder.mid_block.attentions.0.to_q.weight')!;
  assert.deepEqual(projection.entry.shape, [64, 64]);
  assert.equal(
    projection.entry.offset,
    file.entries.get('first_stage_model.encoder.mid.attn_1.q.weight')!.offset,
  );
  assert.equal(
    [...weights.text_encoder.keys()].some((name) => name.includes('.layers.23.')),
    false,
  );
});

test("SDXL's second text encoder keeps the projection, whose transpose the file holds", async (t) => {
  const { weights } = await readSingleFile(
    await writeSmallCheckpoint(await temporaryFolder(t), 'sdxl-small'),
  );
  const projection = weights.text_encoder_2!.get('text_projection.weight')!;
  assert.equal(projection.transposed, true);
  assert.deepEqual(projection.entry.shape, [128, 64]);
  assert.deepEqual(weightShape(projection), [64, 128]);
});

test('names go to the single file and back', () => {
  for (const [name, layout] of [
    ['sd1', { layers: 2, attends: [true, true, true, false] }],
    ['sdxl', { layers: 2, attends: [false, true, true] }],
  ] as const) {
    const names = Object.keys(namedCheckpoints[name].tensors);
    for (const full of names) {
      const unet = full.startsWith('model.diffusion_model.')
        ? full.slice('model.diffusion_model.'.length)
        : undefined;
      if (unet !== undefined) assert.equal(unetToLdm(unetFromLdm(unet, 2)!, layout), unet);
      const vae = full.startsWith('first_stage_model.') ? full.slice('first_stage_model.'.length) : undefined;
      if (vae !== undefined) assert.equal(vaeToLdm(vaeFromLdm(vae, 4), 4), vae);
    }
  }
});

const tagged = (key: string, value: string): { metadata: Map<string, string> } => ({
  metadata: new Map([[key, value]]),
});
const bias = 'model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias';

test('what the denoiser predicts: told, written in the file, or by the rule for Stable Diffusion 2', async (t) => {
  const folder = await temporaryFolder(t);
  const kind = async (
    ...args: Parameters<typeof writeSmallCheckpoint> extends [string, ...infer R] ? R : never
  ): Promise<string> => (await readSingleFile(await writeSmallCheckpoint(folder, ...args))).prediction;
  const flat = new Map([[bias, float32([64], new Float32Array(64).fill(0.5))]]);
  const marked = new Map<string, Tensor>([['v_pred', tensor('uint8', [0], new Uint8Array(0))]]);
  assert.equal(await kind('sd1-small'), 'epsilon');
  assert.equal(await kind('sd1-small', { more: marked }), 'v_prediction');
  assert.equal(await kind('sd1-small', tagged('modelspec.prediction_type', 'v')), 'v_prediction');
  // The pattern's biases deviate by about 0.14.
  assert.equal(await kind('sd2-small'), 'v_prediction');
  assert.equal(await kind('sd2-small', { more: flat }), 'epsilon');
  assert.equal(await kind('sd2-small', tagged('modelspec.prediction_type', 'epsilon')), 'epsilon');
  const path = await writeSmallCheckpoint(folder, 'sd2-small');
  assert.equal((await readSingleFile(path, 'epsilon')).prediction, 'epsilon');
  const model = await StableDiffusion.open(path, { predictionType: 'epsilon' });
  assert.equal(model.scheduler.schedule.predictionType, 'epsilon');
  const terminal = new Map([...marked, ['ztsnr', marked.get('v_pred')!]]);
  const { scheduler } = (
    await readSingleFile(await writeSmallCheckpoint(folder, 'sd1-small', { more: terminal }))
  ).configurations;
  assert.equal(scheduler.rescale_betas_zero_snr, true);
});

const some: Tensor = float32([2, 2], [1, 2, 3, 4]);

const others: readonly { what: string; tensors: Record<string, Tensor>; message: RegExp }[] = [
  {
    what: 'a LoRA',
    tensors: { 'lora_unet_x.lora_up.weight': some },
    message: /is a LoRA, which changes a model.*--lora/,
  },
  { what: 'a LoRA of PEFT', tensors: { 'unet.x.lora_A.weight': some }, message: /is a LoRA/ },
  {
    what: 'a VAE',
    tensors: { 'first_stage_model.encoder.conv_in.weight': some },
    message: /is an autoencoder \(VAE\) alone/,
  },
  {
    what: "a VAE of diffusers'",
    tensors: { 'decoder.mid_block.resnets.0.norm1.weight': some },
    message: /autoencoder \(VAE\) alone/,
  },
  {
    what: 'a UNet of diffusers',
    tensors: { 'down_blocks.0.resnets.0.conv1.weight': some },
    message: /is a UNet alone.*give the folder/,
  },
  {
    what: 'a text encoder',
    tensors: { 'text_model.encoder.layers.0.mlp.fc1.weight': some },
    message: /is a text encoder alone/,
  },
  {
    what: 'a ControlNet',
    tensors: { 'control_model.input_hint_block.0.weight': some },
    message: /is a ControlNet/,
  },
  {
    what: 'Flux',
    tensors: { 'model.diffusion_model.double_blocks.0.img_mod.lin.weight': some },
    message: /is a Flux model/,
  },
  { what: 'an embedding', tensors: { emb_params: some }, message: /is a learned embedding/ },
  { what: 'anything', tensors: { x: some }, message: /no checkpoint of Stable Diffusion.*"x"/ },
  { what: 'nothing', tensors: {}, message: /holds no tensors/ },
  {
    what: 'a UNet alone',
    tensors: { 'model.diffusion_model.input_blocks.0.0.weight': some },
    message: /lacks the autoencoder \(first_stage_model\.\*\) and the text encoder/,
  },
];

for (const { what, tensors, message } of others) {
  test(`no checkpoint: ${what}`, async (t) => {
    const path = join(await temporaryFolder(t), 'x.safetensors');
    await writeSafetensorsFile(path, new Map(Object.entries(tensors)));
    await assert.rejects(StableDiffusion.open(path), (error) => {
      assert.ok(error instanceof ModelError, String(error));
      assert.match(error.message, message);
      return true;
    });
  });
}

test('checkpoints that are damaged, or of another kind, are refused by name', async (t) => {
  const folder = await temporaryFolder(t);
  const refused = async (path: string, message: RegExp): Promise<void> => {
    await assert.rejects(StableDiffusion.open(path), (error) => {
      assert.ok(error instanceof ModelError, String(error));
      assert.match(error.message, message);
      return true;
    });
  };
  const pickle = join(folder, 'v1-5.ckpt');
  await writeFile(pickle, 'PK\u0003\u0004 a zip');
  await refused(pickle, /is a pickle file.*Get the same as a \.safetensors file/);
  await rename(pickle, join(folder, 'v1-5.safetensors'));
  await refused(join(folder, 'v1-5.safetensors'), /probably a PyTorch pickle under another name/);

  const whole = await writeSmallCheckpoint(folder, 'sd1-small');
  const { tensors } = await readSafetensorsFile(whole);
  const changed = async (change: (tensors: Map<string, Tensor>) => void): Promise<string> => {
    const path = join(folder, 'changed.safetensors');
    const copy = new Map(tensors);
    change(copy);
    await writeSafetensorsFile(path, copy);
    return path;
  };
  const without = (key: string) => changed((copy) => copy.delete(key));
  await refused(
    await without('model.diffusion_model.input_blocks.1.0.emb_layers.1.weight'),
    /no tensor "down_blocks\.0\.resnets\.0\.time_emb_proj\.weight" of the unet, in diffusers' words/,
  );
  await refused(
    await without('first_stage_model.decoder.conv_out.weight'),
    /the vae has no tensor that diffusers calls "decoder\.conv_out\.weight"/,
  );
  await refused(
    await changed((copy) => copy.set('model.diffusion_model.adapter.weight', some)),
    /"model\.diffusion_model\.adapter\.weight" belongs to no layer/,
  );
  await refused(
    await changed((copy) =>
      copy.set(
        'model.diffusion_model.input_blocks.0.0.weight',
        float32([32, 9, 3, 3], new Float32Array(32 * 81)),
      ),
    ),
    /in-painting.*takes 9 channels, its autoencoder gives 4/,
  );
  await refused(
    await changed((copy) =>
      copy.set(
        'cond_stage_model.transformer.text_model.final_layer_norm.weight',
        float32([64], new Float32Array(64).fill(Number.NaN)),
      ),
    ),
    /"cond_stage_model\.transformer\.text_model\.final_layer_norm\.weight" has a value that is infinite or not a number/,
  );
  await refused(await changed((copy) => copy.set('edm_mean', some)), /EDM noise schedule/);
  await truncate(whole, 5_000_000);
  await refused(whole, /cut short/);
});

test('an fp8 file says which one to get', async (t) => {
  const path = join(await temporaryFolder(t), 'fp8.safetensors');
  const header = Buffer.from(
    '{"model.diffusion_model.out.2.weight":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}',
  );
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  await writeFile(path, Buffer.concat([length, header, Buffer.alloc(4)]));
  await assert.rejects(StableDiffusion.open(path), /F8_E4M3.*Get the F16 or F32 version of the file/);
});

test('SDXL is recognised, with its two text encoders and tokenizers', async (t) => {
  const model = await openSingleFile(await writeSmallCheckpoint(await temporaryFolder(t), 'sdxl-small'));
  assert.equal(model.pipeline, 'StableDiffusionXLPipeline');
  assert.deepEqual(Object.keys(model.components).sort(), [
    'scheduler',
    'text_encoder',
    'text_encoder_2',
    'tokenizer',
    'tokenizer_2',
    'unet',
    'vae',
  ]);
});
