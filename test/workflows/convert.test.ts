import assert from 'node:assert/strict';
import { readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import fc from 'fast-check';
import { sampleLora, xlLora } from '../../scripts/goldens/lora.js';
import { createNodeEngine } from '../../src/engine/node.js';
import { ModelError, OutputError, UsageError } from '../../src/errors.js';
import { readSafetensorsFile, writeSafetensorsFile } from '../../src/formats/safetensors-file.js';
import { Graph } from '../../src/onnx/graph.js';
import { unetFromLdm } from '../../src/pretrained/ldm-names.js';
import type { Lora } from '../../src/pretrained/lora.js';
import { readLoraFile } from '../../src/pretrained/lora-file.js';
import { peftContents } from '../../src/pretrained/lora-formats.js';
import { StableDiffusion } from '../../src/pretrained/stable-diffusion.js';
import { float32, fromFloat32, int64, type Tensor, toFloat32 } from '../../src/tensor/tensor.js';
import { convertLora, convertModel, loraFormats } from '../../src/workflows/convert.js';
import { goldenPath, goldenTensors, relativeError } from '../goldens.js';
import { namedCheckpoints, writeSmallCheckpoint } from '../pretrained/small-checkpoints.js';
import { temporaryFolder } from '../temporary-folder.js';

const engine = createNodeEngine({ threads: 2 });
after(() => engine.close());
const golden = (name: string): string => fileURLToPath(goldenPath(name));
const sorted = (lora: Lora): unknown => [...lora].sort(([a], [b]) => (a < b ? -1 : 1));

test('LoRA files go through every format and back with names, ranks and alphas', async (t) => {
  const folder = await temporaryFolder(t);
  const families = [
    [golden('lora/kohya_lora_weights.safetensors'), sampleLora()],
    [golden('lora/xl_kohya.safetensors'), xlLora()],
  ] as const;
  for (const [f, [start, lora]] of families.entries()) {
    let file: string = start;
    for (const [i, format] of [...loraFormats, 'kohya', 'peft', 'diffusers'].entries()) {
      const output = join(folder, `${f}-${i}.safetensors`);
      assert.equal(await convertLora({ lora: file, format: format as 'peft', output }), output);
      // Alphas of 3 over ranks of 2 are exact in both directions.
      assert.deepEqual(sorted(await readLoraFile(output)), sorted(lora), `${format} of ${file}`);
      file = output;
    }
    const { metadata } = await readSafetensorsFile(file);
    assert.ok(metadata.has('ss_network_dim'), 'what a kohya file said stays');
  }
});

/** The types of a file's factors, by what the ends of their keys are. */
async function factorTypes(file: string): Promise<Record<string, string[]>> {
  const types: Record<string, string[]> = {};
  for (const [key, { dtype }] of (await readSafetensorsFile(file)).tensors) {
    const part = /(A|B|up|down|alpha)(\.weight)?$/.exec(key)![1]!;
    types[part] = [...new Set([...(types[part] ?? []), dtype])].sort();
  }
  return types;
}

for (const type of ['float16', 'bfloat16'] as const) {
  test(`factors in ${type} stay so through every format, to the bit`, async (t) => {
    const folder = await temporaryFolder(t);
    const halved = (value: Tensor, i: number): Tensor =>
      // Values with all digits of the type, and too small for the type once they are scaled.
      fromFloat32(
        float32(
          value.shape,
          toFloat32(value).data.map((v, k) => (v + k / 1000) * 10 ** -(i % 6)),
        ),
        type,
      );
    const { tensors } = await readSafetensorsFile(golden('lora/kohya_lora_weights.safetensors'));
    const start = join(folder, 'start.safetensors');
    const source = new Map(
      [...tensors].map(([key, value], i) => [key, key.endsWith('.alpha') ? value : halved(value, i)]),
    );
    await writeSafetensorsFile(start, source);
    let file = start;
    for (const [i, format] of (['peft', 'diffusers', 'kohya'] as const).entries()) {
      const output = join(folder, `${i}.safetensors`);
      await convertLora({ lora: file, format, output });
      file = output;
    }
    const { tensors: found } = await readSafetensorsFile(file);
    for (const [key, value] of source) assert.deepEqual(found.get(key), value, key);

    // 3 / 2 is multiplied into B: one binary digit more than the type has.
    assert.deepEqual(await factorTypes(join(folder, '0.safetensors')), {
      A: [type],
      B: ['float32'],
    });
    assert.deepEqual(await factorTypes(join(folder, '1.safetensors')), { up: [type], down: [type] });
    const loaded = [start, join(folder, '0.safetensors')].map(async (path) =>
      sorted(await readLoraFile(path)),
    );
    const [kohya, peft] = (await Promise.all(loaded)) as [string, { up: Tensor; alpha: number }][][];
    for (const [i, [name, module]] of kohya!.entries()) {
      assert.equal(peft![i]![0], name);
      assert.equal(peft![i]![1].alpha, module.alpha);
      assert.ok(relativeError(toFloat32(peft![i]![1].up), toFloat32(module.up)) < 1e-6, name);
    }
  });
}

test('factors in a type that is asked for', async (t) => {
  const folder = await temporaryFolder(t);
  const lora = golden('lora/xl_kohya.safetensors');
  for (const [savePrecision, type] of [
    ['fp16', 'float16'],
    ['bf16', 'bfloat16'],
    ['float', 'float32'],
  ] as const) {
    const output = join(folder, `${savePrecision}.safetensors`);
    await convertLora({ lora, format: 'peft', output, savePrecision });
    assert.deepEqual(await factorTypes(output), { A: [type], B: [type] });
  }
  const huge = join(folder, 'huge.safetensors');
  const output = join(folder, 'out.safetensors');
  await writeSafetensorsFile(
    huge,
    new Map([
      ['unet.conv_in.lora_A.weight', float32([1, 2], [1, 2])],
      ['unet.conv_in.lora_B.weight', float32([2, 1], [1e5, 1])],
    ]),
  );
  await assert.rejects(
    convertLora({ lora: huge, format: 'kohya', output, savePrecision: 'fp16' }),
    (error) => {
      assert.ok(error instanceof ModelError);
      assert.match(error.message, /lora_unet_conv_in\.lora_up\.weight.*fp16 cannot hold.*float or bf16/);
      return true;
    },
  );
  await convertLora({ lora: huge, format: 'kohya', output, savePrecision: 'bf16' });
});

/** Layers of the three families, by what LoRA files can be told about them. */
const layers = (['sd1', 'sdxl'] as const).map((name) =>
  Object.entries(namedCheckpoints[name].tensors)
    .filter(([key, shape]) => /^model\.diffusion_model\..*\.weight$/.test(key) && shape.length > 1)
    .map(([key]) => `unet.${unetFromLdm(key.slice('model.diffusion_model.'.length, -'.weight'.length), 2)}`),
);

test('any LoRA survives the way from format to format', async (t) => {
  const folder = await temporaryFolder(t);
  let n = 0;
  const module = fc.record({
    rank: fc.integer({ min: 1, max: 5 }),
    alpha: fc.constantFrom(0.25, 0.5, 1, 2, 3, 16),
    seed: fc.integer(),
  });
  await fc.assert(
    fc.asyncProperty(
      fc
        .constantFrom(...layers)
        .chain((names) => fc.uniqueArray(fc.constantFrom(...names), { minLength: 1, maxLength: 8 })),
      fc.array(module, { minLength: 8, maxLength: 8 }),
      fc.constantFrom(...loraFormats),
      fc.constantFrom(...loraFormats),
      async (names, modules, first, second) => {
        const lora: Lora = new Map(
          names.map((name, i) => {
            const { rank, alpha, seed } = modules[i]!;
            const values = (count: number, by: number): number[] =>
              Array.from({ length: count }, (_, k) => (((k + 1) * by + (seed % 97)) % 64) / 64);
            return [
              name,
              {
                down: float32([rank, 3], values(3 * rank, 7)),
                up: float32([2, rank], values(2 * rank, 11)),
                alpha,
              },
            ];
          }),
        );
        const [source, middle, end] = ['a', 'b', 'c'].map((x) => join(folder, `${n++}-${x}.safetensors`)) as [
          string,
          string,
          string,
        ];
        const { tensors, metadata } = peftContents(lora);
        await writeSafetensorsFile(source, tensors, metadata);
        await convertLora({ lora: source, format: first, output: middle });
        await convertLora({ lora: middle, format: second, output: end });
        const found = await readLoraFile(end);
        assert.deepEqual([...found.keys()].sort(), [...lora.keys()].sort());
        for (const [name, { down, up, alpha }] of lora) {
          const other = found.get(name)!;
          assert.equal(other.alpha, alpha);
          assert.deepEqual(other.down, down);
          other.up.data.forEach((v, i) => {
            assert.ok(Math.abs(v - up.data[i]!) < 1e-6, name);
          });
        }
      },
    ),
    { numRuns: 40 },
  );
});

/** What a model's networks compute with fixed inputs, byte for byte comparable. */
async function outputs(path: string, name: string): Promise<Record<string, Tensor>> {
  const model = await StableDiffusion.open(path);
  const inputs = goldenTensors(`single-file/${name}.safetensors`);
  const graph = new Graph('outputs');
  const text = model.textEncoder(graph, 1).result;
  const sample = graph.input('sample', 'float32', [1, 4, 8, 8]);
  const timestep = graph.input('timestep', 'int64', [1]);
  graph.output(
    'prediction',
    model.denoiser(graph, { sample, timestep, condition: model.condition(graph, 1, text) }).result,
  );
  graph.output('mean', model.encoder(graph, graph.input('pixels', 'float32', [1, 3, 32, 32])).mean);
  graph.output('decoded', model.decoder(graph, graph.input('latents', 'float32', [1, 4, 4, 4])));
  const program = await engine.compile(graph);
  const sizes = model.sizeFeeds({ originalSize: [64, 64], cropTopLeft: [0, 0], targetSize: [64, 64] });
  const found = await program.run({
    ...model.tokenize('a photo of sks dog').tokens,
    ...sizes,
    sample: inputs.get('sample')!,
    timestep: int64([1], [321]),
    pixels: inputs.get('pixels')!,
    latents: inputs.get('latents')!,
  });
  await program.release();
  return found;
}

for (const name of ['sd1-small', 'sd2-small', 'sdxl-small'] as const) {
  test(`${name}: single file to folder and back: the same tensors, and the same outputs as the file's`, async (t) => {
    const folder = await temporaryFolder(t);
    const single = await writeSmallCheckpoint(folder, name);
    const asFolder = join(folder, 'folder');
    const again = join(folder, 'again.safetensors');
    assert.equal(await convertModel({ model: single, output: asFolder }), asFolder);
    assert.equal(await convertModel({ model: asFolder, output: again }), again);
    const [before, after] = [await readSafetensorsFile(single), await readSafetensorsFile(again)];
    for (const [key, value] of after.tensors) assert.deepEqual(value, before.tensors.get(key), key);
    const lost = [...before.tensors.keys()].filter((key) => !after.tensors.has(key));
    const idle =
      /position_ids$|logit_scale$|^betas$|^model_ema\.|^cond_stage_model\.model\.(text_projection|transformer\.resblocks\.23\.)/;
    assert.deepEqual(
      lost.filter((key) => !idle.test(key)),
      [],
    );
    const expected = await outputs(single, name);
    assert.deepEqual(await outputs(asFolder, name), expected);
    assert.deepEqual(await outputs(again, name), expected);
    if (name === 'sd2-small') {
      const scheduler = JSON.parse(
        await readFile(join(asFolder, 'scheduler', 'scheduler_config.json'), 'utf8'),
      ) as Record<string, unknown>;
      assert.equal(scheduler.prediction_type, 'v_prediction');
      assert.equal(after.metadata.get('modelspec.prediction_type'), 'v');
    }
  });
}

test('a setting that a single file cannot hold is named', async (t) => {
  const folder = await temporaryFolder(t);
  const source = join(folder, 'folder');
  await convertModel({ model: await writeSmallCheckpoint(folder, 'sd1-small'), output: source });
  const file = join(source, 'vae', 'config.json');
  const config = JSON.parse(await readFile(file, 'utf8')) as Record<string, unknown>;
  await writeFile(file, JSON.stringify({ ...config, scaling_factor: 0.5 }));
  await assert.rejects(
    convertModel({ model: source, output: join(folder, 'out.safetensors') }),
    /vae\/config\.json: scalingFactor is 0\.5; in a single file of Stable Diffusion 1 it would be read as 0\.18215.*Keep this model as a folder/,
  );
});

test('what cannot be converted is refused, and nothing is written', async (t) => {
  const folder = await temporaryFolder(t);
  const taken = join(folder, 'taken.safetensors');
  await writeFile(taken, 'mine');
  const model = golden('models/sd1-tiny');
  const lora = golden('lora/xl_peft.safetensors');
  const output = join(folder, 'out.safetensors');
  const cases: [() => Promise<string>, new (m: string) => Error, RegExp][] = [
    [
      () => convertModel({ model, output }),
      ModelError,
      /the text_encoder has 16 channels, which are no multiple of the 64 of an attention head/,
    ],
    [() => convertModel({ model, output: join(folder, 'out') }), UsageError, /has to end in \.safetensors/],
    [() => convertModel({ model, output: taken }), OutputError, /exists already/],
    [
      () => convertModel({ model: lora, output: join(folder, 'out') }),
      ModelError,
      /is a LoRA, which changes a model/,
    ],
    [() => convertModel({ model: join(folder, 'absent'), output }), ModelError, /There is no model/],
    [() => convertLora({ lora, format: 'kohya', output: taken }), OutputError, /exists already/],
    [
      () =>
        convertLora({
          lora: join(model, 'unet/diffusion_pytorch_model.safetensors'),
          format: 'kohya',
          output,
        }),
      ModelError,
      /is not a LoRA file/,
    ],
    [() => convertLora({ lora: 'x.pt', format: 'kohya', output }), ModelError, /is a pickle file/],
  ];
  for (const [attempt, kind, message] of cases) {
    await assert.rejects(attempt(), (error) => {
      assert.ok(error instanceof kind, String(error));
      assert.match((error as Error).message, message);
      return true;
    });
  }
  assert.deepEqual(await readdir(folder), ['taken.safetensors']);
  assert.equal(await readFile(taken, 'utf8'), 'mine');
});
