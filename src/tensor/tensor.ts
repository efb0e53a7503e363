import type { DType, StorageOf } from './dtype.js';
import { decodeBfloat16, decodeHalf, encodeBfloat16, encodeHalf } from './half.js';

export type Shape = readonly number[];

/** A dense row-major array on the host. */
export interface Tensor<D extends DType = DType> {
  readonly dtype: D;
  readonly shape: Shape;
  readonly data: StorageOf[D];
}

/** Number of elements of a shape; 1 for a scalar. */
export function elementCount(shape: Shape): number {
  return shape.reduce((n, d) => n * d, 1);
}

/** Wraps a typed array without copying. Throws a RangeError when its length does not fit the shape. */
export function tensor<D extends DType>(dtype: D, shape: Shape, data: StorageOf[D]): Tensor<D> {
  if (data.length !== elementCount(shape)) {
    throw new RangeError(
      `internal: ${dtype}[${shape.join(', ')}] needs ${elementCount(shape)} elements, got ${data.length}`,
    );
  }
  return { dtype, shape: [...shape], data };
}

export function zeros(shape: Shape): Tensor<'float32'> {
  return tensor('float32', shape, new Float32Array(elementCount(shape)));
}

export function full(shape: Shape, value: number): Tensor<'float32'> {
  return tensor('float32', shape, new Float32Array(elementCount(shape)).fill(value));
}

export function float32(shape: Shape, values: ArrayLike<number>): Tensor<'float32'> {
  return tensor('float32', shape, values instanceof Float32Array ? values : Float32Array.from(values));
}

export function int64(shape: Shape, values: ArrayLike<number>): Tensor<'int64'> {
  return tensor('int64', shape, BigInt64Array.from(Array.from(values, (v) => BigInt(v))));
}

/** Any element type as 32-bit floats; the same tensor when it already is. Integers beyond 2^24 are rounded. */
export function toFloat32(t: Tensor): Tensor<'float32'> {
  const { shape } = t;
  switch (t.dtype) {
    case 'float32':
      return t as Tensor<'float32'>;
    case 'float16':
      return float32(shape, decodeHalf(t.data as Uint16Array));
    case 'bfloat16':
      return float32(shape, decodeBfloat16(t.data as Uint16Array));
    case 'int64':
      return float32(shape, Float32Array.from(t.data as BigInt64Array, Number));
    default:
      return float32(shape, Float32Array.from(t.data as Int32Array | Uint8Array));
  }
}

/** 32-bit floats in another floating-point type, rounded to nearest even. */
export function fromFloat32(t: Tensor<'float32'>, dtype: 'float32' | 'float16' | 'bfloat16'): Tensor {
  if (dtype === 'float32') return t;
  return tensor(dtype, t.shape, dtype === 'float16' ? encodeHalf(t.data) : encodeBfloat16(t.data));
}
