import assert from 'node:assert/strict';
import { test } from 'node:test';
import { estimateGraphMemory, heldBytes } from '../../src/engine/graph-memory.js';
import { add, cast, exp, mul } from '../../src/onnx/elementwise.js';
import { Graph, type Value } from '../../src/onnx/graph.js';
import { matmul } from '../../src/onnx/linalg.js';
import { reshape, transpose } from '../../src/onnx/movement.js';
import { sum } from '../../src/onnx/reduction.js';
import { zeros } from '../../src/tensor/tensor.js';

/** Bytes of a 16 x 16 matrix of floats. */
const UNIT = 16 * 16 * 4;

/** The peak of a graph of square matrices with one input, in matrices. */
function peakOf(build: (x: Value) => Value, side = 16): number {
  const graph = new Graph();
  graph.output('y', build(graph.input('x', 'float32', [side, side])));
  return heldBytes(graph, graph.liveNodes()) / (4 * side * side);
}

test('a value lives from its computation to its last use', () => {
  // x; x, a; x, a, b: then a is gone.
  assert.equal(
    peakOf((x) => transpose(transpose(transpose(x, [1, 0]), [1, 0]), [1, 0])),
    3,
  );
  // a is needed at the end and lives through the whole chain.
  assert.equal(
    peakOf((x) => {
      const a = transpose(x, [1, 0]);
      return matmul(a, transpose(transpose(a, [1, 0]), [1, 0]));
    }),
    4,
  );
});

test('the place of a value is kept for the next one of its shape', () => {
  // Two square ones, then two of another shape; those of the first shape are held although nobody needs them any more.
  assert.equal(
    peakOf((x) => {
      const other = reshape(transpose(transpose(x, [1, 0]), [1, 0]), [8, 32]);
      return transpose(transpose(transpose(other, [1, 0]), [1, 0]), [1, 0]);
    }),
    5,
  );
});

test('a large place is held until the next one of its shape takes it, and given back where none will', () => {
  const turned = (v: Value): Value => transpose(v, [1, 0]);
  const side = 4096; // 64 MiB
  assert.equal(
    peakOf((x) => turned(turned(turned(reshape(turned(turned(x)), [side / 2, 2 * side])))), side),
    3,
  );
  assert.equal(
    peakOf((x) => {
      const other = turned(reshape(turned(turned(x)), [side / 2, 2 * side]));
      return turned(turned(reshape(other, [side, side])));
    }, side),
    4,
    'two square places are there again at the end, and one of another shape beside them',
  );
});

test('elementwise results take the place of operands that nobody else needs, and views none', () => {
  assert.equal(
    peakOf((x) => exp(exp(exp(transpose(x, [1, 0]))))),
    2,
  );
  assert.equal(
    peakOf((x) => {
      const a = transpose(x, [1, 0]);
      return mul(exp(a), a);
    }),
    3,
    'what is needed again is not written over',
  );
  assert.equal(
    peakOf((x) => reshape(reshape(transpose(x, [1, 0]), [256]), [16, 16])),
    2,
  );
  assert.equal(
    peakOf((x) => {
      const a = transpose(x, [1, 0]);
      return add(exp(reshape(a, [16, 16])), a);
    }),
    3,
    'nor is what a view of it is needed for',
  );
  assert.equal(
    peakOf((x) => exp(x)),
    2,
    'what is fed stays',
  );
});

test('weights count once for each product that packs them, also those that are computed', () => {
  const weightsOf = (build: (x: Value, w: Value) => Value): number => {
    const graph = new Graph();
    const w = graph.external('w', 'float32', [16, 16], { path: 'w.safetensors', offset: 0 });
    graph.output('y', build(graph.input('x', 'float32', [16, 16]), w));
    return estimateGraphMemory(graph).weights / UNIT;
  };
  assert.equal(
    weightsOf((x, w) => matmul(x, w)),
    1,
  );
  assert.equal(
    weightsOf((x, w) => matmul(matmul(x, w), w)),
    2,
  );
  assert.equal(
    weightsOf((x, w) => matmul(x, transpose(w, [1, 0]))),
    1,
  );
  assert.equal(
    weightsOf((x, w) => add(x, w)),
    0,
    'it stays mapped from its file',
  );
});

test('a weight that is kept as stored counts once, however many products read it', () => {
  const graph = new Graph();
  const x = graph.input('x', 'float32', [16, 16]);
  const w = graph.external('w', 'float32', [16, 16], { path: 'weights', offset: 0 });
  graph.output('y', matmul(matmul(x, w), transpose(w, [1, 0])));
  const packed = estimateGraphMemory(graph);
  assert.equal(packed.weights / UNIT, 2, 'packed, and turned and packed again');
  assert.equal(packed.compiling / UNIT, 1, 'what is turned is there until it is packed');
  graph.keepAsStored(w);
  assert.equal(estimateGraphMemory(graph).weights / UNIT, 1);
  assert.equal(estimateGraphMemory(graph).compiling, 0);
});

test('a large graph that is planned in stages holds what one of them needs beside what is handed on', () => {
  const activations = (staged: boolean, side: number): number => {
    const graph = new Graph();
    const x = graph.input('x', 'float32', [16, 1]);
    // Each part holds two values of shapes of its own, for 800 nodes.
    const part = (width: number): Value => {
      let wide = mul(x, graph.constant(zeros([1, width])));
      for (let i = 0; i < 400; i++) wide = transpose(transpose(wide, [1, 0]), [1, 0]);
      return sum(wide, [1]);
    };
    graph.output('y', Array.from({ length: 20 }, (_, i) => part(side + i)).reduce(add));
    if (staged) graph.planInStages();
    return estimateGraphMemory(graph).activations;
  };
  const side = 2 ** 18;
  const wide = 16 * side * 4; // 16 MiB
  const [whole, staged] = [activations(false, side) / wide, activations(true, side) / wide];
  assert.equal(Math.round(whole), 40, 'two of each shape');
  assert.equal(
    Math.round(staged),
    5,
    'where a stage ends one part and begins another: one handed on, two of each',
  );
  assert.equal(activations(true, 16), activations(false, 16), 'small ones are planned whole');
});

test('halves count as the floats that they become, twice while compiling', () => {
  const graph = new Graph();
  const w = graph.external('w', 'float16', [16, 16], { path: 'weights', offset: 0 });
  graph.output('y', matmul(graph.input('x', 'float32', [16, 16]), cast(w, 'float32')));
  const { weights, compiling } = estimateGraphMemory(graph);
  assert.deepEqual([weights / UNIT, compiling / UNIT], [1, 1]);
});

test('state is what the graph updates', () => {
  const graph = new Graph();
  const moment = graph.input('moment', 'float32', [16, 16]);
  graph.update(moment, add(moment, graph.constant(zeros([16, 16]))));
  assert.equal(estimateGraphMemory(graph).state, UNIT);
});
