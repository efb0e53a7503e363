import {
  concatHost,
  expandHost,
  gatherHost,
  type HostTensor,
  hostInts,
  hostTensor,
  mapHost,
  reduceHost,
  reshapeHost,
  sliceHost,
  transposeHost,
} from './host-tensor.js';
import { ImportFault, type NodeContext } from './node-context.js';

/** What works a node out while the graph is imported, from inputs that are all known. */
export type Fold = (c: NodeContext) => HostTensor | readonly HostTensor[];

/** Type numbers of ONNX's Cast. */
const castTypes: Readonly<Record<number, HostTensor['dtype']>> = {
  1: 'float32',
  10: 'float32',
  11: 'float32',
  16: 'float32',
  2: 'int64',
  3: 'int64',
  5: 'int64',
  6: 'int64',
  7: 'int64',
  9: 'bool',
};

const all = (c: NodeContext): HostTensor[] => Array.from({ length: c.count }, (_, i) => c.host(i)!);
const whole = ({ dtype }: HostTensor): boolean => dtype !== 'float32';

const arithmetic =
  (f: (a: number, b: number) => number): Fold =>
  (c) =>
    all(c).reduce((a, b) => mapHost(undefined, [a, b], f));
const comparison =
  (f: (a: number, b: number) => boolean): Fold =>
  (c) =>
    mapHost('bool', all(c), (a, b) => Number(f(a!, b!)));
const pointwise =
  (f: (x: number) => number): Fold =>
  (c) =>
    mapHost(undefined, [c.host(0)!], f);

const reduction =
  (f: (values: readonly number[]) => number): Fold =>
  (c) => {
    const x = c.host(0)!;
    const axes = c.axes(x.shape.length) ?? x.shape.map((_, i) => i);
    return reduceHost(x, axes, c.int('keepdims', 1) === 1, f);
  };

/** Extents of a slice along one axis, as ONNX clamps them. */
export function sliceRange(
  extent: number,
  start: number,
  end: number,
  step: number,
): { first: number; count: number } {
  if (step === 0) throw new ImportFault('its step is 0');
  const clamp = (v: number, low: number, high: number): number =>
    Math.min(high, Math.max(low, v < 0 ? v + extent : v));
  const first = step > 0 ? clamp(start, 0, extent) : clamp(start, 0, extent - 1);
  const past = step > 0 ? clamp(end, 0, extent) : clamp(end, -1, extent - 1);
  // Before the front cannot be written as an offset from the back.
  const last = step < 0 && end < -extent ? -1 : past;
  return { first, count: Math.max(0, Math.ceil((last - first) / step)) };
}

/** Start, end, axis and step of each axis that a Slice touches, from attributes or inputs. */
export function slicedAxes(
  c: NodeContext,
  rank: number,
): { axis: number; start: number; end: number; step: number }[] {
  const starts = c.numbers(1, 'where it starts');
  const ends = c.numbers(2, 'where it ends');
  const axes = c.has(3) ? c.numbers(3, 'its axes') : starts.map((_, i) => i);
  const steps = c.has(4) ? c.numbers(4, 'its steps') : starts.map(() => 1);
  return axes.map((a, i) => ({
    axis: a < 0 ? a + rank : a,
    start: starts[i]!,
    end: ends[i]!,
    step: steps[i]!,
  }));
}

/** The shape that Reshape asks for, with 0 for "as it was". */
export function reshapeTarget(c: NodeContext): number[] {
  const target = c.numbers(1, 'its shape');
  if (c.int('allowzero', 0) === 1) return target;
  return target.map((d, i) => (d === 0 ? c.shape(0)[i]! : d));
}

/** The axes that Unsqueeze adds, of the result. */
export function unsqueezedShape(c: NodeContext): number[] {
  const axes = c.ints('axes') ?? c.numbers(1, 'its axes');
  const rank = c.shape(0).length + axes.length;
  const added = axes.map((a) => (a < 0 ? a + rank : a));
  const rest = [...c.shape(0)];
  return Array.from({ length: rank }, (_, i) => (added.includes(i) ? 1 : rest.shift()!));
}

/** What is left when Squeeze has dropped its axes. */
export function squeezedShape(c: NodeContext): number[] {
  const shape = c.shape(0);
  const axes = c.axes(shape.length) ?? shape.flatMap((d, i) => (d === 1 ? [i] : []));
  return shape.filter((_, i) => !axes.includes(i));
}

/** Operators that can be worked out when all that goes in is known: constants and shapes. */
export const folds: Readonly<Record<string, Fold>> = {
  Constant: (c) => {
    const given = c.node.attributes;
    const tensor = given.get('value')?.tensor;
    if (tensor?.bytes instanceof Uint8Array) return hostTensor({ ...tensor, bytes: tensor.bytes });
    const [float, int] = [given.get('value_float')?.float, given.get('value_int')?.int];
    if (float !== undefined) return { dtype: 'float32', shape: [], data: [Math.fround(float)] };
    if (int !== undefined) return hostInts([int], []);
    const [floats, ints] = [given.get('value_floats')?.floats, given.get('value_ints')?.ints];
    if (floats) return { dtype: 'float32', shape: [floats.length], data: floats };
    if (ints) return hostInts(ints);
    throw new ImportFault('its value is of a kind that is not supported');
  },
  ConstantOfShape: (c) => {
    const shape = c.numbers(0, 'its shape');
    const value = c.node.attributes.get('value')?.tensor;
    const one: HostTensor =
      value?.bytes instanceof Uint8Array
        ? hostTensor({ ...value, bytes: value.bytes })
        : { dtype: 'float32', shape: [1], data: [0] };
    return { ...one, shape, data: new Array(shape.reduce((n, d) => n * d, 1)).fill(one.data[0]) };
  },
  Identity: (c) => c.host(0)!,
  Cast: (c) => {
    const dtype = castTypes[c.int('to', 0)];
    if (!dtype) throw new ImportFault(`it casts to the type ${c.int('to', 0)}`);
    return mapHost(
      dtype,
      [c.host(0)!],
      dtype === 'bool' ? (v) => Number(v !== 0) : dtype === 'int64' ? Math.trunc : (v) => v,
    );
  },
  Add: arithmetic((a, b) => a + b),
  Sub: arithmetic((a, b) => a - b),
  Mul: arithmetic((a, b) => a * b),
  Div: (c) =>
    mapHost(undefined, all(c), whole(c.host(0)!) ? (a, b) => Math.trunc(a! / b!) : (a, b) => a! / b!),
  Mod: (c) =>
    mapHost(
      undefined,
      all(c),
      c.int('fmod', 0) === 1 ? (a, b) => a! % b! : (a, b) => a! - b! * Math.floor(a! / b!),
    ),
  Pow: arithmetic((a, b) => a ** b),
  Min: arithmetic(Math.min),
  Max: arithmetic(Math.max),
  Neg: pointwise((x) => -x),
  Abs: pointwise(Math.abs),
  Floor: pointwise(Math.floor),
  Ceil: pointwise(Math.ceil),
  Round: pointwise((x) => {
    const up = Math.round(x);
    return Math.abs(x % 1) === 0.5 && up % 2 !== 0 ? up - 1 : up;
  }),
  Sqrt: pointwise(Math.sqrt),
  Exp: pointwise(Math.exp),
  Log: pointwise(Math.log),
  Not: pointwise((x) => Number(!x)),
  Equal: comparison((a, b) => a === b),
  Less: comparison((a, b) => a < b),
  Greater: comparison((a, b) => a > b),
  LessOrEqual: comparison((a, b) => a <= b),
  GreaterOrEqual: comparison((a, b) => a >= b),
  And: comparison((a, b) => a !== 0 && b !== 0),
  Or: comparison((a, b) => a !== 0 || b !== 0),
  Where: (c) => mapHost(c.host(1)!.dtype, all(c), (condition, a, b) => (condition ? a! : b!)),
  Reshape: (c) => reshapeHost(c.host(0)!, reshapeTarget(c)),
  Flatten: (c) => {
    const { shape } = c.host(0)!;
    const axis = c.int('axis', 1);
    const outer = shape.slice(0, axis < 0 ? axis + shape.length : axis).reduce((n, d) => n * d, 1);
    return reshapeHost(c.host(0)!, [outer, -1]);
  },
  Squeeze: (c) => reshapeHost(c.host(0)!, squeezedShape(c)),
  Unsqueeze: (c) => reshapeHost(c.host(0)!, unsqueezedShape(c)),
  Transpose: (c) => {
    const x = c.host(0)!;
    return transposeHost(x, c.ints('perm') ?? x.shape.map((_, i) => x.shape.length - 1 - i));
  },
  Expand: (c) => expandHost(c.host(0)!, c.numbers(1, 'its shape')),
  Concat: (c) => concatHost(all(c), c.int('axis', 0)),
  Gather: (c) => gatherHost(c.host(0)!, c.host(1)!, c.int('axis', 0)),
  Slice: (c) =>
    slicedAxes(c, c.shape(0).length).reduce((x, { axis, start, end, step }) => {
      const range = sliceRange(x.shape[axis]!, start, end, step);
      return sliceHost(x, axis, range.first, range.count, step);
    }, c.host(0)!),
  Range: (c) => {
    const [start, limit, delta] = [0, 1, 2].map((i) => c.host(i)!.data[0]!) as [number, number, number];
    const length = Math.max(0, Math.ceil((limit - start) / delta));
    const data = Array.from({ length }, (_, i) => start + i * delta);
    return { dtype: c.host(0)!.dtype, shape: [length], data };
  },
  ReduceSum: reduction((v) => v.reduce((a, b) => a + b, 0)),
  ReduceProd: reduction((v) => v.reduce((a, b) => a * b, 1)),
  ReduceMax: reduction((v) => Math.max(...v)),
  ReduceMin: reduction((v) => Math.min(...v)),
};
