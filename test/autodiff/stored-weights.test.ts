import assert from 'node:assert/strict';
import path from 'node:path';
import { suite, test } from 'node:test';
import { gradients } from '../../src/autodiff/gradient.js';
import { createNodeEngine } from '../../src/engine/node.js';
import { openSafetensors, writeSafetensorsFile } from '../../src/formats/safetensors-file.js';
import { conv2d as convolutionLayer } from '../../src/nn/conv2d.js';
import { Scope } from '../../src/nn/parameters.js';
import { conv2d } from '../../src/onnx/conv.js';
import { mul } from '../../src/onnx/elementwise.js';
import { Graph, type Value } from '../../src/onnx/graph.js';
import { gemm } from '../../src/onnx/linalg.js';
import { sum } from '../../src/onnx/reduction.js';
import { keepSharedWeights } from '../../src/onnx/shared-weights.js';
import { Random } from '../../src/tensor/random.js';
import type { Shape, Tensor } from '../../src/tensor/tensor.js';
import { relativeError } from '../goldens.js';
import { temporaryFolder } from '../temporary-folder.js';

const SIDE = 4;
/** 4.7 million weights for 16 places. */
const CHANNELS = 720;
const random = new Random(5, 'stored weights');

/** A weight that lies in a file, as a checkpoint's does. */
async function stored(
  graph: Graph,
  shape: Shape,
  folder: string,
): Promise<{ value: Value; data: Float32Array }> {
  const file = path.join(folder, 'weights.safetensors');
  const tensor = random.derive('weight').normals([...shape]);
  await writeSafetensorsFile(file, new Map([['w', tensor]]));
  const { offset } = (await openSafetensors(file)).entries.get('w')!;
  return { value: graph.external('w', 'float32', shape, { path: file, offset }), data: tensor.data };
}

async function run(graph: Graph, feeds: Record<string, Tensor>): Promise<Record<string, Tensor>> {
  const engine = createNodeEngine({ threads: 1 });
  try {
    return await (await engine.compile(graph)).run(feeds);
  } finally {
    await engine.close();
  }
}

const operators = (graph: Graph): string[] => graph.liveNodes().map((n) => n.operator);

suite('weights that are kept as they are stored', () => {
  test('a kernel of many weights for few places: the gradient by its definition, and no flipped copy', async (t) => {
    const graph = new Graph('convolution');
    const shape = [1, CHANNELS, SIDE, SIDE];
    const x = graph.input('x', 'float32', shape);
    const { value: w, data } = await stored(graph, [CHANNELS, CHANNELS, 3, 3], await temporaryFolder(t));
    const upstream = graph.input('upstream', 'float32', shape);
    const y = conv2d(x, w, undefined, { padding: 1 });
    const [dx] = gradients(sum(mul(y, upstream)), [x]);
    graph.output('y', y);
    graph.output('dx', dx!);
    assert.deepEqual([...graph.stored], [w]);
    assert.deepEqual(
      operators(graph).filter((op) => op.startsWith('Conv')),
      ['Conv', 'ConvTranspose'],
    );
    const feeds = { x: random.derive('x').normals(shape), upstream: random.derive('up').normals(shape) };
    const results = await run(graph, feeds);
    // Correlation with the kernel forwards, with its mirror image backwards, in double precision.
    const at = (v: Float32Array, c: number, i: number, j: number): number =>
      i < 0 || j < 0 || i >= SIDE || j >= SIDE ? 0 : v[(c * SIDE + i) * SIDE + j]!;
    const correlation = (from: Float32Array, own: number, i: number, j: number, back: boolean): number => {
      let total = 0;
      for (let other = 0; other < CHANNELS; other++) {
        const [o, c] = back ? [other, own] : [own, other];
        for (let k = 0; k < 9; k++) {
          const [di, dj] = [Math.floor(k / 3) - 1, (k % 3) - 1];
          const value = back ? at(from, other, i - di, j - dj) : at(from, other, i + di, j + dj);
          total += value * data[(o * CHANNELS + c) * 9 + k]!;
        }
      }
      return total;
    };
    const size = Math.sqrt(9 * CHANNELS);
    for (const [c, i, j] of [
      [0, 0, 0],
      [17, 1, 2],
      [400, 3, 0],
      [719, 3, 3],
      [333, 2, 1],
    ] as const) {
      const place = (c * SIDE + i) * SIDE + j;
      const forth = correlation(feeds.x.data, c, i, j, false);
      assert.ok(Math.abs((results.y!.data[place] as number) - forth) < 1e-5 * size);
      const back = correlation(feeds.upstream.data, c, i, j, true);
      assert.ok(Math.abs((results.dx!.data[place] as number) - back) < 1e-5 * size);
    }
  });

  test('a kernel that is used at many places gets its flipped copy', async (t) => {
    const graph = new Graph('convolution');
    const x = graph.input('x', 'float32', [1, CHANNELS, 32, 32]);
    const { value: w } = await stored(graph, [CHANNELS, CHANNELS, 3, 3], await temporaryFolder(t));
    const [dx] = gradients(sum(conv2d(x, w, undefined, { padding: 1 })), [x]);
    graph.output('dx', dx!);
    assert.equal(graph.stored.size, 0);
    assert.ok(!operators(graph).includes('ConvTranspose'));
  });

  test('a matrix that is read forwards and back is kept, the same product as from a packed copy, and one that is read once is not', async (t) => {
    const folder = await temporaryFolder(t);
    const graph = new Graph('product');
    const x = graph.input('x', 'float32', [4, 640]);
    const { value: w, data } = await stored(graph, [640, 640], folder);
    const y = gemm(x, w, { transB: true });
    graph.output('y', y);
    keepSharedWeights(graph);
    assert.equal(graph.stored.size, 0);
    const upstream = graph.input('upstream', 'float32', [4, 640]);
    const [dx] = gradients(sum(mul(y, upstream)), [x]);
    graph.output('dx', dx!);
    keepSharedWeights(graph);
    assert.deepEqual([...graph.stored], [w]);
    const feeds = {
      x: random.derive('rows').normals([4, 640]),
      upstream: random.derive('rows up').normals([4, 640]),
    };
    const results = await run(graph, feeds);
    for (const [row, column] of [
      [0, 0],
      [1, 639],
      [3, 321],
    ] as const) {
      let [forth, back] = [0, 0];
      for (let i = 0; i < 640; i++) {
        forth += feeds.x.data[row * 640 + i]! * data[column * 640 + i]!;
        back += feeds.upstream.data[row * 640 + i]! * data[i * 640 + column]!;
      }
      assert.ok(Math.abs((results.y!.data[row * 640 + column] as number) - forth) < 1e-5 * 640);
      assert.ok(Math.abs((results.dx!.data[row * 640 + column] as number) - back) < 1e-5 * 640);
    }
  });

  test('a large kernel of one pixel is a matrix, of which no second copy is made: as the convolution, forwards and back', async (t) => {
    const shape = [2, 1024, 2, 3];
    const file = await temporaryFolder(t);
    const graph = new Graph('pointwise');
    const { value: w } = await stored(graph, [1024, 1024, 1, 1], file);
    const x = graph.input('x', 'float32', shape);
    const upstream = graph.input('upstream', 'float32', shape);
    const bias = graph.constant(random.derive('bias').normals([1024]), 'bias');
    const scope = new Scope({ parameter: (name) => (name === 'weight' ? w : bias) });
    const plain = conv2d(x, w, bias);
    const matrix = convolutionLayer(scope, x, { in: 1024, out: 1024, kernel: 1 });
    for (const [name, y] of Object.entries({ plain, matrix })) {
      graph.output(name, y);
      graph.output(`${name} back`, gradients(sum(mul(y, upstream)), [x])[0]!);
    }
    assert.equal(operators(graph).filter((op) => op === 'FusedMatMul').length, 1);
    const results = await run(graph, {
      x: random.derive('image').normals(shape),
      upstream: random.derive('image up').normals(shape),
    });
    for (const part of ['', ' back']) {
      const error = relativeError(results[`matrix${part}`]!, results[`plain${part}`]!);
      assert.ok(error < 1e-5, `${part} ${error}`);
    }
  });

  test('what is frozen is found in a graph of any depth', () => {
    const graph = new Graph('deep');
    let [moving, fixed] = [graph.input('x', 'float32', [1]), graph.constant(random.normals([1]))];
    const fixedStart = fixed;
    for (let i = 0; i < 30_000; i++) [moving, fixed] = [mul(moving, fixedStart), mul(fixed, fixedStart)];
    assert.equal(moving.graph.isFrozen(moving), false);
    assert.equal(fixed.graph.isFrozen(fixed), true);
  });

  test('a weight that is asked for again is the same value', async (t) => {
    const graph = new Graph('twice');
    const { value: w } = await stored(graph, [2, 2], await temporaryFolder(t));
    assert.equal(w.origin.kind, 'external');
    if (w.origin.kind === 'external')
      assert.equal(graph.external('again', 'float32', [2, 2], w.origin.location), w);
  });
});
