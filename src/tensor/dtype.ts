/** Element types of tensors, named as in ONNX and NumPy. */
export type DType = 'float32' | 'float16' | 'bfloat16' | 'int64' | 'int32' | 'uint8' | 'bool';

/** The typed array that holds each element type; halves are raw 16-bit patterns, booleans are 0 or 1. */
export interface StorageOf {
  float32: Float32Array;
  float16: Uint16Array;
  bfloat16: Uint16Array;
  int64: BigInt64Array;
  int32: Int32Array;
  uint8: Uint8Array;
  bool: Uint8Array;
}

export const bytesPerElement: Readonly<Record<DType, number>> = {
  float32: 4,
  float16: 2,
  bfloat16: 2,
  int64: 8,
  int32: 4,
  uint8: 1,
  bool: 1,
};

type StorageConstructors = {
  readonly [D in DType]: new (
    buffer: ArrayBuffer,
    byteOffset?: number,
    length?: number,
  ) => StorageOf[D];
};

/** Typed array constructors over an existing buffer, by element type. */
export const storageConstructors: StorageConstructors = {
  float32: Float32Array,
  float16: Uint16Array,
  bfloat16: Uint16Array,
  int64: BigInt64Array,
  int32: Int32Array,
  uint8: Uint8Array,
  bool: Uint8Array,
};
