import assert from 'node:assert/strict';
import { copyFile, readFile, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { gradients } from '../../src/autodiff/gradient.js';
import { createNodeEngine } from '../../src/engine/node.js';
import { ModelError } from '../../src/errors.js';
import { mul } from '../../src/onnx/elementwise.js';
import { Graph } from '../../src/onnx/graph.js';
import { reshape } from '../../src/onnx/movement.js';
import { sum } from '../../src/onnx/reduction.js';
import { openOnnxModel } from '../../src/pretrained/onnx-model.js';
import { goldenPath, goldenTensors, relativeError } from '../goldens.js';
import { temporaryFolder } from '../temporary-folder.js';

const golden = goldenTensors('onnx/onnx.safetensors');
const fileOf = (name: string): string => fileURLToPath(goldenPath(`onnx/${name}.onnx`));
const engine = createNodeEngine({ threads: 1 });
after(() => engine.close());

for (const name of new Set([...golden.keys()].map((key) => key.split('/')[0]!))) {
  test(`${name}: output and gradient against PyTorch`, async () => {
    const [pixels, output, cotangent, gradient] = ['pixels', 'output', 'cotangent', 'gradient'].map(
      (key) => golden.get(`${name}/${key}`)!,
    ) as [never, never, never, never];
    const { shape } = golden.get(`${name}/pixels`)!;
    const width = golden.get(`${name}/output`)!.shape[1]!;
    const gives = width === 1 ? 'number' : 'embedding';
    const model = await openOnnxModel(fileOf(name), { gives, resolution: shape[2]! });
    const graph = new Graph(name);
    const x = graph.input('pixels', 'float32', shape);
    const y = width === 1 ? reshape(model.score(x), [-1, 1]) : model.embed(x);
    graph.output('output', y);
    graph.output('gradient', gradients(sum(mul(y, graph.constant(cotangent))), [x])[0]!);
    const program = await engine.compile(graph);
    const results = await program.run({ pixels });
    await program.release();
    const errors = [relativeError(results.output!, output), relativeError(results.gradient!, gradient)];
    assert.ok(errors[0]! < 1e-5, `output: relative error ${errors[0]}`);
    assert.ok(errors[1]! < 1e-4, `gradient: relative error ${errors[1]}`);
  });
}

async function refused(path: string, ...messages: RegExp[]): Promise<void> {
  await assert.rejects(openOnnxModel(path, { gives: 'number', resolution: 16 }), (error) => {
    assert.ok(error instanceof ModelError, String(error));
    for (const message of messages) assert.match(error.message, message);
    return true;
  });
}

test('all that cannot be taken over is named at once', () =>
  refused(
    fileOf('unsupported'),
    /operators that are not supported: NonMaxSuppression, Det \(2 times\)/,
    /MaxPool \(wide\): dilations is \[2,2\]; supported: \[1,1\]/,
    /Floor \(steps\): it has no gradient/,
  ));

test('a model without a gradient, or of no use for pictures, is refused with the reason', async () => {
  await refused(fileOf('steps'), /no gradient goes through Sign/);
  await refused(fileOf('class'), /no gradient reaches the picture/);
  await refused(fileOf('two-inputs'), /expected one input.*it has 2: x: float32\[N, 3, 8, 8\], z/);
  await refused(fileOf('batch-of-four'), /exactly 4 pictures at once.*dynamic_axes/);
  await refused(fileOf('old'), /the operator set is 9; supported: 11 to 21/);
  await refused(
    fileOf('vit-17'),
    /expected one number for each picture.*float32\[1, 12\].*embedding:vit-17\.onnx/,
  );
  await assert.rejects(
    openOnnxModel(fileOf('convolutional-17'), { gives: 'embedding', resolution: 16 }),
    /expected an embedding for each picture/,
  );
  await refused(fileOf('nowhere'), /cannot be read/);
});

test('damaged files are refused, whatever is damaged', async (t) => {
  const folder = await temporaryFolder(t);
  const whole = await readFile(fileOf('convolutional-17'));
  const path = join(folder, 'damaged.onnx');
  await writeFile(path, 'a text and no model at all');
  await refused(path, /damaged\.onnx is not/);
  await writeFile(path, '');
  await refused(path, /is not an ONNX model/);
  for (let length = 1; length < whole.length; length += 97) {
    await writeFile(path, whole.subarray(0, length));
    await refused(path, /damaged\.onnx/);
  }
  // Every 50th byte in turn is another: whatever comes of it, it is told as an error of the file or the model still runs.
  for (let at = 0; at < whole.length; at += 50) {
    const changed = Uint8Array.from(whole);
    changed[at] = changed[at]! ^ 0x55;
    await writeFile(path, changed);
    await openOnnxModel(path, { gives: 'number', resolution: 16 }).catch((error: unknown) => {
      assert.ok(error instanceof ModelError, `byte ${at}: ${error instanceof Error ? error.stack : error}`);
    });
  }
});

test('weights beside the file have to be whole, and beside it', async (t) => {
  const folder = await temporaryFolder(t);
  const path = join(folder, 'external-17.onnx');
  await copyFile(fileOf('external-17'), path);
  await refused(path, /lies in external-17\.bin, which is not there/);
  const weights = join(folder, 'external-17.bin');
  await copyFile(fileURLToPath(goldenPath('onnx/external-17.bin')), weights);
  await openOnnxModel(path, { gives: 'number', resolution: 16 });
  await truncate(weights, 40);
  await refused(path, /has 40 bytes where \d+ are needed/);
  const bytes = await readFile(path);
  await writeFile(
    path,
    Buffer.from(bytes.toString('latin1').replaceAll('external-17.bin', '../ternal-1.bin'), 'latin1'),
  );
  await refused(path, /outside the model's folder/);
});
