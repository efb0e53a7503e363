import assert from 'node:assert/strict';
import { after, before, suite, test } from 'node:test';
import fc from 'fast-check';
import { gradients } from '../../src/autodiff/gradient.js';
import { recompute } from '../../src/autodiff/recompute.js';
import type { Engine, Program } from '../../src/engine/engine.js';
import { createNodeEngine } from '../../src/engine/node.js';
import { averagePool2d, conv2d, convTranspose2d, resizeNearest } from '../../src/onnx/conv.js';
import {
  add,
  broadcastShapes,
  cos,
  div,
  erf,
  exp,
  gelu,
  log,
  mul,
  neg,
  pow,
  quickGelu,
  reciprocal,
  sigmoid,
  silu,
  sin,
  sqrt,
  square,
  sub,
  tanh,
  where,
} from '../../src/onnx/elementwise.js';
import { Graph, type Value } from '../../src/onnx/graph.js';
import { gemm, matmul } from '../../src/onnx/linalg.js';
import {
  concat,
  expand,
  flip,
  gather,
  matrixTranspose,
  pad,
  reshape,
  slice,
  split,
  transpose,
  unsqueeze,
} from '../../src/onnx/movement.js';
import { attention, groupNorm, layerNorm, softmax } from '../../src/onnx/norm.js';
import { mean, sum } from '../../src/onnx/reduction.js';
import { Random } from '../../src/tensor/random.js';
import { float32, int64, type Shape, type Tensor, tensor } from '../../src/tensor/tensor.js';
import { relativeError } from '../goldens.js';

/** A step of a random graph: an operation on two earlier values, and a number for its own choices (axis, permutation, …). */
interface Step {
  readonly operation: keyof typeof operations;
  readonly left: number;
  readonly right: number;
  readonly choice: number;
}

const lastAxis = (x: Value): number => x.rank - 1;
const asMatrix = (x: Value): Value => reshape(x, [-1, x.shape.at(-1) ?? 1]);
const asImage = (x: Value): Value => reshape(x, [1, 1, -1, x.shape.at(-1) ?? 1]);
const asVector = (x: Value): Value => reshape(x, [-1]);
/** At least 1, so that logarithms, roots and quotients are smooth. */
const aboveOne = (x: Value): Value => add(square(x), 1);
const weight = (g: Graph, shape: Shape, choice: number): Value =>
  g.constant(new Random(choice, 'weight').normals(shape), 'weight');

/** Two values that broadcast against each other: the second is averaged to a scalar where they do not. */
function compatible(x: Value, y: Value): [Value, Value] {
  try {
    broadcastShapes(x.shape, y.shape);
    return [x, y];
  } catch {
    return [x, mean(y)];
  }
}

/** Smooth operations that take values of any shape. Products are damped, so that chains of them stay of moderate size. */
const operations = {
  add: (x, y) => add(...compatible(x, y)),
  sub: (x, y) => sub(...compatible(x, y)),
  mul: (x, y) => mul(mul(...compatible(x, y)), 0.5),
  square: (x) => mul(mul(x, x), 0.5),
  div: (x, y) => div(...compatible(x, aboveOne(y))),
  pow: (x, y) => pow(...compatible(aboveOne(sin(x)), tanh(y))),
  neg: (x) => neg(x),
  exp: (x) => exp(sin(x)),
  log: (x) => log(aboveOne(x)),
  sqrt: (x) => sqrt(aboveOne(x)),
  reciprocal: (x) => reciprocal(aboveOne(x)),
  sigmoid: (x) => sigmoid(x),
  tanh: (x) => tanh(x),
  erf: (x) => erf(x),
  sin: (x) => sin(x),
  cos: (x) => cos(x),
  gelu: (x) => gelu(x),
  silu: (x) => silu(x),
  quickGelu: (x) => quickGelu(x),
  where: (x, y, choice) => {
    const [a, b] = compatible(x, y);
    const shape = broadcastShapes(a.shape, b.shape);
    const size = shape.reduce((n, d) => n * d, 1);
    const mask = Uint8Array.from({ length: size }, (_, i) => (i * 7 + choice) & 1);
    return where(x.graph.constant(tensor('bool', shape, mask), 'mask'), a, b);
  },
  softmax: (x) => (x.rank === 0 ? sigmoid(x) : softmax(x)),
  layerNorm: (x, y) => {
    const matrix = asMatrix(x);
    const gain = mul(
      mean(y),
      x.graph.constant(float32([matrix.shape[1]!], new Array(matrix.shape[1]!).fill(1))),
    );
    return layerNorm(matrix, gain, undefined, 0.5);
  },
  groupNorm: (x, y, choice) => {
    const image = concat([asImage(x), mul(asImage(x), 0.5)], 1);
    return groupNorm(image, 1 + (choice % 2), weight(x.graph, [2], choice), expand(mean(y), [2]), 0.5);
  },
  matmul: (x, y) => {
    const a = asMatrix(x);
    const b = x.shape.at(-1) === y.shape.at(-1) && y.rank > 1 ? y : a;
    return mul(matmul(a, matrixTranspose(b)), 0.3);
  },
  gemm: (x, y, choice) => {
    const a = asMatrix(x);
    const transA = choice % 2 === 1;
    const inner = transA ? a.shape[0]! : a.shape[1]!;
    const b = weight(x.graph, [3, inner], choice);
    return gemm(a, b, { transA, transB: true, alpha: 0.4, beta: 0.5, c: mean(y) });
  },
  attention: (x, y) => {
    const [q, k] = [asMatrix(x), x.shape.at(-1) === y.shape.at(-1) ? asMatrix(y) : asMatrix(x)];
    return attention(q, k, k);
  },
  conv2d: (x, _, choice) => {
    const [rows, columns] = [1 + (choice % 3), 1 + (choice % 2)];
    const w = weight(x.graph, [2, 1, rows, columns], choice);
    // Padding in front stays narrower than the kernel, so that every leading window meets the image.
    const padding = [rows - 1, columns - 1, 1, 0] as const;
    return conv2d(asImage(x), w, undefined, { padding, stride: 1 + ((choice >> 2) % 2) });
  },
  convolveEachOther: (x, y) => {
    // A kernel that is itself a value of the graph.
    const kernel = reshape(
      slice(asVector(concat([asVector(y), asVector(mul(y, 0.5))], 0)), 0, 0, 2),
      [1, 1, 1, 2],
    );
    return conv2d(asImage(x), kernel, undefined, { padding: 1, dilation: 2 });
  },
  convTranspose2d: (x, _, choice) =>
    convTranspose2d(asImage(x), weight(x.graph, [1, 2, 2, 2], choice), undefined, {
      stride: 1 + (choice % 2),
    }),
  averagePool2d: (x) => averagePool2d(asImage(x), { kernel: 2, stride: 1, padding: 1 }),
  resizeNearest: (x) => resizeNearest(asImage(x), 2),
  mean: (x, _, choice) => (x.rank === 0 ? x : mean(x, [choice % x.rank])),
  sum: (x, _, choice) => (x.rank === 0 ? x : mul(sum(x, [choice % x.rank], { keepDims: true }), 0.5)),
  transpose: (x, _, choice) => {
    const order = new Random(choice, 'order').permutation(x.rank);
    return transpose(x, order);
  },
  concat: (x, y) => concat([asVector(x), asVector(y), asVector(x)], 0),
  split: (x) => {
    const vector = concat([asVector(x), asVector(sin(x))], 0);
    const [first, second] = split(vector, [x.size, x.size], 0);
    return mul(first!, cos(second!));
  },
  halfOfASplit: (x) => split(concat([asVector(x), asVector(x)], 0), [x.size, x.size], 0)[1]!,
  slice: (x, _, choice) => {
    const vector = concat([asVector(x), asVector(tanh(x))], 0);
    const step = 1 + (choice % 3);
    return choice % 2
      ? slice(vector, 0, vector.size - 1, -1 - vector.size, -step)
      : slice(vector, 0, 1, vector.size, step);
  },
  flip: (x) => (x.rank === 0 ? x : flip(x, [lastAxis(x)])),
  pad: (x, _, choice) =>
    pad(
      asMatrix(x),
      [
        [choice % 2, 1],
        [0, choice % 3],
      ],
      0.5,
    ),
  expand: (x) => expand(unsqueeze(x, [0]), [2, ...x.shape]),
  gather: (x, _, choice) => {
    const vector = asVector(x);
    const indices = [0, choice % x.size, x.size - 1, choice % x.size];
    return gather(vector, x.graph.constant(int64([2, 2], indices), 'indices'), 0);
  },
} satisfies Record<string, (x: Value, y: Value, choice: number) => Value>;

type Operation = (x: Value, y: Value, choice: number) => Value;

/** The largest tensor a random graph may hold: longer steps are averaged over their first axes. */
const LARGEST = 64;

/** Runs the steps on a pool that starts with the inputs; the result gathers the values that no step used, so that every node counts. */
function build(inputs: readonly Value[], steps: readonly Step[]): Value {
  const pool = [...inputs];
  const unused = new Set(inputs);
  for (const { operation, left, right, choice } of steps) {
    const [x, y] = [pool[left % pool.length]!, pool[right % pool.length]!];
    let result = (operations[operation] as Operation)(x, y, choice);
    if (result.size > LARGEST) result = slice(asVector(result), 0, 0, LARGEST);
    unused.delete(x);
    unused.delete(y);
    unused.add(result);
    pool.push(result);
  }
  return concat([...unused].map(asVector), 0);
}

const shape: fc.Arbitrary<number[]> = fc.array(fc.integer({ min: 1, max: 3 }), { maxLength: 3 });
const step: fc.Arbitrary<Step> = fc.record({
  operation: fc.constantFrom(...(Object.keys(operations) as (keyof typeof operations)[])),
  left: fc.nat(100),
  right: fc.nat(100),
  choice: fc.nat(100),
});
/** Inputs that broadcast: one full shape, the others with axes dropped in front or shrunk to 1, and one of any shape. */
const inputShapes: fc.Arbitrary<number[][]> = fc
  .tuple(
    fc.array(fc.integer({ min: 1, max: 4 }), { minLength: 1, maxLength: 3 }),
    fc.nat(3),
    fc.array(fc.boolean(), { minLength: 3, maxLength: 3 }),
    shape,
  )
  .map(([full, drop, shrink, other]) => [full, full.map((d, i) => (shrink[i] ? 1 : d)).slice(drop), other]);

const problem = fc.record({
  shapes: inputShapes,
  steps: fc.array(step, { minLength: 5, maxLength: 12 }),
  seed: fc.nat(1000),
});
const settings = { seed: 20240707, endOnFailure: false } as const;

function lossGraph(
  shapes: readonly Shape[],
  steps: readonly Step[],
  seed: number,
  recomputed = false,
): Graph {
  const graph = new Graph();
  const inputs = shapes.map((s, i) => graph.input(`x${i}`, 'float32', s));
  const block = (...values: Value[]): Value => build(values, steps);
  const result = recomputed ? recompute(inputs, block) : block(...inputs);
  const loss = sum(mul(result, graph.constant(new Random(seed, 'cotangent').normals(result.shape))));
  graph.output('loss', loss);
  gradients(loss, inputs).forEach((g, i) => {
    graph.output(`g${i}`, g);
  });
  return graph;
}

const feedsOf = (shapes: readonly Shape[], seed: number): Record<string, Tensor<'float32'>> =>
  Object.fromEntries(shapes.map((s, i) => [`x${i}`, new Random(seed, 'input', i).normals(s)]));

async function lossAt(program: Program, feeds: Record<string, Tensor>): Promise<number> {
  const { loss } = await program.run(feeds);
  return (loss!.data as Float32Array)[0]!;
}

/** d/dh of the loss along a direction in one input, by central differences with one step of Richardson's extrapolation. */
async function slope(
  program: Program,
  feeds: Record<string, Tensor<'float32'>>,
  name: string,
  direction: Float32Array,
): Promise<number> {
  const at = async (h: number): Promise<number> => {
    const x = feeds[name]!;
    const moved = (sign: number): Record<string, Tensor> => ({
      ...feeds,
      [name]: float32(
        x.shape,
        x.data.map((v, i) => v + sign * h * direction[i]!),
      ),
    });
    return ((await lossAt(program, moved(1))) - (await lossAt(program, moved(-1)))) / (2 * h);
  };
  const [wide, narrow] = [await at(0.04), await at(0.02)];
  return (4 * narrow - wide) / 3;
}

suite('random graphs', () => {
  let engine: Engine;
  before(() => {
    engine = createNodeEngine({ threads: 1 });
  });
  after(() => engine.close());

  test('gradients agree with central differences', async () => {
    const used = new Set<string>();
    await fc.assert(
      fc.asyncProperty(problem, async ({ shapes, steps, seed }) => {
        const program = await engine.compile(lossGraph(shapes, steps, seed));
        try {
          const feeds = feedsOf(shapes, seed);
          const results = await program.run(feeds);
          const loss = (results.loss!.data as Float32Array)[0]!;
          fc.pre(Math.abs(loss) < 100);
          for (const s of steps) used.add(s.operation);
          for (const [i, s] of shapes.entries()) {
            const gradient = results[`g${i}`]!.data as Float32Array;
            const length = Math.sqrt(gradient.length);
            const direction = new Random(seed, 'direction', i).normals(s).data.map((v) => v / length);
            const numeric = await slope(program, feeds, `x${i}`, direction);
            const analytic = gradient.reduce((total, g, n) => total + g * direction[n]!, 0);
            const norm = Math.hypot(...gradient);
            const allowed = 5e-3 * norm + 5e-4 * Math.max(1, Math.abs(loss));
            assert.ok(
              Math.abs(analytic - numeric) <= allowed,
              `input ${i}: gradient gives ${analytic}, differences give ${numeric}`,
            );
          }
        } finally {
          await program.release();
        }
      }),
      { ...settings, numRuns: 150 },
    );
    assert.deepEqual(
      Object.keys(operations).filter((name) => !used.has(name)),
      [],
      'operations that no random graph used',
    );
  });

  test('recomputing a block changes no gradient', async () => {
    await fc.assert(
      fc.asyncProperty(problem, async ({ shapes, steps, seed }) => {
        const feeds = feedsOf(shapes, seed);
        const [kept, recomputed] = await Promise.all(
          [false, true].map(async (again) => {
            const program = await engine.compile(lossGraph(shapes, steps, seed, again));
            const results = await program.run(feeds);
            await program.release();
            return results;
          }),
        );
        for (const name of Object.keys(kept!)) {
          assert.ok(relativeError(recomputed![name]!, kept![name]!) <= 1e-5, name);
        }
      }),
      { ...settings, numRuns: 60 },
    );
  });
});
