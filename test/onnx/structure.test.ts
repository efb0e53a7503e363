import assert from 'node:assert/strict';
import { suite, test } from 'node:test';
import { gradients } from '../../src/autodiff/gradient.js';
import { recompute } from '../../src/autodiff/recompute.js';
import { multiHeadAttention } from '../../src/nn/attention.js';
import { conv2d as conv, doubledConv } from '../../src/nn/conv2d.js';
import { linear, linearParts } from '../../src/nn/linear.js';
import { addLora, LoraParameters } from '../../src/nn/lora.js';
import { type Computation, InputParameters, type ParameterSource, Scope } from '../../src/nn/parameters.js';
import { conv2d } from '../../src/onnx/conv.js';
import { add, cast, gelu, mul, silu, square } from '../../src/onnx/elementwise.js';
import { Graph, type Value } from '../../src/onnx/graph.js';
import { gemm } from '../../src/onnx/linalg.js';
import { groupNorm } from '../../src/onnx/norm.js';
import { mean, sum } from '../../src/onnx/reduction.js';
import { printGraph } from '../../src/onnx/text.js';
import { adamw } from '../../src/optim/adamw.js';
import { clipByGlobalNorm } from '../../src/optim/clipping.js';
import { elementCount, float32, type Shape } from '../../src/tensor/tensor.js';
import { difference, matchSnapshot } from './snapshot.js';

/** Frozen weights: constants of the graph. */
const frozen = (graph: Graph): ParameterSource => ({
  parameter: (path, shape) => weight(graph, path, shape),
});

const weight = (graph: Graph, name: string, shape: Shape): Value =>
  graph.constant(float32(shape, new Float32Array(elementCount(shape)).fill(0.5)), name);

const outputs = (graph: Graph, values: Readonly<Record<string, Value>>): void => {
  for (const [name, value] of Object.entries(values)) graph.output(name, value);
};

const operatorsOf = (graph: Graph): string[] => graph.liveNodes().map((n) => n.operator);

suite('structure of graphs', () => {
  test('a low-rank update above a frozen layer: no gradient of frozen weights, nothing below the first factor', () => {
    const graph = new Graph('low_rank_update');
    const x = graph.input('x', 'float32', [2, 3, 16]);
    const base = frozen(graph);
    const updates = new InputParameters(graph);
    const adapted = new LoraParameters(base, updates, {
      rank: 2,
      alpha: 1,
      targets: (path) => path !== 'first',
    });
    const scope = new Scope(adapted);
    const hidden = linear(scope.at('first'), x, { in: 16, out: 12 });
    const twice = linear(scope.at('second'), hidden, { in: 12, out: 10 });
    const loss = mean(square(linear(scope.at('third'), twice, { in: 10, out: 9, bias: false })));
    const factors = [...updates.values.values()];
    const found = gradients(loss, factors);
    outputs(graph, { loss, ...Object.fromEntries(factors.map((f, i) => [`d ${f.name}`, found[i]!])) });
    const flow = graph.liveNodes().flatMap((n) => n.outputs.map((v) => v.shape.join()));
    assert.ok(!flow.includes('16,12') && !flow.includes('12,16'), 'no gradient of a frozen weight');
    assert.equal(
      flow.filter((shape) => shape === '6,16').length,
      1,
      'the input’s rows, and no gradient of them',
    );
    matchSnapshot('low-rank-update', printGraph(graph));
  });

  test('only the gradients that are asked for are there', () => {
    const build = (pick: readonly number[]): string[] => {
      const graph = new Graph();
      const inputs = [
        [3, 4],
        [4, 5],
        [5, 6],
      ].map((shape, i) => graph.input(`${i}`, 'float32', shape));
      const loss = sum(gemm(gelu(gemm(inputs[0]!, inputs[1]!)), inputs[2]!));
      const found = gradients(
        loss,
        pick.map((i) => inputs[i]!),
      );
      outputs(graph, Object.fromEntries(found.map((v, i) => [`${i}`, v])));
      return operatorsOf(graph);
    };
    const products = (pick: readonly number[]): number => build(pick).filter((op) => op === 'Gemm').length;
    assert.equal(products([2]), 2, 'the inner product, and one for the gradient');
    assert.ok(!build([2]).includes('Erf'), 'no derivative of the activation');
    assert.equal(products([1]), 3);
    assert.equal(products([0, 1, 2]), 5);
  });

  test('a value that the loss does not depend on has a gradient of zeros', () => {
    const graph = new Graph();
    const [x, other] = [graph.input('x', 'float32', [2]), graph.input('other', 'float32', [3])];
    const [found] = gradients(sum(x), [other]);
    assert.equal(found!.origin.kind, 'constant');
    assert.deepEqual(found!.shape, [3]);
  });

  test('back through a convolution with a constant kernel: a convolution with the kernel turned round', () => {
    const graph = new Graph('convolution');
    const x = graph.input('x', 'float32', [1, 2, 6, 6]);
    const y = conv2d(x, weight(graph, 'kernel', [4, 2, 3, 3]), weight(graph, 'bias', [4]), { padding: 1 });
    const [dx] = gradients(sum(square(y)), [x]);
    outputs(graph, { dx: dx! });
    const operators = operatorsOf(graph);
    assert.equal(operators.filter((op) => op === 'Conv').length, 2);
    assert.ok(!operators.includes('ConvTranspose'));
    matchSnapshot('convolution', printGraph(graph));
  });

  test('a recomputed block: its copy hangs on the gradient that arrives', () => {
    const graph = new Graph('recomputed_block');
    const x = graph.input('x', 'float32', [4, 8]);
    const weights = [graph.input('w1', 'float32', [8, 16]), graph.input('w2', 'float32', [16, 8])];
    const y = recompute([x], (h) => add(h, gemm(gelu(gemm(h, weights[0]!)), weights[1]!)));
    const loss = mean(square(y));
    const [dx, ...rest] = gradients(loss, [x, ...weights]);
    outputs(graph, { loss, dx: dx!, dw1: rest[0]!, dw2: rest[1]! });
    assert.equal(operatorsOf(graph).filter((op) => op === 'Gelu').length, 2, 'once forward, once again');
    matchSnapshot('recomputed-block', printGraph(graph));
  });

  test('beside large activations the way back waits for the gradients of a low-rank update, and small ones leave the order alone', () => {
    const build = (rows: number): string => {
      const graph = new Graph('low_rank');
      const x = graph.input('x', 'float32', [rows, 64]);
      const factors = {
        down: graph.input('down', 'float32', [4, 64]),
        up: graph.input('up', 'float32', [64, 4]),
        scale: 1,
      };
      const h = gemm(x, weight(graph, 'before', [64, 64]));
      const y = addLora(gemm(h, weight(graph, 'frozen', [64, 64])), h, factors);
      const [dx, dDown, dUp] = gradients(sum(square(y)), [x, factors.down, factors.up]);
      outputs(graph, { dx: dx!, dDown: dDown!, dUp: dUp! });
      return printGraph(graph);
    };
    assert.ok(!build(32).includes('Where'));
    matchSnapshot('low-rank', build(1 << 14));
  });

  test('a frozen 3x3 kernel of many channels at many places: minimal filtering, forwards and back, with one transformed kernel', () => {
    const build = (channels: number, side: number, computation?: Computation): Graph => {
      const graph = new Graph('minimal_filtering');
      const kernel = { path: 'weights', offset: 0 };
      const source: ParameterSource = {
        parameter: (name, shape) => graph.external(name, 'float32', shape, kernel),
      };
      const x = graph.input('x', 'float32', [2, channels, side, side]);
      const y = conv(new Scope(source, '', computation), x, {
        in: channels,
        out: channels,
        kernel: 3,
        padding: 1,
      });
      const [dx] = gradients(sum(square(y)), [x]);
      outputs(graph, { dx: dx! });
      return graph;
    };
    assert.ok(!operatorsOf(build(256, 8)).includes('MatMul'), 'too few places');
    assert.ok(!operatorsOf(build(128, 32)).includes('MatMul'), 'too few channels');
    const onCard: Computation = { type: 'float32', minimalFiltering: false, rowsInTurn: false };
    assert.ok(!operatorsOf(build(256, 32, onCard)).includes('MatMul'), 'for a graphics card');
    matchSnapshot('minimal-filtering', printGraph(build(256, 32)));
  });

  test('a frozen 3x3 kernel of many channels over an image enlarged twice: the enlarged image is never made', () => {
    interface Case {
      readonly channels?: number;
      readonly side?: number;
      readonly computation?: Computation;
      readonly learns?: boolean;
      readonly staged?: boolean;
      readonly lora?: boolean;
    }
    const build = ({
      channels = 256,
      side = 8,
      computation,
      learns,
      staged = false,
      lora,
    }: Case): string[] => {
      const graph = new Graph('doubled');
      graph.staged = staged;
      const kernel = { path: 'weights', offset: 0 };
      const factors = {
        down: graph.input('down', 'float32', [1, channels, 3, 3]),
        up: graph.input('up', 'float32', [channels, 1, 1, 1]),
        scale: 1,
      };
      const source: ParameterSource = {
        parameter: (name, shape) =>
          learns ? graph.input(name, 'float32', shape) : graph.external(name, 'float32', shape, kernel),
        lora: () => (lora ? factors : undefined),
      };
      const x = graph.input('x', 'float32', [2, channels, side, side]);
      const y = doubledConv(new Scope(source, '', computation), x, { in: channels, out: channels });
      assert.deepEqual(y.shape, [2, channels, 2 * side, 2 * side]);
      outputs(graph, { y });
      return operatorsOf(graph);
    };
    const filtered = build({});
    assert.ok(filtered.includes('MatMul') && !filtered.includes('Resize'));
    const large = build({ side: 64 });
    assert.ok(large.includes('DepthToSpace') && !large.includes('MatMul') && !large.includes('Resize'));
    assert.deepEqual(build({ side: 64, staged: true }), filtered);
    assert.ok(
      build({ side: 256, staged: true }).includes('Resize'),
      'nine forms of the image would be too much',
    );
    const onCard: Computation = { type: 'float32', minimalFiltering: false, rowsInTurn: false };
    for (const other of [{ channels: 128 }, { computation: onCard }, { learns: true }, { lora: true }]) {
      const plain = build(other);
      assert.ok(plain.includes('Resize') && plain.includes('Conv'), JSON.stringify(other));
    }
  });

  test('a frozen layer whose result goes apart: a product for each part, with the rows of its weight where they lie in the file', () => {
    const build = (type: 'float32' | 'float16', lora: boolean): Graph => {
      const graph = new Graph('parts');
      const [down, up] = [graph.input('down', 'float32', [1, 3]), graph.input('up', 'float32', [6, 1])];
      const source: ParameterSource = {
        parameter: (name, shape) => {
          const location = { path: 'weights', offset: name === 'bias' ? 1000 : 0 };
          return cast(graph.external(name, type, shape, location), 'float32');
        },
        lora: () => (lora ? { down, up, scale: 1 } : undefined),
      };
      const parts = linearParts(new Scope(source), graph.input('x', 'float32', [2, 5, 3]), {
        in: 3,
        out: [2, 4],
      });
      outputs(graph, { first: parts[0]!, second: parts[1]! });
      return graph;
    };
    for (const [type, bytes] of [
      ['float32', 4],
      ['float16', 2],
    ] as const) {
      const graph = build(type, false);
      assert.ok(!operatorsOf(graph).includes('Split'));
      const places = graph
        .liveSources()
        .initializers.flatMap(({ origin, shape }) =>
          origin.kind === 'external' ? [`[${shape.join()}] at ${origin.location.offset}`] : [],
        );
      assert.deepEqual(places.sort(), [
        '[2,3] at 0',
        '[2] at 1000',
        `[4,3] at ${2 * 3 * bytes}`,
        `[4] at ${1000 + 2 * bytes}`,
      ]);
    }
    assert.ok(operatorsOf(build('float32', true)).includes('Split'), 'what learns stays whole');
  });

  test('attention and its gradients', () => {
    const graph = new Graph('attention');
    const [q, k, v] = ['q', 'k', 'v'].map((name, i) => graph.input(name, 'float32', [1, i === 0 ? 3 : 5, 8]));
    const y = multiHeadAttention(q!, k!, v!, { heads: 2 });
    const loss = sum(mul(y, weight(graph, 'cotangent', y.shape)));
    const [dq, dk, dv] = gradients(loss, [q!, k!, v!]);
    outputs(graph, { y, dq: dq!, dk: dk!, dv: dv! });
    matchSnapshot('attention', printGraph(graph));
  });

  test('group normalisation and SiLU, back to the input', () => {
    const graph = new Graph('group_norm');
    const x = graph.input('x', 'float32', [2, 4, 3, 3]);
    const y = silu(groupNorm(x, 2, weight(graph, 'scale', [4]), weight(graph, 'shift', [4]), 1e-5));
    const [dx] = gradients(sum(mul(y, weight(graph, 'cotangent', y.shape))), [x]);
    outputs(graph, { y, dx: dx! });
    matchSnapshot('group-norm', printGraph(graph));
  });

  test('a step of AdamW with clipping: small tensors go together, the large one alone, and they are strung together once', () => {
    const graph = new Graph('update');
    const shapes: Record<string, Shape> = { small: [3, 4], vector: [5], large: [256, 256] };
    const parameters = Object.entries(shapes).map(([name, shape]) => graph.input(name, 'float32', shape));
    const grads = parameters.map((p) => graph.input(`${p.name}.gradient`, 'float32', p.shape));
    const { clipped, norm } = clipByGlobalNorm(grads, 1);
    adamw().update(graph, parameters, clipped);
    graph.output('norm', norm);
    assert.equal(graph.updates.size, 3 + 2 * 2);
    matchSnapshot('adamw', printGraph(graph));
  });
});

test('a snapshot that does not match is shown line by line', () => {
  assert.equal(difference('a\nb\nc', 'a\nx\nc\nd'), ['  a', '- b', '+ x', '  c', '+ d'].join('\n'));
  assert.throws(() => {
    const update = process.env.UPDATE_SNAPSHOTS;
    process.env.UPDATE_SNAPSHOTS = '0';
    try {
      matchSnapshot('convolution', 'something else\n');
    } finally {
      if (update === undefined) delete process.env.UPDATE_SNAPSHOTS;
      else process.env.UPDATE_SNAPSHOTS = update;
    }
  }, /- graph convolution[\s\S]*\+ something else/);
});
