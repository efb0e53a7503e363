import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import path from 'node:path';
import { suite, test } from 'node:test';
import type { InferenceSession } from 'onnxruntime-node';
import { fusedAttention, tiledAttention } from '../../src/onnx/attention.js';
import { conv2d } from '../../src/onnx/conv.js';
import { add, exp, less, mul, neg, silu, where } from '../../src/onnx/elementwise.js';
import { Graph } from '../../src/onnx/graph.js';
import { matmul } from '../../src/onnx/linalg.js';
import { concat, reshape, split, transpose } from '../../src/onnx/movement.js';
import { layerNorm } from '../../src/onnx/norm.js';
import { encodeModel } from '../../src/onnx/protobuf.js';
import { sum } from '../../src/onnx/reduction.js';
import { stagesOf } from '../../src/onnx/stages.js';
import { Random } from '../../src/tensor/random.js';
import { float32 } from '../../src/tensor/tensor.js';
import { temporaryFolder } from '../temporary-folder.js';

// The library phones home unless it is told not to before it is loaded.
process.env.ORT_DISABLE_TELEMETRY = '1';
const ort = await import('onnxruntime-node');

const open = (bytes: Uint8Array, options: InferenceSession.SessionOptions = {}) =>
  ort.InferenceSession.create(bytes, { intraOpNumThreads: 1, logSeverityLevel: 4, ...options });

const runtime = (shape: number[], data: number[]) =>
  new ort.Tensor('float32', Float32Array.from(data), shape);

suite('the encoded model', () => {
  test('is loaded by the runtime under the names that were promised, with types and shapes', async () => {
    const graph = new Graph('names');
    const x = graph.input('a name with spaces/and.dots', 'float32', [2, 3]);
    const step = graph.input('step', 'int64', [1]);
    graph.input('unread', 'float32', [7]);
    graph.output('y', mul(x, 2));
    graph.output('steps', add(step, 1));
    const model = encodeModel(graph);
    assert.deepEqual(model.inputs, ['a name with spaces/and.dots', 'step']);
    const session = await open(model.bytes);
    assert.deepEqual(session.inputNames, model.inputs);
    assert.deepEqual(session.outputNames, [model.outputs.get('y'), model.outputs.get('steps')]);
    assert.deepEqual(
      session.inputMetadata.map((m) => (m.isTensor ? [m.type, m.shape] : [])),
      [
        ['float32', [2, 3]],
        ['int64', [1]],
      ],
    );
    const results = await session.run({
      [x.name]: runtime([2, 3], [1, 2, 3, 4, 5, 6]),
      step: new ort.Tensor('int64', [41n], [1]),
    });
    assert.deepEqual([...(results[model.outputs.get('y')!]!.data as Float32Array)], [2, 4, 6, 8, 10, 12]);
    assert.deepEqual([...(results[model.outputs.get('steps')!]!.data as BigInt64Array)], [42n]);
    await session.release();
  });

  test('gives one value under several names, an input and a constant among the outputs, and next states', async () => {
    const graph = new Graph('aliases');
    const x = graph.input('x', 'float32', [2]);
    const y = exp(x);
    graph.output('y', y);
    graph.output('again', y);
    graph.output('x', x);
    graph.output('constant', graph.constant(float32([2], [7, 8])));
    graph.update(x, y);
    const model = encodeModel(graph);
    const session = await open(model.bytes);
    const results = await session.run({ x: runtime([2], [0, 1]) });
    const read = (name: string | undefined) => [...(results[name!]!.data as Float32Array)];
    const expected = [1, Math.fround(Math.E)];
    assert.deepEqual(read(model.outputs.get('again')), read(model.outputs.get('y')));
    assert.ok(Math.abs(read(model.outputs.get('y'))[1]! - expected[1]!) < 1e-6);
    assert.deepEqual(read(model.outputs.get('x')), [0, 1]);
    assert.deepEqual(read(model.outputs.get('constant')), [7, 8]);
    assert.deepEqual(read(model.updates.get('x')), read(model.outputs.get('y')));
    await session.release();
  });

  test('carries every kind of attribute, left-out operands, several results and the other domain', async () => {
    const graph = new Graph('attributes');
    const x = graph.input('x', 'float32', [1, 2, 2, 2]);
    const kernel = graph.constant(float32([2, 1, 1, 1], [1, 2]), 'kernel');
    const [left, right] = split(conv2d(x, kernel, undefined, { groups: 2 }), [1, 1], 1) as [
      typeof x,
      typeof x,
    ];
    const joined = silu(concat([right, left], -1));
    graph.output('y', layerNorm(joined, undefined, undefined, 1e-5));
    graph.output('total', sum(joined));
    const model = encodeModel(graph);
    const session = await open(model.bytes);
    const results = await session.run({ x: runtime([1, 2, 2, 2], [1, 2, 3, 4, 5, 6, 7, 8]) });
    const total = (results[model.outputs.get('total')!]!.data as Float32Array)[0]!;
    const expected = [1, 2, 3, 4, 10, 12, 14, 16].reduce((n, v) => n + v / (1 + Math.exp(-v)), 0);
    assert.ok(Math.abs(total / expected - 1) < 1e-6, `${total} and not ${expected}`);
    await session.release();
  });

  test('reads external weights at the offset that it names', async (t) => {
    const folder = await temporaryFolder(t);
    const bytes = new Uint8Array(5 + 8);
    new DataView(bytes.buffer).setFloat32(5, 1.5, true);
    new DataView(bytes.buffer).setFloat32(9, -2, true);
    await writeFile(path.join(folder, 'weights'), bytes);
    const graph = new Graph('external');
    const x = graph.input('x', 'float32', [2]);
    const w = graph.external('w', 'float32', [2], { path: '/elsewhere/weights', offset: 5 });
    graph.output('y', add(x, w));
    const model = encodeModel(graph, { externalLocation: (p) => path.basename(p) });
    const session = await open(model.bytes, {
      extra: { session: { model_external_initializers_file_folder_path: folder } },
    });
    const results = await session.run({ x: runtime([2], [1, 1]) });
    assert.deepEqual([...(results[model.outputs.get('y')!]!.data as Float32Array)], [2.5, -1]);
    await session.release();
  });

  test('is the same bytes for the same graph', () => {
    const build = (): Uint8Array => {
      const graph = new Graph('twice');
      const x = graph.input('x', 'float32', [2]);
      graph.output('y', add(exp(x), 1));
      return encodeModel(graph).bytes;
    };
    assert.deepEqual(build(), build());
  });

  test('cuts into more pieces than a device can bind one by one', async () => {
    const build = (): Graph => {
      const graph = new Graph('pieces');
      const pieces = split(graph.input('x', 'float32', [2, 12]), [1, 2, 1, 3, 1, 1, 2, 1], -1);
      graph.output('fourth', pieces[3]!);
      graph.output('doubled', mul(concat([...pieces].reverse(), 1), 2));
      return graph;
    };
    const x = runtime(
      [2, 12],
      Array.from({ length: 24 }, (_, i) => i),
    );
    const results = [];
    for (const mostPieces of [8, 7]) {
      const model = encodeModel(build(), { mostPieces });
      const operators = Buffer.from(model.bytes).toString('latin1');
      assert.equal(operators.includes('Slice'), mostPieces === 7);
      assert.equal(operators.includes('Split'), mostPieces === 8);
      const session = await open(model.bytes);
      const found = await session.run({ x });
      results.push([...model.outputs.values()].map((name) => [...(found[name]!.data as Float32Array)]));
      await session.release();
    }
    assert.deepEqual(results[0]![0], [4, 5, 6, 16, 17, 18]);
    assert.deepEqual(results[1], results[0]);
  });

  test('writes fused attention as plain operators for devices that ask for it', async () => {
    const shapes = { q: [2, 6, 8], k: [2, 5, 8], v: [2, 5, 12] } as const;
    const build = (): Graph => {
      const graph = new Graph('attention');
      const [q, k, v] = Object.entries(shapes).map(([name, shape]) => graph.input(name, 'float32', shape));
      // Another one after it, so that inner names meet.
      const first = fusedAttention(q!, k!, v!, 4);
      graph.output('y', fusedAttention(first, first, first, 2));
      return graph;
    };
    const feeds = Object.fromEntries(
      Object.entries(shapes).map(([name, shape]) => {
        const { data } = new Random(3, name).normals(shape);
        return [name, new ort.Tensor('float32', data, shape)];
      }),
    );
    const results: Float32Array[] = [];
    for (const plainAttention of [false, true]) {
      const model = encodeModel(build(), { plainAttention, mostPieces: 1 });
      const operators = Buffer.from(model.bytes).toString('latin1');
      assert.equal(operators.includes('MultiHeadAttention'), !plainAttention);
      const session = await open(model.bytes);
      results.push((await session.run(feeds))['output:y']!.data as Float32Array);
      await session.release();
    }
    const apart = Math.max(...results[0]!.map((v, i) => Math.abs(v - results[1]![i]!)));
    assert.ok(apart < 1e-6, `${apart}`);
  });

  test('in stages it gives the same numbers, states and scalars too', async () => {
    const graph = new Graph('stages');
    const x = graph.input('x', 'float32', [4, 6]);
    const w = graph.constant(new Random(5, 'w').normals([6, 6]), 'w');
    const state = graph.input('state', 'float32', [4, 6]);
    const turned = transpose(w, [1, 0]);
    let y = matmul(x, w);
    const early = reshape(exp(mul(y, 0.1)), [24]);
    const size = sum(mul(y, y));
    for (let i = 0; i < 150; i++) y = mul(add(matmul(mul(y, 0.3), turned), x), 0.5);
    // A view, a scalar and a mask of the first stage, read in the last.
    y = add(y, mul(reshape(early, [4, 6]), size));
    y = where(less(reshape(early, [4, 6]), 1), y, neg(y));
    graph.output('y', y);
    graph.output('size', size);
    graph.update(state, add(state, y));
    const { stages } = stagesOf(graph, graph.liveNodes());
    assert.ok(stages.length > 1, `${stages.length}`);
    const feeds = Object.fromEntries(
      [x, state].map(({ name }) => {
        const { data } = new Random(3, name).normals([4, 6]);
        return [name, new ort.Tensor('float32', data, [4, 6])];
      }),
    );
    const results: unknown[] = [];
    for (const staged of [false, true]) {
      const model = encodeModel(graph, { stages: staged });
      assert.equal(Buffer.from(model.bytes).toString('latin1').includes('then_branch'), staged);
      const session = await open(model.bytes);
      const found = await session.run(feeds);
      results.push(
        Object.entries(found).map(([name, { dims, data }]) => [name, dims, [...(data as Float32Array)]]),
      );
      await session.release();
    }
    assert.deepEqual(results[1], results[0]);
  });

  test('tiles of plain attention are all of the attention, whatever their size', async () => {
    const graph = new Graph('tiles');
    const [q, k, v] = ['q', 'k', 'v'].map((name) => graph.input(name, 'float32', [1, 6, 8]));
    for (const tile of [1, 6, 18, 36, 72, 1000]) {
      graph.output(`${tile}`, tiledAttention(q!, k!, v!, 4, tile));
    }
    graph.output('fused', fusedAttention(q!, k!, v!, 4));
    const session = await open(encodeModel(graph).bytes);
    const feed = (name: string) =>
      new ort.Tensor('float32', new Random(4, name).normals([1, 6, 8]).data, [1, 6, 8]);
    const found = await session.run({ q: feed('q'), k: feed('k'), v: feed('v') });
    const fused = found['output:fused']!.data as Float32Array;
    for (const [name, { data }] of Object.entries(found)) {
      const apart = Math.max(...fused.map((value, i) => Math.abs(value - (data as Float32Array)[i]!)));
      assert.ok(apart < 1e-6, `${name}: ${apart}`);
    }
    await session.release();
  });
});
