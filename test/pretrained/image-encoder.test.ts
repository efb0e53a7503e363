import assert from 'node:assert/strict';
import { cp, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { gradients } from '../../src/autodiff/gradient.js';
import { createNodeEngine } from '../../src/engine/node.js';
import { ModelError } from '../../src/errors.js';
import { readConfigFile } from '../../src/formats/json-config-file.js';
import { preprocess, readImagePreprocessing } from '../../src/models/image-preprocessing.js';
import { mul } from '../../src/onnx/elementwise.js';
import { Graph } from '../../src/onnx/graph.js';
import { sum } from '../../src/onnx/reduction.js';
import { openClip, openImageEncoder } from '../../src/pretrained/image-encoder.js';
import { float32, type Tensor } from '../../src/tensor/tensor.js';
import { goldenPath, goldenTensors, relativeError } from '../goldens.js';
import { temporaryFolder } from '../temporary-folder.js';

const golden = goldenTensors('encoders/encoders.safetensors');
const folderOf = (name: string): string => fileURLToPath(goldenPath(`encoders/${name}`));
const engine = createNodeEngine({ threads: 1 });
after(() => engine.close());

const names = [...new Set([...golden.keys()].map((key) => key.split('/')[0]!))];

function assertClose(actual: Tensor | undefined, expected: Tensor | undefined, what: string): void {
  assert.ok(actual && expected, what);
  const error = relativeError(actual, expected);
  assert.ok(error < 1e-4, `${what}: relative error ${error}`);
}

for (const name of names) {
  describe(name, () => {
    const sizes = [...golden.keys()].flatMap(
      (key) => new RegExp(`^${name}/(\\d+x\\d+)/pixels$`).exec(key)?.[1] ?? [],
    );
    assert.ok(sizes.length > 0);
    for (const size of sizes) {
      test(`embedding and gradient of pictures of ${size}, preparation included`, async () => {
        const given = (key: string): Tensor => golden.get(`${name}/${size}/${key}`)!;
        const encoder = await openImageEncoder(folderOf(name));
        const graph = new Graph('embedding');
        const pixels = graph.input('pixels', 'float32', given('pixels').shape);
        const embedding = encoder.embed(pixels);
        graph.output('embedding', embedding);
        const [gradient] = gradients(sum(mul(embedding, graph.constant(given('cotangent')))), [pixels]);
        graph.output('gradient', gradient!);
        const program = await engine.compile(graph);
        const results = await program.run({ pixels: given('pixels') });
        await program.release();
        assertClose(results.embedding, given('embedding'), 'embedding');
        assertClose(results.gradient, given('gradient'), 'gradient');
      });
    }

    test("pictures are prepared as by transformers' own processor, up to its rounding to bytes", async () => {
      const picture = golden.get(`${name}/picture`)!;
      const [h, w] = picture.shape as [number, number];
      const values = Float32Array.from(
        { length: 3 * h * w },
        (_, i) => Number(picture.data[(i % (h * w)) * 3 + Math.floor(i / (h * w))]) / 127.5 - 1,
      );
      const read = readImagePreprocessing(
        await readConfigFile(join(folderOf(name), 'preprocessor_config.json')),
      );
      const graph = new Graph('preprocessing');
      graph.output('prepared', preprocess(read, graph.input('pixels', 'float32', [1, 3, h, w])));
      const program = await engine.compile(graph);
      const { prepared } = await program.run({ pixels: float32([1, 3, h, w], values) });
      await program.release();
      const expected = golden.get(`${name}/processed`) as Tensor<'float32'>;
      assert.deepEqual(prepared!.shape, expected.shape);
      // Pillow rounds after each of its two passes; nothing else may differ.
      const byte = 1 / 255 / Math.min(...read.std);
      const worst = (prepared as Tensor<'float32'>).data.reduce(
        (most, v, i) => Math.max(most, Math.abs(v - expected.data[i]!) / byte),
        0,
      );
      assert.ok(worst < 1.6, `differs by ${worst} bytes`);
    });
  });
}

for (const name of names.filter((n) => n.startsWith('clip'))) {
  test(`${name}: text embeddings`, async () => {
    const clip = await openClip(folderOf(name));
    for (const [i, text] of ['a photo of sks backpack', 'a red teapot, in the snow!'].entries()) {
      assertClose(await clip.embedText(engine, text), golden.get(`${name}/text ${i}`), text);
    }
  });
}

test('what cannot be computed is refused with file, key and value', async (t) => {
  const folder = join(await temporaryFolder(t), 'vit');
  const changed = async (file: string, change: object, message: RegExp): Promise<void> => {
    await rm(folder, { recursive: true, force: true });
    await cp(folderOf('vit-tiny'), folder, { recursive: true });
    const config = JSON.parse(await readFile(join(folder, file), 'utf8')) as object;
    await writeFile(join(folder, file), JSON.stringify({ ...config, ...change }));
    await assert.rejects(openImageEncoder(folder), (error) => {
      assert.ok(error instanceof ModelError, String(error));
      assert.match(error.message, message);
      assert.match(error.message, new RegExp(file));
      return true;
    });
  };
  await changed('config.json', { model_type: 'swin' }, /"model_type" is "swin".*"vit", "dinov2", "clip"/);
  await changed('config.json', { hidden_act: 'relu' }, /"hidden_act" is "relu".*"gelu"/);
  await changed('config.json', { num_channels: 1 }, /"num_channels" is 1/);
  await changed('config.json', { rope: 10000 }, /"rope" is 10000, which is not known/);
  await changed('preprocessor_config.json', { resample: 1 }, /"resample" is 1.*2, 3/);
  await changed(
    'preprocessor_config.json',
    { image_processor_type: 'SamImageProcessor' },
    /SamImageProcessor/,
  );
  await changed('preprocessor_config.json', { size: { longest_edge: 9 } }, /"size.height" is missing/);

  await rm(join(folder, 'preprocessor_config.json'));
  await assert.rejects(openImageEncoder(folder), /has no preprocessor_config.json/);
  await assert.rejects(openImageEncoder(join(folder, 'nowhere')), /there is no such folder/);
  await assert.rejects(openImageEncoder(fileURLToPath(goldenPath('models/sd1-tiny'))), /whole pipeline/);
  await assert.rejects(openClip(folderOf('vit-tiny')), /"model_type" is "vit", which knows no text/);
});

test('weights of another encoder are refused by name', async (t) => {
  const folder = join(await temporaryFolder(t), 'mixed');
  await cp(folderOf('vit-tiny'), folder, { recursive: true });
  await cp(join(folderOf('dinov2-tiny'), 'model.safetensors'), join(folder, 'model.safetensors'));
  await assert.rejects(
    openImageEncoder(folder),
    (error) =>
      error instanceof ModelError &&
      /no tensor "encoder.layer.0.layernorm_before.weight"/.test(error.message),
  );
});
