import { int64, type Shape } from '../tensor/tensor.js';
import type { Value } from './graph.js';
import { normalizeAxis, reshape } from './movement.js';
import type { Operator } from './operators.js';

export interface ReduceOptions {
  /** Keep the reduced axes with extent 1. */
  readonly keepDims?: boolean;
}

function reduce(
  operator: Operator,
  x: Value,
  axes: readonly number[] | undefined,
  { keepDims = false }: ReduceOptions,
): Value {
  const reduced = (axes ?? x.shape.map((_, i) => i))
    .map((a) => normalizeAxis(a, x.rank))
    .sort((a, b) => a - b);
  if (reduced.length === 0) return x;
  const shape: Shape = keepDims
    ? x.shape.map((d, i) => (reduced.includes(i) ? 1 : d))
    : x.shape.filter((_, i) => !reduced.includes(i));
  const operand = x.graph.constant(int64([reduced.length], reduced), 'axes');
  return x.graph.add(operator, [x, operand], [{ dtype: x.dtype, shape }], {
    keepdims: { int: Number(keepDims) },
    noop_with_empty_axes: { int: 0 },
  })[0]!;
}

/** Reductions over these axes, or over all of them. */
export const sum = (x: Value, axes?: readonly number[], options: ReduceOptions = {}): Value =>
  reduce('ReduceSum', x, axes, options);
export const mean = (x: Value, axes?: readonly number[], options: ReduceOptions = {}): Value =>
  reduce('ReduceMean', x, axes, options);
/** The gradient of a maximum (minimum) is shared equally among the elements that attain it, as PyTorch's amax (amin). */
export const max = (x: Value, axes?: readonly number[], options: ReduceOptions = {}): Value =>
  reduce('ReduceMax', x, axes, options);
export const min = (x: Value, axes?: readonly number[], options: ReduceOptions = {}): Value =>
  reduce('ReduceMin', x, axes, options);

/** Index (int64) of the first maximum along an axis, which is dropped. */
export function argMax(x: Value, axis: number): Value {
  const a = normalizeAxis(axis, x.rank);
  const shape = x.shape.filter((_, i) => i !== a);
  return x.graph.add('ArgMax', [x], [{ dtype: 'int64', shape }], {
    axis: { int: a },
    keepdims: { int: 0 },
  })[0]!;
}

/** Sums x down to a shape that broadcasts to x's: what undoes a broadcast. */
export function sumTo(x: Value, shape: Shape): Value {
  const lead = x.rank - shape.length;
  const axes = x.shape.flatMap((d, i) => (i < lead || (shape[i - lead] === 1 && d !== 1) ? [i] : []));
  return reshape(axes.length ? sum(x, axes, { keepDims: true }) : x, shape);
}
