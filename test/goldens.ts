import { readFileSync } from 'node:fs';
import { storageConstructors } from '../src/tensor/dtype.js';
import { elementCount, type Tensor, tensor, toFloat32 } from '../src/tensor/tensor.js';

const folder = new URL('../../test/goldens/', import.meta.url);

const elementTypes = { F32: 'float32', F16: 'float16', I64: 'int64', BOOL: 'bool', U8: 'uint8' } as const;

type Header = Record<
  string,
  { dtype: keyof typeof elementTypes; shape: number[]; data_offsets: [number, number] }
>;

/** The tensors of a golden `.safetensors` file. Read here in a few lines of its own, so that no oracle rests on the code under test. */
export function goldenTensors(file: string): Map<string, Tensor> {
  const bytes = readFileSync(new URL(file, folder));
  const headerLength = Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.toString('utf8', 8, 8 + headerLength)) as Header;
  const tensors = new Map<string, Tensor>();
  for (const [name, { dtype, shape, data_offsets: offsets }] of Object.entries(header)) {
    if (name === '__metadata__') continue;
    const type = elementTypes[dtype];
    const [start, end] = offsets.map((o) => 8 + headerLength + o) as [number, number];
    const data = new storageConstructors[type](
      new Uint8Array(bytes.subarray(start, end)).buffer,
      0,
      elementCount(shape),
    );
    tensors.set(name, tensor(type, shape, data as never));
  }
  return tensors;
}

/** The tensors whose names begin with a prefix, by the rest of their names. */
export function withoutPrefix(tensors: ReadonlyMap<string, Tensor>, prefix: string): Map<string, Tensor> {
  const found = [...tensors].filter(([name]) => name.startsWith(prefix));
  return new Map(found.map(([name, t]) => [name.slice(prefix.length), t]));
}

/** A golden JSON file. */
export function goldenJson<T>(file: string): T {
  return JSON.parse(readFileSync(new URL(file, folder), 'utf8')) as T;
}

/** The absolute path of a golden file or folder. */
export function goldenPath(file: string): URL {
  return new URL(file, folder);
}

/** max |a - b| / max |b|; infinite where the shapes differ or a number is missing. Where b is all zero, a must be too. */
export function relativeError(actual: Tensor, expected: Tensor): number {
  if (actual.shape.join() !== expected.shape.join()) return Number.POSITIVE_INFINITY;
  const a = toFloat32(actual).data;
  const b = toFloat32(expected).data;
  let difference = 0;
  let scale = 0;
  for (let i = 0; i < b.length; i++) {
    const d = Math.abs(a[i]! - b[i]!);
    if (Number.isNaN(d)) return Number.POSITIVE_INFINITY;
    difference = Math.max(difference, d);
    scale = Math.max(scale, Math.abs(b[i]!));
  }
  return difference === 0 ? 0 : difference / scale;
}
