import assert from 'node:assert/strict';
import { after, before, suite, test } from 'node:test';
import { gradients } from '../../src/autodiff/gradient.js';
import { rules } from '../../src/autodiff/rules.js';
import type { Engine } from '../../src/engine/engine.js';
import { createNodeEngine } from '../../src/engine/node.js';
import { fusedAttention } from '../../src/onnx/attention.js';
import {
  averagePool2d,
  conv2d,
  convTranspose2d,
  maxPool2d,
  type Padding,
  resizeNearest,
} from '../../src/onnx/conv.js';
import { doubledConv2d, doubledConv2dByPhase } from '../../src/onnx/doubled-conv.js';
import * as elementwise from '../../src/onnx/elementwise.js';
import { cast, gelu, mul, type Operand } from '../../src/onnx/elementwise.js';
import { Graph, GraphError, type Value } from '../../src/onnx/graph.js';
import { gemm, matmul } from '../../src/onnx/linalg.js';
import { winogradConv2d } from '../../src/onnx/minimal-filtering.js';
import * as movement from '../../src/onnx/movement.js';
import { attention, groupNorm, layerNorm, softmax } from '../../src/onnx/norm.js';
import { type Operator, operators } from '../../src/onnx/operators.js';
import * as reduction from '../../src/onnx/reduction.js';

import type { DType } from '../../src/tensor/dtype.js';
import type { Tensor } from '../../src/tensor/tensor.js';
import { goldenJson, goldenTensors, relativeError } from '../goldens.js';

/** Attributes of a case, as scripts/goldens/operators.py writes them. */
interface Attributes {
  readonly left?: number;
  readonly right?: number;
  readonly slope: number;
  readonly block: number;
  readonly low: number;
  readonly high: number;
  readonly dtype: DType;
  readonly transA?: boolean;
  readonly transB?: boolean;
  readonly alpha?: number;
  readonly beta?: number;
  readonly stride?: number;
  readonly padding?: Padding & [number, number][];
  readonly outputPadding?: number;
  readonly dilation?: number;
  readonly groups: number;
  readonly kernel: number;
  readonly scale: number;
  readonly shape: number[];
  readonly perm: number[];
  readonly axis: number;
  readonly axes: number[];
  readonly keepDims?: boolean;
  readonly sizes: number[];
  readonly part: number;
  readonly start: number;
  readonly end: number;
  readonly step?: number;
  readonly value?: number;
  readonly eps: number;
  readonly heads: number;
}

interface Case {
  readonly name: string;
  readonly op: keyof typeof builders;
  readonly attributes: Attributes;
  readonly inputs: string[];
  readonly output: string;
  readonly cotangent: string | null;
  readonly gradients: (string | null)[];
}

type Build = (values: readonly Value[], attributes: Attributes) => Value;

const unary =
  (f: (x: Value) => Value): Build =>
  ([x]) =>
    f(x!);

/** Both operands, of which the attributes may give one as a plain number. */
const operands = ([x, y]: readonly Value[], { left, right }: Attributes): [Operand, Operand] =>
  left !== undefined ? [left, x!] : [x!, right ?? y!];

const binary =
  (f: (x: Operand, y: Operand) => Value): Build =>
  (values, attributes) =>
    f(...operands(values, attributes));

const reduce =
  (f: typeof reduction.sum): Build =>
  ([x], { axes, keepDims }) =>
    f(x!, axes, keepDims === undefined ? {} : { keepDims });

const builders = {
  add: binary(elementwise.add),
  sub: binary(elementwise.sub),
  mul: binary(elementwise.mul),
  div: binary(elementwise.div),
  pow: binary(elementwise.pow),
  maximum: binary(elementwise.maximum),
  minimum: binary(elementwise.minimum),
  neg: unary(elementwise.neg),
  exp: unary(elementwise.exp),
  log: unary(elementwise.log),
  sqrt: unary(elementwise.sqrt),
  abs: unary(elementwise.abs),
  sign: unary(elementwise.sign),
  sigmoid: unary(elementwise.sigmoid),
  tanh: unary(elementwise.tanh),
  erf: unary(elementwise.erf),
  sin: unary(elementwise.sin),
  cos: unary(elementwise.cos),
  relu: unary(elementwise.relu),
  reciprocal: unary(elementwise.reciprocal),
  square: unary(elementwise.square),
  gelu: unary(elementwise.gelu),
  silu: unary(elementwise.silu),
  quickGelu: unary(elementwise.quickGelu),
  leakyRelu: ([x], { slope }) => elementwise.leakyRelu(x!, slope),
  clip: ([x], { low, high }) => elementwise.clip(x!, low, high),
  where: ([condition, ...rest], attributes) => elementwise.where(condition!, ...operands(rest, attributes)),
  equal: binary(elementwise.equal),
  less: binary(elementwise.less),
  greater: binary(elementwise.greater),
  and: ([a, b]) => elementwise.and(a!, b!),
  or: ([a, b]) => elementwise.or(a!, b!),
  not: unary(elementwise.not),
  cast: ([x], { dtype }) => cast(x!, dtype),
  matmul: ([a, b]) => matmul(a!, b!),
  gemm: ([a, b, c], attributes) => gemm(a!, b!, { c, ...attributes }),
  conv2d: ([x, w, b], attributes) => conv2d(x!, w!, b, attributes),
  convTranspose2d: ([x, w, b], attributes) => convTranspose2d(x!, w!, b, attributes),
  averagePool2d: ([x], attributes) => averagePool2d(x!, attributes),
  maxPool2d: ([x], attributes) => maxPool2d(x!, attributes),
  resizeNearest: ([x], { scale }) => resizeNearest(x!, scale),
  reshape: ([x], { shape }) => movement.reshape(x!, shape),
  transpose: ([x], { perm }) => movement.transpose(x!, perm),
  concat: (values, { axis }) => movement.concat(values, axis),
  split: ([x], { sizes, axis, part }) => movement.split(x!, sizes, axis)[part]!,
  slice: ([x], { axis, start, end, step }) => movement.slice(x!, axis, start, end, step),
  pad: ([x], { padding, value }) => movement.pad(x!, padding!, value),
  expand: ([x], { shape }) => movement.expand(x!, shape),
  squeeze: ([x], { axes }) => movement.squeeze(x!, axes),
  unsqueeze: ([x], { axes }) => movement.unsqueeze(x!, axes),
  flip: ([x], { axes }) => movement.flip(x!, axes),
  gather: ([x, indices], { axis }) => movement.gather(x!, indices!, axis),
  sum: reduce(reduction.sum),
  mean: reduce(reduction.mean),
  max: reduce(reduction.max),
  min: reduce(reduction.min),
  argMax: ([x], { axis }) => reduction.argMax(x!, axis),
  softmax: unary(softmax),
  layerNorm: ([x, scale, bias], { eps }) => layerNorm(x!, scale, bias, eps),
  groupNorm: ([x, scale, bias], { groups, eps }) => groupNorm(x!, groups, scale!, bias!, eps),
  attention: ([q, k, v, mask], { scale }) =>
    attention(q!, k!, v!, { ...(scale === undefined ? {} : { scale }), ...(mask ? { mask } : {}) }),
  fusedAttention: ([q, k, v], { heads }) => fusedAttention(q!, k!, v!, heads),
  winogradConv2d: ([x, w, b]) => winogradConv2d(x!, w!, b),
  doubledConv2d: ([x, w, b]) => doubledConv2d(x!, w!, b),
  doubledConv2dByPhase: ([x, w, b]) => doubledConv2dByPhase(x!, w!, b),
  depthToSpace: ([x], { block }) => movement.depthToSpace(x!, block),
  spaceToDepth: ([x], { block }) => movement.spaceToDepth(x!, block),
  geglu: ([x]) => {
    const [hidden, gate] = movement.split(x!, [4, 4], -1);
    return mul(hidden!, gelu(gate!));
  },
} satisfies Record<string, Build>;

const cases = goldenJson<Case[]>('operators.json');
const golden = goldenTensors('operators.safetensors');
const TOLERANCE = 1e-5;

/**
 * One case in a graph: its output, and the gradients of sum(output * cotangent). With `weightsConstant` all inputs but the first are constants, as frozen weights
 * are, and only the first input's gradient is asked for.
 */
function addCase(graph: Graph, c: Case, weightsConstant: boolean): Map<string, string> {
  const expected = new Map<string, string>();
  const label = weightsConstant ? `${c.name}, constants` : c.name;
  const values = c.inputs.map((key, i) => {
    const t = golden.get(key)!;
    return weightsConstant && i > 0
      ? graph.constant(t, label)
      : graph.input(`${label}: ${i}`, t.dtype, t.shape);
  });
  const output = cast((builders[c.op] as Build)(values, c.attributes), 'float32');
  graph.output(label, output);
  expected.set(label, c.output);
  if (c.cotangent) {
    const wanted = c.gradients.flatMap((key, i) => (key && !(weightsConstant && i > 0) ? [{ key, i }] : []));
    const loss = reduction.sum(mul(output, graph.constant(golden.get(c.cotangent)!, 'cotangent')));
    const found = gradients(
      loss,
      wanted.map(({ i }) => values[i]!),
    );
    wanted.forEach(({ key, i }, n) => {
      const name = `${label}: gradient of input ${i}`;
      graph.output(name, found[n]!);
      expected.set(name, key);
    });
  }
  return expected;
}

test('every operator of the rule table has a golden case, of its gradient where it has one', () => {
  const run = new Set<Operator>();
  const differentiated = new Set<Operator>();
  for (const c of cases) {
    const graph = new Graph(c.name);
    const values = c.inputs.map((key, i) =>
      graph.input(`${i}`, golden.get(key)!.dtype, golden.get(key)!.shape),
    );
    (builders[c.op] as Build)(values, c.attributes);
    for (const node of graph.nodes) {
      run.add(node.operator);
      if (c.cotangent) differentiated.add(node.operator);
    }
    // Some operators are for gradients alone.
    const frozen = new Graph(`${c.name}, constants`);
    addCase(frozen, c, true);
    for (const node of frozen.nodes) run.add(node.operator);
  }
  const missing = operators.filter(
    (op) => !(rules[op] === 'not differentiable' ? run : differentiated).has(op),
  );
  assert.deepEqual(missing, []);
});

test('a golden case without a builder is an error of this file', () => {
  assert.deepEqual(
    cases.filter((c) => !(c.op in builders)).map((c) => c.name),
    [],
  );
});

test('a gradient through an operator that has none is refused, and an index carries none', () => {
  const graph = new Graph();
  const x = graph.input('x', 'float32', [3]);
  assert.throws(() => gradients(reduction.sum(elementwise.sign(x)), [x]), GraphError);
  const [found] = gradients(reduction.sum(cast(cast(x, 'int64'), 'float32')), [x]);
  assert.deepEqual(found!.origin.kind, 'constant');
});

suite('every operator against PyTorch', () => {
  let engine: Engine;
  before(() => {
    engine = createNodeEngine({ threads: 1 });
  });
  after(() => engine.close());

  for (const op of Object.keys(builders)) {
    test(op, async () => {
      const graph = new Graph(op);
      const expected = new Map<string, string>();
      const feeds: Record<string, Tensor> = {};
      const family = cases.filter((c) => c.op === op);
      assert.ok(family.length > 0, `no golden case for ${op}`);
      for (const c of family) {
        const variants = c.inputs.length > 1 && c.gradients[0] ? [false, true] : [false];
        for (const constants of variants) {
          for (const [name, key] of addCase(graph, c, constants)) expected.set(name, key);
          c.inputs.forEach((key, i) => {
            if (!constants) feeds[`${c.name}: ${i}`] = golden.get(key)!;
            else if (i === 0) feeds[`${c.name}, constants: 0`] = golden.get(key)!;
          });
        }
      }
      const program = await engine.compile(graph);
      const results = await program.run(feeds);
      await program.release();
      const failures: string[] = [];
      for (const [name, key] of expected) {
        const error = relativeError(results[name]!, golden.get(key)!);
        if (!(error <= TOLERANCE)) failures.push(`${name}: relative error ${error.toExponential(2)}`);
      }
      assert.deepEqual(failures, []);
    });
  }
});
