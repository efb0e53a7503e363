import { bytesPerElement, type DType, storageConstructors } from './dtype.js';
import { elementCount, type Shape, type Tensor, tensor } from './tensor.js';

/** Joins tensors of one type along their first axis: [a, ...] and [b, ...] to [a + b, ...]. At least one. */
export function concatRows<D extends DType>(parts: readonly Tensor<D>[]): Tensor<D> {
  const { dtype, shape } = parts[0]!;
  const [, ...row] = shape;
  if (parts.some((p) => p.dtype !== dtype || p.shape.slice(1).join() !== row.join())) {
    const seen = parts.map((p) => `${p.dtype} [${p.shape.join(', ')}]`);
    throw new RangeError(`internal: these are not rows of one tensor: ${[...new Set(seen)].join(', ')}`);
  }
  const joined: Shape = [parts.reduce((n, p) => n + p.shape[0]!, 0), ...row];
  const bytes = new Uint8Array(elementCount(joined) * bytesPerElement[dtype]);
  let at = 0;
  for (const { data } of parts) {
    bytes.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), at);
    at += data.byteLength;
  }
  return tensor(dtype, joined, new storageConstructors[dtype](bytes.buffer));
}

/** Joins the rows of a batch, given as tensors by name; every row has the same names. */
export function batchRows<D extends DType>(
  rows: readonly Readonly<Record<string, Tensor<D>>>[],
): Record<string, Tensor<D>> {
  const names = Object.keys(rows[0] ?? {});
  return Object.fromEntries(names.map((name) => [name, concatRows(rows.map((row) => row[name]!))]));
}
