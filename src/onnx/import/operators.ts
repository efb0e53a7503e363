import { full, tensor } from '../../tensor/tensor.js';
import { averagePool2d, conv2d, convTranspose2d, maxPool2d } from '../conv.js';
import {
  abs,
  add,
  and,
  cast,
  cos,
  div,
  equal,
  erf,
  exp,
  gelu,
  greater,
  leakyRelu,
  less,
  log,
  maximum,
  minimum,
  mul,
  neg,
  not,
  or,
  pow,
  quickGelu,
  reciprocal,
  relu,
  sigmoid,
  sign,
  sin,
  sqrt,
  square,
  sub,
  tanh,
  where,
} from '../elementwise.js';
import type { Value } from '../graph.js';
import { gemm, matmul } from '../linalg.js';
import { concat, expand, gather, pad, reshape, slice, split, transpose } from '../movement.js';
import { layerNorm, softmax } from '../norm.js';
import { argMax, max, mean, min, sum } from '../reduction.js';
import { cubicKernel, linearKernel, mapPlanes, resamplingMatrix } from '../resampling.js';
import { einsum } from './einsum.js';
import { reshapeTarget, slicedAxes, sliceRange, squeezedShape, unsqueezedShape } from './folds.js';
import { hostInts } from './host-tensor.js';
import { ImportFault, type NodeContext } from './node-context.js';

/** Emits one operator of a file in operators of ours: its outputs, the first ones if the rest is never read. */
export type Build = (c: NodeContext) => Value | readonly Value[];

const unary =
  (f: (x: Value) => Value): Build =>
  (c) =>
    f(c.value(0));
const binary =
  (f: (a: Value, b: Value) => Value): Build =>
  (c) =>
    f(c.value(0), c.value(1));
/** An operator of any number of operands. */
const chain =
  (f: (a: Value, b: Value) => Value): Build =>
  (c) =>
    c.values().reduce(f);

const reduce =
  (f: typeof sum, before: (x: Value) => Value = (x) => x, after: (x: Value) => Value = (x) => x): Build =>
  (c) => {
    const x = c.value(0);
    const axes = c.axes(x.rank);
    if ((!axes || axes.length === 0) && c.int('noop_with_empty_axes', 0) === 1) return x;
    const all = axes && axes.length > 0 ? axes : undefined;
    return after(f(before(x), all, { keepDims: c.int('keepdims', 1) === 1 }));
  };

/** ln(1 + e^x), without overflow. */
const softplus = (x: Value): Value => add(relu(x), log(add(exp(neg(abs(x))), 1)));
const clamp = (x: Value, low: number, high: number): Value => minimum(maximum(x, low), high);

/** A function of the last axis, applied to another one. */
function alongAxis(x: Value, axis: number, f: (x: Value) => Value): Value {
  const a = axis < 0 ? axis + x.rank : axis;
  if (a === x.rank - 1) return f(x);
  const perm = [...x.shape.map((_, i) => i).filter((i) => i !== a), a];
  return transpose(
    f(transpose(x, perm)),
    perm.map((_, i) => perm.indexOf(i)),
  );
}

/** Before operator set 13, softmax went over all axes from `axis` on together. */
function softmaxOf(c: NodeContext): Value {
  const x = c.value(0);
  if (c.opset >= 13) return alongAxis(x, c.int('axis', -1), softmax);
  const given = c.int('axis', 1);
  const axis = given < 0 ? given + x.rank : given;
  const outer = x.shape.slice(0, axis).reduce((n, d) => n * d, 1);
  return reshape(softmax(reshape(x, [outer, -1])), x.shape);
}

type Sides = [number, number, number, number];

/** Kernel, strides, dilations and padding of a window over two axes. */
function window(c: NodeContext, kernel: readonly number[]) {
  const [height, width] = c.shape(0).slice(2) as [number, number];
  if (c.shape(0).length !== 4 || kernel.length !== 2) {
    throw new ImportFault(`it works on ${c.shape(0).length - 2} axes; only pictures, with 2, are supported`);
  }
  const pair = (name: string): [number, number] => [...(c.ints(name) ?? [1, 1])] as [number, number];
  const [stride, dilation] = [pair('strides'), pair('dilations')];
  const automatic = c.string('auto_pad', 'NOTSET');
  c.must('auto_pad', automatic, 'NOTSET', 'VALID', 'SAME_UPPER', 'SAME_LOWER');
  let padding = [...(c.ints('pads') ?? [0, 0, 0, 0])] as Sides;
  if (automatic === 'VALID') padding = [0, 0, 0, 0];
  if (automatic.startsWith('SAME')) {
    const lacks = [height, width].map((extent, i) => {
      const windows = Math.ceil(extent / stride[i]!);
      return Math.max(0, (windows - 1) * stride[i]! + dilation[i]! * (kernel[i]! - 1) + 1 - extent);
    });
    const before = lacks.map((l) => (automatic === 'SAME_UPPER' ? Math.floor(l / 2) : Math.ceil(l / 2)));
    padding = [before[0]!, before[1]!, lacks[0]! - before[0]!, lacks[1]! - before[1]!];
  }
  return { stride, dilation, padding, height, width };
}

function convolution(c: NodeContext): Value {
  const weight = c.value(1);
  const { stride, dilation, padding } = window(c, weight.shape.slice(2));
  const options = { stride, dilation, padding, groups: c.int('group', 1) };
  return conv2d(c.value(0), weight, c.has(2) ? c.value(2) : undefined, options);
}

function transposedConvolution(c: NodeContext): Value {
  const weight = c.value(1);
  c.must('auto_pad', c.string('auto_pad', 'NOTSET'), 'NOTSET');
  if (c.ints('output_shape'))
    throw new ImportFault('output_shape is given; supported: pads and output_padding');
  const { stride, dilation, padding } = window(c, weight.shape.slice(2));
  const outputPadding = [...(c.ints('output_padding') ?? [0, 0])] as [number, number];
  const options = { stride, dilation, padding, outputPadding, groups: c.int('group', 1) };
  return convTranspose2d(c.value(0), weight, c.has(2) ? c.value(2) : undefined, options);
}

function pooling(c: NodeContext, kind: 'average' | 'max'): Value {
  const kernel = [...c.ints('kernel_shape')!] as [number, number];
  const { stride, dilation, padding, height, width } = window(c, kernel);
  if (dilation.some((d) => d !== 1)) throw new ImportFault(`dilations is [${dilation}]; supported: [1,1]`);
  const exact = [height, width].every(
    (extent, i) => (extent + padding[i]! + padding[i + 2]! - kernel[i]!) % stride[i]! === 0,
  );
  if (c.int('ceil_mode', 0) === 1 && !exact) {
    throw new ImportFault('ceil_mode is 1 and a window hangs over the edge; supported: 0');
  }
  const options = { kernel, stride, padding };
  if (kind === 'max') return maxPool2d(c.value(0), options);
  const pooled = averagePool2d(c.value(0), options);
  if (c.int('count_include_pad', 0) === 1 || padding.every((p) => p === 0)) return pooled;
  // Padding was averaged in: undo it by the share of each window that lies on the picture.
  const ones = c.graph.constant(full([1, 1, height, width], 1), 'ones');
  return div(pooled, averagePool2d(ones, options));
}

/** What resizing does along one axis. */
function resizedAxis(c: NodeContext, from: number, to: number, scale: number) {
  const mode = c.string('mode', 'nearest');
  const coordinates = c.string('coordinate_transformation_mode', 'half_pixel');
  c.must('mode', mode, 'nearest', 'linear', 'cubic');
  const transforms: Readonly<Record<string, (i: number) => number>> = {
    half_pixel: (i) => (i + 0.5) / scale - 0.5,
    pytorch_half_pixel: (i) => (to > 1 ? (i + 0.5) / scale - 0.5 : 0),
    align_corners: (i) => (to === 1 ? 0 : (i * (from - 1)) / (to - 1)),
    asymmetric: (i) => i / scale,
  };
  c.must('coordinate_transformation_mode', coordinates, ...Object.keys(transforms));
  if (c.int('exclude_outside', 0) === 1 && mode === 'cubic' && c.int('antialias', 0) === 0) {
    throw new ImportFault('exclude_outside is 1; supported: 0');
  }
  const place = transforms[coordinates]!;
  if (mode !== 'nearest') {
    const kernel = mode === 'linear' ? linearKernel : cubicKernel(c.float('cubic_coeff_a', -0.75));
    const antialias = c.int('antialias', 0) === 1;
    return resamplingMatrix(from, to, { kernel, antialias, coordinate: place });
  }
  const rounding = c.string('nearest_mode', 'round_prefer_floor');
  const roundings: Readonly<Record<string, (x: number) => number>> = {
    floor: Math.floor,
    ceil: Math.ceil,
    round_prefer_floor: (x) => Math.ceil(x - 0.5),
    round_prefer_ceil: (x) => Math.floor(x + 0.5),
  };
  c.must('nearest_mode', rounding, ...Object.keys(roundings));
  const whole = (i: number): number => Math.min(from - 1, Math.max(0, roundings[rounding]!(place(i))));
  return resamplingMatrix(from, to, { kernel: linearKernel, antialias: false, coordinate: whole });
}

function resize(c: NodeContext): Value {
  const x = c.value(0);
  if (x.rank !== 4) throw new ImportFault(`it resizes ${x}; only pictures [N, C, H, W] are supported`);
  const sizes = c.has(3) ? c.numbers(3, 'its size') : undefined;
  const given = sizes || !c.has(2) ? undefined : c.numbers(2, 'its scale');
  if (c.ints('axes')) throw new ImportFault('axes is given; supported: all of them');
  if (sizes) c.must('keep_aspect_ratio_policy', c.string('keep_aspect_ratio_policy', 'stretch'), 'stretch');
  const extents = x.shape.map((d, i) => sizes?.[i] ?? Math.floor(d * given![i]!));
  if (extents[0] !== x.shape[0] || extents[1] !== x.shape[1]) {
    throw new ImportFault('it resizes batch or channels; only height and width are supported');
  }
  const axis = (i: 2 | 3) => {
    const [from, to] = [x.shape[i]!, extents[i]!];
    return resizedAxis(c, from, to, given?.[i] ?? to / from);
  };
  return mapPlanes(x, axis(2), axis(3));
}

/** Normalises each block of axis 1 over its channels and places, then scales and shifts each channel: group norm, and instance norm with groups of one. */
function normalizedGroups(x: Value, groups: number, scale: Value, bias: Value, eps: number): Value {
  const [n, channels] = x.shape as [number, number];
  const rows = layerNorm(reshape(x, [n * groups, -1]), undefined, undefined, eps);
  const perChannel = [1, channels, ...x.shape.slice(2).map(() => 1)];
  return add(mul(reshape(rows, x.shape), reshape(scale, perChannel)), reshape(bias, perChannel));
}

function groupNormalization(c: NodeContext): Value {
  const x = c.value(0);
  const groups = c.int('num_groups', 1);
  // Before operator set 21 there is a scale for each group, not for each channel.
  const perChannel = (v: Value): Value =>
    v.size === x.shape[1]
      ? v
      : reshape(expand(reshape(v, [groups, 1]), [groups, x.shape[1]! / groups]), [x.shape[1]!]);
  return normalizedGroups(
    x,
    groups,
    perChannel(c.value(1)),
    perChannel(c.value(2)),
    c.float('epsilon', 1e-5),
  );
}

function batchNormalization(c: NodeContext): Value {
  const x = c.value(0);
  if (c.int('training_mode', 0) === 1)
    throw new ImportFault('training_mode is 1; supported: 0. Export with model.eval()');
  const shape = [1, x.shape[1]!, ...x.shape.slice(2).map(() => 1)];
  const [scale, bias, average, variance] = [1, 2, 3, 4].map((i) => reshape(c.value(i), shape)) as [
    Value,
    Value,
    Value,
    Value,
  ];
  const gain = div(scale, sqrt(add(variance, c.float('epsilon', 1e-5))));
  return add(mul(sub(x, average), gain), bias);
}

function layerNormalization(c: NodeContext): Value {
  const x = c.value(0);
  if (c.node.outputs.slice(1).some((name) => name !== '')) {
    throw new ImportFault('its mean and deviation are read; supported: the first output alone');
  }
  const given = c.int('axis', -1);
  const axis = given < 0 ? given + x.rank : given;
  const inner = x.shape.slice(axis).reduce((n, d) => n * d, 1);
  const flat = (i: number): Value => reshape(c.value(i), [inner]);
  const rows = reshape(x, [...x.shape.slice(0, axis), inner]);
  const y = layerNorm(rows, flat(1), c.has(2) ? flat(2) : undefined, c.float('epsilon', 1e-5));
  return reshape(y, x.shape);
}

function multiply(a: Value, b: Value): Value {
  const left = a.rank === 1 ? reshape(a, [1, -1]) : a;
  const right = b.rank === 1 ? reshape(b, [-1, 1]) : b;
  const product = matmul(left, right);
  const shape = [...product.shape];
  if (b.rank === 1) shape.pop();
  if (a.rank === 1) shape.splice(shape.length - (b.rank === 1 ? 1 : 2), 1);
  return reshape(product, shape);
}

function padded(c: NodeContext): Value {
  const x = c.value(0);
  const mode = c.string('mode', 'constant');
  c.must('mode', mode, 'constant', 'reflect', 'edge');
  const amounts = c.numbers(1, 'its padding');
  const axes = c.has(3) ? c.numbers(3, 'its axes') : x.shape.map((_, i) => i);
  const sides = x.shape.map((_, axis): [number, number] => {
    const at = axes.findIndex((a) => (a < 0 ? a + x.rank : a) === axis);
    return at < 0 ? [0, 0] : [amounts[at]!, amounts[at + axes.length]!];
  });
  if (mode === 'constant' && sides.flat().every((p) => p >= 0)) {
    return pad(x, sides, c.has(2) ? c.numbers(2, 'its value')[0] : 0);
  }
  // Every place of the result is a place of x: a selection along each axis.
  return sides.reduce((y, [before, after], axis) => {
    const extent = y.shape[axis]!;
    if (before === 0 && after === 0) return y;
    if (mode === 'constant') {
      if (before > 0 || after > 0) throw new ImportFault('it pads and cuts at once');
      return slice(y, axis, -before, extent + after);
    }
    const last = extent - 1;
    const places = Array.from({ length: before + extent + after }, (_, i) => {
      const p = i - before;
      if (mode === 'edge') return Math.min(last, Math.max(0, p));
      const turn = Math.abs(p) % (2 * last || 1);
      return turn > last ? 2 * last - turn : turn;
    });
    return gather(y, indices(c, places), axis);
  }, x);
}

const indices = (c: NodeContext, places: readonly number[]): Value =>
  c.graph.constant(tensor('int64', [places.length], BigInt64Array.from(places, BigInt)), 'places');

function gathered(c: NodeContext): Value {
  const x = c.value(0);
  const axis = c.int('axis', 0);
  const known = c.host(1);
  if (!known) return gather(x, cast(c.value(1), 'int64'), axis);
  const extent = x.shape[axis < 0 ? axis + x.rank : axis]!;
  const places = Array.from(known.data, (p) => (p < 0 ? p + extent : p));
  if (places.some((p) => p < 0 || p >= extent)) throw new ImportFault(`it picks a place beyond ${extent}`);
  // One place of an axis is a slice, whose gradient costs less.
  if (places.length === 1) {
    const a = axis < 0 ? axis + x.rank : axis;
    const one = slice(x, a, places[0]!, places[0]! + 1);
    return reshape(one, [...x.shape.slice(0, a), ...known.shape, ...x.shape.slice(a + 1)]);
  }
  return gather(x, reshape(indices(c, places), known.shape), axis);
}

function tiled(c: NodeContext): Value {
  const repeats = c.numbers(1, 'how often it repeats');
  return repeats.reduce((y, count, axis) => concat(new Array<Value>(count).fill(y), axis), c.value(0));
}

function splitUp(c: NodeContext): readonly Value[] {
  const x = c.value(0);
  const given = c.int('axis', 0);
  const extent = x.shape[given < 0 ? given + x.rank : given]!;
  const parts = c.node.outputs.length;
  const sizes = c.ints('split') ?? (c.has(1) ? c.numbers(1, 'its sizes') : undefined);
  if (sizes) return split(x, sizes, given);
  const size = Math.ceil(extent / parts);
  return split(
    x,
    Array.from({ length: parts }, (_, i) => Math.min(size, extent - i * size)),
    given,
  );
}

function depthToSpace(c: NodeContext): Value {
  const x = c.value(0);
  const b = c.int('blocksize', 1);
  const mode = c.string('mode', 'DCR');
  c.must('mode', mode, 'DCR', 'CRD');
  const [n, channels, h, w] = x.shape as [number, number, number, number];
  const depth = channels / (b * b);
  const y =
    mode === 'DCR'
      ? transpose(reshape(x, [n, b, b, depth, h, w]), [0, 3, 4, 1, 5, 2])
      : transpose(reshape(x, [n, depth, b, b, h, w]), [0, 1, 4, 2, 5, 3]);
  return reshape(y, [n, depth, h * b, w * b]);
}

function spaceToDepth(c: NodeContext): Value {
  const x = c.value(0);
  const b = c.int('blocksize', 1);
  const [n, channels, h, w] = x.shape as [number, number, number, number];
  const y = transpose(reshape(x, [n, channels, h / b, b, w / b, b]), [0, 3, 5, 1, 2, 4]);
  return reshape(y, [n, channels * b * b, h / b, w / b]);
}

const castTargets = {
  1: 'float32',
  10: 'float32',
  11: 'float32',
  16: 'float32',
  6: 'int64',
  7: 'int64',
  9: 'bool',
} as const;

/** How each operator of a file is said in ours. The default domain's, unless a domain stands before the name. */
export const builders: Readonly<Record<string, Build>> = {
  Identity: (c) => c.value(0),
  // Nothing is dropped at inference.
  Dropout: (c) => c.value(0),
  Cast: (c) => {
    const to = c.int('to', 0);
    c.must('to', to, ...Object.keys(castTargets).map(Number));
    return cast(c.value(0), castTargets[to as keyof typeof castTargets]);
  },
  CastLike: (c) => cast(c.value(0), c.value(1).dtype),
  Neg: unary(neg),
  Abs: unary(abs),
  Sign: unary(sign),
  Exp: unary(exp),
  Log: unary(log),
  Sqrt: unary(sqrt),
  Reciprocal: unary(reciprocal),
  Sigmoid: unary(sigmoid),
  Tanh: unary(tanh),
  Erf: unary(erf),
  Sin: unary(sin),
  Cos: unary(cos),
  Relu: unary(relu),
  Not: unary(not),
  Softplus: unary(softplus),
  Softsign: unary((x) => div(x, add(abs(x), 1))),
  HardSwish: unary((x) => mul(x, clamp(add(mul(x, 1 / 6), 0.5), 0, 1))),
  Mish: unary((x) => mul(x, tanh(softplus(x)))),
  LeakyRelu: (c) => leakyRelu(c.value(0), c.float('alpha', 0.01)),
  HardSigmoid: (c) => clamp(add(mul(c.value(0), c.float('alpha', 0.2)), c.float('beta', 0.5)), 0, 1),
  Elu: (c) => {
    const x = c.value(0);
    return where(greater(x, 0), x, mul(sub(exp(minimum(x, 0)), 1), c.float('alpha', 1)));
  },
  Celu: (c) => {
    const x = c.value(0);
    const alpha = c.float('alpha', 1);
    return where(greater(x, 0), x, mul(sub(exp(minimum(div(x, alpha), 0)), 1), alpha));
  },
  Selu: (c) => {
    const x = c.value(0);
    const [alpha, gamma] = [c.float('alpha', 1.67326319), c.float('gamma', 1.05070102)];
    return mul(where(greater(x, 0), x, mul(sub(exp(minimum(x, 0)), 1), alpha)), gamma);
  },
  PRelu: (c) => {
    const x = c.value(0);
    return where(greater(x, 0), x, mul(x, c.value(1)));
  },
  ThresholdedRelu: (c) => {
    const x = c.value(0);
    return where(greater(x, c.float('alpha', 1)), x, 0);
  },
  Gelu: (c) => {
    const x = c.value(0);
    if (c.string('approximate', 'none') === 'none') return gelu(x);
    const inner = mul(add(x, mul(mul(square(x), x), 0.044715)), Math.sqrt(2 / Math.PI));
    return mul(mul(x, 0.5), add(tanh(inner), 1));
  },
  'com.microsoft.Gelu': unary(gelu),
  'com.microsoft.QuickGelu': (c) => {
    c.must('alpha', Math.round(c.float('alpha', 1.702) * 1e6) / 1e6, 1.702);
    return quickGelu(c.value(0));
  },
  Clip: (c) => {
    const bounded = c.has(1) ? maximum(c.value(0), c.value(1)) : c.value(0);
    return c.has(2) ? minimum(bounded, c.value(2)) : bounded;
  },
  Add: binary(add),
  Sub: binary(sub),
  Mul: binary(mul),
  Div: binary(div),
  Pow: (c) => {
    const exponent = c.host(1);
    // A gradient by way of x^(e - 1) is right for whole exponents and negative x only as products.
    if (exponent?.data.length === 1 && exponent.data[0] === 2) return square(c.value(0));
    return pow(c.value(0), cast(c.value(1), c.value(0).dtype));
  },
  Sum: chain(add),
  Max: chain(maximum),
  Min: chain(minimum),
  Mean: (c) => div(c.values().reduce(add), c.count),
  Where: (c) => where(c.value(0), c.value(1), c.value(2)),
  Equal: binary(equal),
  Less: binary(less),
  Greater: binary(greater),
  LessOrEqual: binary((a, b) => not(greater(a, b))),
  GreaterOrEqual: binary((a, b) => not(less(a, b))),
  And: binary(and),
  Or: binary(or),
  MatMul: (c) => multiply(c.value(0), c.value(1)),
  Einsum: (c) => einsum(c.string('equation', ''), c.values()),
  Gemm: (c) =>
    gemm(c.value(0), c.value(1), {
      c: c.has(2) ? c.value(2) : undefined,
      transA: c.int('transA', 0) === 1,
      transB: c.int('transB', 0) === 1,
      alpha: c.float('alpha', 1),
      beta: c.float('beta', 1),
    }),
  Conv: convolution,
  ConvTranspose: transposedConvolution,
  AveragePool: (c) => pooling(c, 'average'),
  MaxPool: (c) => {
    if (c.node.outputs.slice(1).some((name) => name !== '')) throw new ImportFault('its indices are read');
    return pooling(c, 'max');
  },
  GlobalAveragePool: (c) => mean(c.value(0), spatial(c), { keepDims: true }),
  GlobalMaxPool: (c) => max(c.value(0), spatial(c), { keepDims: true }),
  Resize: resize,
  Reshape: (c) => reshape(c.value(0), reshapeTarget(c)),
  Flatten: (c) => {
    const x = c.value(0);
    const axis = c.int('axis', 1);
    const outer = x.shape.slice(0, axis < 0 ? axis + x.rank : axis).reduce((n, d) => n * d, 1);
    return reshape(x, [outer, x.size / outer]);
  },
  Squeeze: (c) => reshape(c.value(0), squeezedShape(c)),
  Unsqueeze: (c) => reshape(c.value(0), unsqueezedShape(c)),
  Transpose: (c) => {
    const x = c.value(0);
    return transpose(x, c.ints('perm') ?? x.shape.map((_, i) => x.rank - 1 - i));
  },
  Concat: (c) => concat(c.values(), c.int('axis', 0)),
  Split: splitUp,
  Slice: (c) =>
    slicedAxes(c, c.shape(0).length).reduce((x, { axis, start, end, step }) => {
      const { first, count } = sliceRange(x.shape[axis]!, start, end, step);
      if (count < 1) throw new ImportFault('nothing is left of it');
      const past = first + count * step;
      return slice(x, axis, first, past < 0 ? past - x.shape[axis]! : past, step);
    }, c.value(0)),
  Pad: padded,
  Expand: (c) => {
    const x = c.value(0);
    const asked = c.numbers(1, 'its shape');
    const rank = Math.max(asked.length, x.rank);
    const at = (shape: readonly number[], i: number): number => shape[i - rank + shape.length] ?? 1;
    return expand(
      x,
      Array.from({ length: rank }, (_, i) => (at(asked, i) === 1 ? at(x.shape, i) : at(asked, i))),
    );
  },
  Tile: tiled,
  Gather: gathered,
  DepthToSpace: depthToSpace,
  SpaceToDepth: spaceToDepth,
  ReduceSum: reduce(sum),
  ReduceMean: reduce(mean),
  ReduceMax: reduce(max),
  ReduceMin: reduce(min),
  ReduceL1: reduce(sum, abs),
  ReduceL2: reduce(sum, square, sqrt),
  ReduceSumSquare: reduce(sum, square),
  ReduceLogSum: reduce(sum, undefined, log),
  ReduceLogSumExp: (c) => {
    const x = c.value(0);
    const axes = c.axes(x.rank);
    const highest = max(x, axes, { keepDims: true });
    const total = add(log(sum(exp(sub(x, highest)), axes, { keepDims: true })), highest);
    if (c.int('keepdims', 1) === 1) return total;
    return reshape(
      total,
      x.shape.filter((_, i) => axes && !axes.includes(i)),
    );
  },
  ArgMax: (c) => {
    const x = c.value(0);
    const axis = c.int('axis', 0);
    const found = argMax(x, axis);
    if (c.int('keepdims', 1) === 0) return found;
    return reshape(
      found,
      x.shape.map((d, i) => (i === (axis < 0 ? axis + x.rank : axis) ? 1 : d)),
    );
  },
  Softmax: softmaxOf,
  LogSoftmax: (c) => log(softmaxOf(c)),
  LayerNormalization: layerNormalization,
  GroupNormalization: groupNormalization,
  InstanceNormalization: (c) => {
    const x = c.value(0);
    return normalizedGroups(x, x.shape[1]!, c.value(1), c.value(2), c.float('epsilon', 1e-5));
  },
  BatchNormalization: batchNormalization,
  LpNormalization: (c) => {
    const x = c.value(0);
    const p = c.int('p', 2);
    c.must('p', p, 1, 2);
    const axis = [c.int('axis', -1)];
    const keep = { keepDims: true };
    return div(x, p === 1 ? sum(abs(x), axis, keep) : sqrt(sum(square(x), axis, keep)));
  },
};

const spatial = (c: NodeContext): number[] => c.shape(0).flatMap((_, i) => (i >= 2 ? [i] : []));

/** Operators that only tell what the importer knows anyway. */
export const shapeReaders: Readonly<Record<string, (c: NodeContext) => ReturnType<typeof hostInts>>> = {
  Shape: (c) => {
    const shape = c.shape(0);
    const [start, end] = [c.int('start', 0), c.int('end', shape.length)];
    return hostInts(shape.slice(start, end));
  },
  Size: (c) => hostInts([c.shape(0).reduce((n, d) => n * d, 1)], []),
};
