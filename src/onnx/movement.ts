import { bytesPerElement } from '../tensor/dtype.js';
import { elementCount, int64, type Shape } from '../tensor/tensor.js';
import { broadcastShapes, cast, scalar } from './elementwise.js';
import { GraphError, type Value } from './graph.js';

/** An axis counted from the front; negative axes count from the back. */
export function normalizeAxis(axis: number, rank: number): number {
  const a = axis < 0 ? axis + rank : axis;
  if (!Number.isInteger(axis) || a < 0 || a >= rank)
    throw new GraphError(`axis ${axis} of a tensor of rank ${rank}`);
  return a;
}

const ints = (x: Value, values: readonly number[], name: string): Value =>
  x.graph.constant(int64([values.length], values), name);

/** The same elements in another shape; one extent may be -1. The same value when the shape does not change. */
export function reshape(x: Value, shape: Shape): Value {
  const known = elementCount(shape.filter((d) => d !== -1));
  const full = shape.map((d) => (d === -1 ? x.size / known : d));
  if (elementCount(full) !== x.size || full.some((d) => !Number.isInteger(d))) {
    throw new GraphError(`${x} cannot take the shape [${shape.join(', ')}]`);
  }
  if (full.join() === x.shape.join()) return x;
  return x.graph.add('Reshape', [x, ints(x, full, 'shape')], [{ dtype: x.dtype, shape: full }])[0]!;
}

export function squeeze(x: Value, axes: readonly number[]): Value {
  const dropped = axes.map((a) => normalizeAxis(a, x.rank));
  if (dropped.some((a) => x.shape[a] !== 1))
    throw new GraphError(`${x} cannot lose the axes ${dropped.join(', ')}`);
  return reshape(
    x,
    x.shape.filter((_, i) => !dropped.includes(i)),
  );
}

/** Adds axes of extent 1 at these places of the result. */
export function unsqueeze(x: Value, axes: readonly number[]): Value {
  const rank = x.rank + axes.length;
  const added = axes.map((a) => normalizeAxis(a, rank));
  const rest = [...x.shape];
  return reshape(
    x,
    Array.from({ length: rank }, (_, i) => (added.includes(i) ? 1 : rest.shift()!)),
  );
}

/** Axis i of the result is axis perm[i] of x. */
export function transpose(x: Value, perm: readonly number[]): Value {
  if ([...perm].sort((a, b) => a - b).join() !== x.shape.map((_, i) => i).join()) {
    throw new GraphError(`${x} cannot be permuted by [${perm.join(', ')}]`);
  }
  if (perm.every((p, i) => p === i)) return x;
  const shape = perm.map((p) => x.shape[p]!);
  return x.graph.add('Transpose', [x], [{ dtype: x.dtype, shape }], { perm: { ints: perm } })[0]!;
}

/** Exchanges the last two axes. */
export function matrixTranspose(x: Value): Value {
  const perm = x.shape.map((_, i) => i);
  return transpose(x, [...perm.slice(0, -2), x.rank - 1, x.rank - 2]);
}

export function concat(values: readonly Value[], axis: number): Value {
  const first = values[0];
  if (!first) throw new GraphError('concat of nothing');
  if (values.length === 1) return first;
  const a = normalizeAxis(axis, first.rank);
  for (const v of values) {
    if (
      v.dtype !== first.dtype ||
      v.rank !== first.rank ||
      v.shape.some((d, i) => i !== a && d !== first.shape[i])
    ) {
      throw new GraphError(`concat of ${first} and ${v} along axis ${a}`);
    }
  }
  const extent = values.reduce((n, v) => n + v.shape[a]!, 0);
  const shape = first.shape.map((d, i) => (i === a ? extent : d));
  return first.graph.add('Concat', values, [{ dtype: first.dtype, shape }], { axis: { int: a } })[0]!;
}

/** Consecutive pieces of these extents along an axis. */
export function split(x: Value, sizes: readonly number[], axis: number): readonly Value[] {
  const a = normalizeAxis(axis, x.rank);
  if (sizes.reduce((n, s) => n + s, 0) !== x.shape[a]) {
    throw new GraphError(`${x} cannot be split into [${sizes.join(', ')}] along axis ${a}`);
  }
  if (sizes.length === 1) return [x];
  const results = sizes.map((s) => ({ dtype: x.dtype, shape: x.shape.map((d, i) => (i === a ? s : d)) }));
  return x.graph.add('Split', [x, ints(x, sizes, 'sizes')], results, { axis: { int: a } });
}

/** The sizes of the parts of an axis that is split into parts of one size, which divides it. */
export const equalParts = (whole: number, size: number): number[] =>
  new Array<number>(whole / size).fill(size);

/**
 * Consecutive rows of a weight, [N, ...] -> [n, ...] each. Those of an initializer that lies in a file lie there too, one part after another: each is an initializer of its own, so that
 * nothing is copied.
 */
export function splitRows(weight: Value, sizes: readonly number[]): readonly Value[] {
  const { origin, dtype, graph } = weight;
  if (origin.kind === 'node' && origin.node.operator === 'Cast')
    return splitRows(origin.node.inputs[0]!, sizes).map((part) => cast(part, dtype));
  if (origin.kind !== 'external') return split(weight, sizes, 0);
  const [, ...rest] = weight.shape;
  const rowBytes = elementCount(rest) * bytesPerElement[dtype];
  let first = 0;
  return sizes.map((count) => {
    const location = { ...origin.location, offset: origin.location.offset + first * rowBytes };
    const name = `${weight.name}.rows_${first}`;
    first += count;
    return graph.external(name, dtype, [count, ...rest], location);
  });
}

/** Elements start, start + step, … before `end` of one axis. A negative step walks backwards, with `end` exclusive and -1 - extent for "past the front". */
export function slice(x: Value, axis: number, start: number, end: number, step = 1): Value {
  const a = normalizeAxis(axis, x.rank);
  const extent = x.shape[a]!;
  const from = start < 0 ? start + extent : start;
  const to = end < 0 ? end + extent : Math.min(end, extent);
  const count = Math.ceil((to - from) / step);
  if (!(count > 0) || from >= extent || from < 0 || to < -1) {
    throw new GraphError(`slice ${start}:${end}:${step} of axis ${a} of ${x}`);
  }
  if (step === 1 && count === extent) return x;
  const operands = [start, end, a, step].map((v) => ints(x, [v], 'slice_bound'));
  const shape = x.shape.map((d, i) => (i === a ? count : d));
  return x.graph.add('Slice', [x, ...operands], [{ dtype: x.dtype, shape }])[0]!;
}

/** The elements in reverse order along these axes. */
export function flip(x: Value, axes: readonly number[]): Value {
  return axes.reduce((v, axis) => {
    const extent = v.shape[normalizeAxis(axis, v.rank)]!;
    return extent === 1 ? v : slice(v, axis, extent - 1, -1 - extent, -1);
  }, x);
}

/** Puts channels side by side, the first C at the first place of each block of b by b pixels: [N, b * b * C, H, W] -> [N, C, b H, b W]. */
export function depthToSpace(x: Value, block: number): Value {
  const [n, depth, h, w] = x.shape as [number, number, number, number];
  const channels = depth / (block * block);
  if (x.rank !== 4 || !Number.isInteger(channels)) throw new GraphError(`depthToSpace of ${x} by ${block}`);
  const shape = [n, channels, block * h, block * w];
  return x.graph.add('DepthToSpace', [x], [{ dtype: x.dtype, shape }], {
    blocksize: { int: block },
    mode: { string: 'DCR' },
  })[0]!;
}

/** What `depthToSpace` undoes: [N, C, b H, b W] -> [N, b * b * C, H, W]. */
export function spaceToDepth(x: Value, block: number): Value {
  const [n, c, h, w] = x.shape as [number, number, number, number];
  if (x.rank !== 4 || h % block !== 0 || w % block !== 0)
    throw new GraphError(`spaceToDepth of ${x} by ${block}`);
  const shape = [n, block * block * c, h / block, w / block];
  return x.graph.add('SpaceToDepth', [x], [{ dtype: x.dtype, shape }], { blocksize: { int: block } })[0]!;
}

/** Adds [before, after] elements of a constant value at each axis. */
export function pad(x: Value, pads: readonly (readonly [number, number])[], value = 0): Value {
  if (pads.length !== x.rank || pads.flat().some((p) => p < 0)) throw new GraphError(`pads of ${x}`);
  if (pads.flat().every((p) => p === 0)) return x;
  const operand = ints(x, [...pads.map((p) => p[0]), ...pads.map((p) => p[1])], 'pads');
  const shape = x.shape.map((d, i) => d + pads[i]![0] + pads[i]![1]);
  const fill = x.graph.constant(scalar(x.dtype, value));
  return x.graph.add('Pad', [x, operand, fill], [{ dtype: x.dtype, shape }], {
    mode: { string: 'constant' },
  })[0]!;
}

/** Broadcasts to a larger shape. */
export function expand(x: Value, shape: Shape): Value {
  if (broadcastShapes(x.shape, shape).join() !== shape.join()) {
    throw new GraphError(`${x} does not expand to [${shape.join(', ')}]`);
  }
  if (x.shape.join() === shape.join()) return x;
  return x.graph.add('Expand', [x, ints(x, shape, 'shape')], [{ dtype: x.dtype, shape }])[0]!;
}

/** Picks entries of an axis by index: the axis is replaced by the axes of `indices` (int64, each in [0, extent)). */
export function gather(x: Value, indices: Value, axis: number): Value {
  const a = normalizeAxis(axis, x.rank);
  if (indices.dtype !== 'int64') throw new GraphError(`gather takes int64 indices, got ${indices}`);
  const shape = [...x.shape.slice(0, a), ...indices.shape, ...x.shape.slice(a + 1)];
  return x.graph.add('Gather', [x, indices], [{ dtype: x.dtype, shape }], { axis: { int: a } })[0]!;
}
