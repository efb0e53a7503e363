import { storageConstructors } from '../../tensor/dtype.js';
import { elementCount, type Shape, type Tensor, tensor, toFloat32 } from '../../tensor/tensor.js';
import { broadcastShapes } from '../elementwise.js';
import { normalizeAxis } from '../movement.js';
import type { FileTensor } from './model.js';

/** A tensor that is known while a graph is imported: a weight, or what shapes are worked out from. */
export interface HostTensor {
  /** All floats count as float32 and all integers as int64. */
  readonly dtype: 'float32' | 'int64' | 'bool';
  readonly shape: Shape;
  readonly data: ArrayLike<number>;
}

export const hostInts = (values: readonly number[], shape: Shape = [values.length]): HostTensor => ({
  dtype: 'int64',
  shape,
  data: values,
});

/** Reads a tensor of a file whose bytes are in memory. */
export function hostTensor({ type, shape, bytes }: FileTensor & { readonly bytes: Uint8Array }): HostTensor {
  // The bytes may begin anywhere; a copy begins at 0, where every element type may.
  const { buffer } = new Uint8Array(bytes);
  if (type === 'double')
    return { dtype: 'float32', shape, data: Float32Array.from(new Float64Array(buffer)) };
  const stored = tensor(type, shape, new storageConstructors[type](buffer));
  if (type === 'bool') return { dtype: 'bool', shape, data: stored.data as Uint8Array };
  if (type === 'int64' || type === 'int32' || type === 'uint8') {
    return { dtype: 'int64', shape, data: Array.from(stored.data as ArrayLike<number | bigint>, Number) };
  }
  return { dtype: 'float32', shape, data: toFloat32(stored).data };
}

/** As a constant of a graph. */
export function graphTensor({ dtype, shape, data }: HostTensor): Tensor {
  if (dtype === 'float32')
    return tensor(dtype, shape, data instanceof Float32Array ? data : Float32Array.from(data));
  if (dtype === 'bool') return tensor(dtype, shape, Uint8Array.from(data));
  return tensor(
    dtype,
    shape,
    BigInt64Array.from(Array.from(data), (v) => BigInt(Math.trunc(v))),
  );
}

const strides = (shape: Shape): number[] => {
  const result = new Array<number>(shape.length).fill(1);
  for (let i = shape.length - 2; i >= 0; i--) result[i] = result[i + 1]! * shape[i + 1]!;
  return result;
};

/** A tensor whose element at each place is taken from a place of x. */
function taken(
  x: HostTensor,
  shape: Shape,
  from: (place: readonly number[]) => readonly number[],
): HostTensor {
  const own = strides(x.shape);
  const place = new Array<number>(shape.length).fill(0);
  const data = Array.from({ length: elementCount(shape) }, () => {
    const source = from(place).reduce((n, p, axis) => n + p * own[axis]!, 0);
    for (let axis = shape.length - 1; axis >= 0; axis--) {
      place[axis] = place[axis]! + 1;
      if (place[axis]! < shape[axis]!) break;
      place[axis] = 0;
    }
    return x.data[source]!;
  });
  return { ...x, shape, data };
}

export function reshapeHost(x: HostTensor, shape: Shape): HostTensor {
  const known = elementCount(shape.filter((d) => d !== -1));
  return { ...x, shape: shape.map((d) => (d === -1 ? elementCount(x.shape) / known : d)) };
}

export function expandHost(x: HostTensor, shape: Shape): HostTensor {
  const full = broadcastShapes(x.shape, shape);
  const lead = full.length - x.shape.length;
  return taken(x, full, (place) => x.shape.map((d, i) => (d === 1 ? 0 : place[lead + i]!)));
}

export function transposeHost(x: HostTensor, perm: readonly number[]): HostTensor {
  return taken(
    x,
    perm.map((p) => x.shape[p]!),
    (place) => perm.map((_, axis) => place[perm.indexOf(axis)]!),
  );
}

export function gatherHost(x: HostTensor, indices: HostTensor, axis: number): HostTensor {
  const a = normalizeAxis(axis, x.shape.length);
  const shape = [...x.shape.slice(0, a), ...indices.shape, ...x.shape.slice(a + 1)];
  const own = strides(indices.shape);
  const rank = indices.shape.length;
  return taken(x, shape, (place) => {
    const at = indices.data[place.slice(a, a + rank).reduce((n, p, i) => n + p * own[i]!, 0)]!;
    return [...place.slice(0, a), at < 0 ? at + x.shape[a]! : at, ...place.slice(a + rank)];
  });
}

export function sliceHost(
  x: HostTensor,
  axis: number,
  start: number,
  extent: number,
  step: number,
): HostTensor {
  const shape = x.shape.map((d, i) => (i === axis ? extent : d));
  return taken(x, shape, (place) => place.map((p, i) => (i === axis ? start + p * step : p)));
}

export function concatHost(parts: readonly HostTensor[], axis: number): HostTensor {
  const first = parts[0]!;
  const a = normalizeAxis(axis, first.shape.length);
  const shape = first.shape.map((d, i) => (i === a ? parts.reduce((n, p) => n + p.shape[a]!, 0) : d));
  const outer = elementCount(shape.slice(0, a));
  const data: number[] = [];
  for (let o = 0; o < outer; o++) {
    for (const part of parts) {
      const run = elementCount(part.shape.slice(a));
      for (let i = 0; i < run; i++) data.push(part.data[o * run + i]!);
    }
  }
  return { ...first, shape, data };
}

/** An elementwise function of one or several tensors, broadcast. */
export function mapHost(
  dtype: HostTensor['dtype'] | undefined,
  operands: readonly HostTensor[],
  f: (...values: number[]) => number,
): HostTensor {
  const shape = broadcastShapes(...operands.map((o) => o.shape));
  const full = operands.map((o) => expandHost(o, shape));
  const type = dtype ?? operands.at(-1)!.dtype;
  const round = type === 'float32' ? Math.fround : (v: number): number => v;
  const data = Array.from({ length: elementCount(shape) }, (_, i) =>
    round(f(...full.map((o) => o.data[i]!))),
  );
  return { dtype: type, shape, data };
}

/** A reduction over axes. */
export function reduceHost(
  x: HostTensor,
  axes: readonly number[],
  keepDims: boolean,
  f: (values: readonly number[]) => number,
): HostTensor {
  const kept = x.shape.map((d, i) => (axes.includes(i) ? 1 : d));
  const groups = Array.from({ length: elementCount(kept) }, (): number[] => []);
  const [own, target] = [strides(x.shape), strides(kept)];
  for (let i = 0; i < elementCount(x.shape); i++) {
    const place = x.shape.map((d, axis) => Math.floor(i / own[axis]!) % d);
    groups[place.reduce((n, p, axis) => n + (kept[axis] === 1 ? 0 : p * target[axis]!), 0)]!.push(x.data[i]!);
  }
  const shape = keepDims ? kept : x.shape.filter((_, i) => !axes.includes(i));
  return { ...x, shape, data: groups.map(f) };
}
