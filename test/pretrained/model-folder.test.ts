import assert from 'node:assert/strict';
import { cp, mkdir, readFile, rename, rm, truncate, writeFile } from 'node:fs/promises';
import { basename, isAbsolute, join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { ModelError } from '../../src/errors.js';
import { encodeSafetensors } from '../../src/formats/safetensors.js';
import { readSafetensorsFile, writeSafetensorsFile } from '../../src/formats/safetensors-file.js';
import { Graph } from '../../src/onnx/graph.js';
import { openModelFolder } from '../../src/pretrained/model-folder.js';
import { assertFiniteWeights, openWeights, readWeight, weightSource } from '../../src/pretrained/weights.js';
import { float32, int64, type Tensor, tensor } from '../../src/tensor/tensor.js';
import { goldenPath } from '../goldens.js';
import { temporaryFolder } from '../temporary-folder.js';

const single = fileURLToPath(goldenPath('models/sd1-tiny'));
const sharded = fileURLToPath(goldenPath('models/sd2-tiny-sharded'));
const unetFile = 'unet/diffusion_pytorch_model.safetensors';
const zeros = { kind: 'zeros' } as const;

async function copy(t: TestContext, model = single): Promise<string> {
  const folder = join(await temporaryFolder(t), 'model');
  await cp(model, folder, { recursive: true });
  return folder;
}

/** Edits a JSON file in place. */
async function edit(path: string, change: (value: Record<string, unknown>) => void): Promise<void> {
  const value = JSON.parse(await readFile(path, 'utf8')) as Record<string, unknown>;
  change(value);
  await writeFile(path, JSON.stringify(value));
}

const indexName = 'diffusion_pytorch_model.safetensors.index.json';

/** The names of the shards of the sharded checkpoint's UNet. */
async function shards(model: string): Promise<string[]> {
  const index = JSON.parse(await readFile(join(model, 'unet', indexName), 'utf8')) as {
    weight_map: Record<string, string>;
  };
  return [...new Set(Object.values(index.weight_map))].sort();
}

test('a folder as diffusers saves it: components, classes, configurations', async () => {
  const model = await openModelFolder(single);
  assert.equal(model.pipeline, 'StableDiffusionPipeline');
  assert.ok(isAbsolute(model.path));
  assert.deepEqual(Object.keys(model.components).sort(), [
    'scheduler',
    'text_encoder',
    'tokenizer',
    'unet',
    'vae',
  ]);
  assert.equal(model.components.unet.className, 'UNet2DConditionModel');
  assert.deepEqual(model.components.unet.config.integers('block_out_channels'), [8, 12]);
  assert.equal(model.components.vae.config.file, join(single, 'vae', 'config.json'));
});

test('one file, and shards: every tensor is found in its file, with its bytes', async () => {
  const one = await openWeights((await openModelFolder(single)).components.unet);
  const all = await readSafetensorsFile(join(single, unetFile));
  assert.deepEqual([...one.weights.keys()].sort(), [...all.tensors.keys()].sort());
  for (const [name, t] of all.tensors) assert.deepEqual(await readWeight(one, name), t);

  const many = await openWeights((await openModelFolder(sharded)).components.unet);
  const used = new Set([...many.weights.values()].map((w) => basename(w.file.path)));
  const expected = await shards(sharded);
  assert.ok(expected.length > 1);
  assert.deepEqual([...used].sort(), expected);
  for (const shard of expected) {
    for (const [name, t] of (await readSafetensorsFile(join(sharded, 'unet', shard))).tensors) {
      assert.deepEqual(await readWeight(many, name), t);
    }
  }
});

test('half precision is taken where it is all there is, or where it is preferred', async (t) => {
  const folder = await copy(t);
  const half = join(folder, 'unet', 'diffusion_pytorch_model.fp16.safetensors');
  await cp(join(folder, unetFile), half);
  const fileOf = async (variant?: 'full' | 'fp16'): Promise<string> => {
    const { weights } = await openWeights((await openModelFolder(folder)).components.unet, variant);
    return basename([...weights.values()][0]!.file.path);
  };
  assert.equal(await fileOf(), 'diffusion_pytorch_model.safetensors');
  assert.equal(await fileOf('fp16'), 'diffusion_pytorch_model.fp16.safetensors');
  await rm(join(folder, unetFile));
  assert.equal(await fileOf(), 'diffusion_pytorch_model.fp16.safetensors');
});

test('the index of a half-precision variant is found in both of its spellings', async (t) => {
  for (const name of [
    'diffusion_pytorch_model.fp16.safetensors.index.json',
    'diffusion_pytorch_model.safetensors.index.fp16.json',
  ]) {
    const folder = await copy(t, sharded);
    await rename(join(folder, 'unet', indexName), join(folder, 'unet', name));
    const { weights } = await openWeights((await openModelFolder(folder)).components.unet);
    assert.ok(weights.size > 10);
  }
});

const badFolders: readonly { what: string; break: (folder: string) => Promise<unknown>; message: RegExp }[] =
  [
    {
      what: 'nothing there',
      break: (f) => rm(f, { recursive: true }),
      message: /^There is no model at .*\. Expected a diffusers model folder/,
    },
    {
      what: 'a single file',
      break: async (f) => {
        await rm(f, { recursive: true });
        await writeFile(f, '');
      },
      message: /is not a folder\. Expected a diffusers model folder/,
    },
    {
      what: 'no model_index.json',
      break: (f) => rm(join(f, 'model_index.json')),
      message: /it has no model_index\.json\. It holds scheduler, text_encoder/,
    },
    {
      what: 'an empty folder',
      break: async (f) => {
        await rm(f, { recursive: true });
        await mkdir(f);
      },
      message: /The folder is empty/,
    },
    {
      what: 'model_index.json cut short',
      break: (f) => truncate(join(f, 'model_index.json'), 20),
      message: /model_index\.json is not valid JSON/,
    },
    {
      what: 'another pipeline',
      break: (f) =>
        edit(join(f, 'model_index.json'), (v) => {
          v._class_name = 'FluxPipeline';
        }),
      message:
        /model_index\.json: the setting "_class_name" is "FluxPipeline".*supported: "StableDiffusionPipeline"/,
    },
    {
      what: 'another model class',
      break: (f) =>
        edit(join(f, 'model_index.json'), (v) => {
          v.vae = ['diffusers', 'AutoencoderTiny'];
        }),
      message: /"vae" is \["diffusers","AutoencoderTiny"\].*supported: the class AutoencoderKL/,
    },
    {
      what: 'a component set to null',
      break: (f) =>
        edit(join(f, 'model_index.json'), (v) => {
          v.vae = [null, null];
        }),
      message: /"vae" is \[null,null\]/,
    },
    {
      what: 'a component not named',
      break: (f) =>
        edit(join(f, 'model_index.json'), (v) => {
          delete v.unet;
        }),
      message: /"unet" is missing/,
    },
    {
      what: 'a component without its folder',
      break: (f) => rm(join(f, 'vae'), { recursive: true }),
      message: /has no folder vae, which model_index\.json promises/,
    },
    {
      what: 'a component without its config',
      break: (f) => rm(join(f, 'unet/config.json')),
      message: /unet has no config\.json/,
    },
  ];

for (const { what, break: breakIt, message } of badFolders) {
  test(`not a usable model: ${what}`, async (t) => {
    const folder = await copy(t);
    await breakIt(folder);
    await assert.rejects(openModelFolder(folder), (error) => {
      assert.ok(error instanceof ModelError, String(error));
      assert.match(error.message, message);
      return true;
    });
  });
}

test('a component in place of the model is told apart', async () => {
  await assert.rejects(
    openModelFolder(join(single, 'unet')),
    /It is one component, UNet2DConditionModel, of a model; give the folder above it/,
  );
  await assert.rejects(openModelFolder(join(single, 'text_encoder')), /one component, CLIPTextModel/);
});

const badWeights: readonly {
  what: string;
  model?: string;
  break: (unet: string, shards: string[]) => Promise<unknown>;
  message: RegExp;
}[] = [
  {
    what: 'none',
    break: (u) => rm(join(u, 'diffusion_pytorch_model.safetensors')),
    message: /has no diffusion_pytorch_model\.safetensors or .*fp16.*It holds no weights/,
  },
  {
    what: 'only a pickle',
    break: (u) =>
      rename(join(u, 'diffusion_pytorch_model.safetensors'), join(u, 'diffusion_pytorch_model.bin')),
    message:
      /has only diffusion_pytorch_model\.bin: such files can run code.*Get diffusion_pytorch_model\.safetensors or diffusion_pytorch_model\.fp16\.safetensors.*put it in unet\//,
  },
  {
    what: 'another name',
    break: (u) => rename(join(u, 'diffusion_pytorch_model.safetensors'), join(u, 'other.safetensors')),
    message: /It holds other\.safetensors/,
  },
  {
    what: 'a file cut short',
    break: (u) => truncate(join(u, 'diffusion_pytorch_model.safetensors'), 50_000),
    message: /diffusion_pytorch_model\.safetensors.*cut short/,
  },
  {
    what: 'a missing shard',
    model: sharded,
    break: (u, [first]) => rm(join(u, first!)),
    message: /index\.json names the shard "diffusion_pytorch_model-00001.*", which is not in/,
  },
  {
    what: 'a shard cut short',
    model: sharded,
    break: (u, [, second]) => truncate(join(u, second!), 4000),
    message: /-00002-.*cut short/,
  },
  {
    what: "shards in each other's place",
    model: sharded,
    break: (u, [first, second]) => cp(join(u, first!), join(u, second!)),
    message: /looks for tensor ".*" in .*-00002-.*which does not have it/,
  },
  {
    what: 'an index that leaves the folder',
    model: sharded,
    break: (u) =>
      edit(join(u, indexName), (v) => {
        v.weight_map = { 'conv_in.weight': '../../secret.safetensors' };
      }),
    message: /names the shard "\.\.\/\.\.\/secret\.safetensors", which is not in/,
  },
  {
    what: 'an index without its map',
    model: sharded,
    break: (u) =>
      edit(join(u, indexName), (v) => {
        delete v.weight_map;
      }),
    message: /has no "weight_map"/,
  },
];

for (const { what, model = single, break: breakIt, message } of badWeights) {
  test(`unusable weights: ${what}`, async (t) => {
    const folder = await copy(t, model);
    await breakIt(join(folder, 'unet'), model === sharded ? await shards(folder) : []);
    const { components } = await openModelFolder(folder);
    await assert.rejects(openWeights(components.unet), (error) => {
      assert.ok(error instanceof ModelError, String(error));
      assert.match(error.message, message);
      return true;
    });
  });
}

test('NaN weights are found, in whichever shard', async (t) => {
  const folder = await copy(t, sharded);
  const { components } = await openModelFolder(folder);
  await assertFiniteWeights(await openWeights(components.unet));
  const shard = join(folder, 'unet', (await shards(folder))[1]!);
  const { tensors } = await readSafetensorsFile(shard);
  const name = [...tensors.keys()].sort()[3]!;
  const bad = tensors.get(name)!;
  bad.data[1] = Number.NaN;
  await writeSafetensorsFile(shard, tensors);
  await assert.rejects(assertFiniteWeights(await openWeights(components.unet)), (error) => {
    assert.ok(error instanceof ModelError);
    assert.ok(error.message.includes(shard) && error.message.includes(JSON.stringify(name)), error.message);
    assert.match(error.message, /element 1\./);
    return true;
  });
});

/** A UNet folder that holds just these tensors. */
async function weightsOf(t: TestContext, tensors: Record<string, Tensor>): ReturnType<typeof openWeights> {
  const folder = await copy(t);
  await writeFile(join(folder, unetFile), Buffer.concat(encodeSafetensors(new Map(Object.entries(tensors)))));
  return openWeights((await openModelFolder(folder)).components.unet);
}

test('parameters are initializers that point into the file; halves are cast; a second asking gives the same value', async (t) => {
  const set = await weightsOf(t, {
    full: float32([2, 3], [1, 2, 3, 4, 5, 6]),
    half: tensor('float16', [2], Uint16Array.of(0x3c00, 0x4000)),
    brain: tensor('bfloat16', [1], Uint16Array.of(0x3f80)),
  });
  const graph = new Graph();
  const source = weightSource(graph, set);
  const full = source.parameter('full', [2, 3], zeros);
  assert.equal(full.dtype, 'float32');
  assert.ok(full.origin.kind === 'external' && isAbsolute(full.origin.location.path));
  const bytes = await readFile(full.origin.location.path);
  assert.equal(bytes.readFloatLE(full.origin.location.offset + 8), 3);
  for (const name of ['half', 'brain']) {
    const value = source.parameter(name, name === 'half' ? [2] : [1], zeros);
    assert.equal(value.dtype, 'float32');
    assert.equal(value.producer?.operator, 'Cast');
    assert.equal(value.producer?.inputs[0]?.origin.kind, 'external');
  }
  assert.equal(source.parameter('full', [2, 3], zeros), full);
  assert.equal(graph.initializers.length, 3);
  assert.equal(source.has('full'), true);
  assert.equal(source.has('other'), false);
});

test('a parameter that the file does not have as asked names file, tensor and both shapes', async (t) => {
  const set = await weightsOf(t, { w: float32([2, 3], [1, 2, 3, 4, 5, 6]), ids: int64([1], [0]) });
  const source = weightSource(new Graph(), set);
  const cases: [string, number[], RegExp][] = [
    [
      'w',
      [3, 2],
      /diffusion_pytorch_model\.safetensors: tensor "w" is \[2, 3\]; expected \[3, 2\]\..*not of the same model/,
    ],
    ['w', [2, 3, 1], /is \[2, 3\]; expected \[2, 3, 1\]/],
    ['v', [1], /diffusion_pytorch_model\.safetensors: there is no tensor "v", which .*config\.json asks for/],
    ['ids', [1], /tensor "ids" is of type int64; expected float32, float16 or bfloat16/],
  ];
  for (const [path, shape, message] of cases) {
    assert.throws(
      () => source.parameter(path, shape, zeros),
      (error) => {
        assert.ok(error instanceof ModelError);
        assert.match(error.message, message);
        return true;
      },
    );
  }
});

test('tensors that nobody asked for are listed, buffers of positions are not', async (t) => {
  const set = await weightsOf(t, {
    b: float32([1], [1]),
    a: float32([1], [1]),
    used: float32([1], [1]),
    'embeddings.position_ids': int64([1, 2], [0, 1]),
    position_ids: int64([1], [0]),
    'x.not_position_ids': float32([1], [1]),
  });
  const source = weightSource(new Graph(), set);
  source.parameter('used', [1], zeros);
  assert.deepEqual(source.unused(), ['a', 'b', 'x.not_position_ids']);
});
