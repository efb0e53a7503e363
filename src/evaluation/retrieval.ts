import type { Tensor } from '../tensor/tensor.js';
import { cosine, normalized, type UnitVector } from './similarity.js';

/** The cosines [N, M] between the rows of two sets of embeddings, [N, D] and [M, D], row by row. */
export function cosines(a: Tensor<'float32'>, b: Tensor<'float32'>): number[] {
  const columns = unitRows(b);
  return unitRows(a).flatMap((row) => columns.map((column) => cosine(row, column)));
}

function unitRows({ shape, data }: Tensor<'float32'>): UnitVector[] {
  const [rows, dim] = shape as [number, number];
  return Array.from({ length: rows }, (_, i) => normalized(data.subarray(i * dim, (i + 1) * dim)));
}

/**
 * Top-1 retrieval: the share of queries [N, D] whose nearest neighbour by cosine in the gallery [N, D] is the row of the same number. Of equal neighbours the
 * earlier counts.
 */
export function top1Accuracy(queries: Tensor<'float32'>, gallery: Tensor<'float32'>): number {
  const count = queries.shape[0]!;
  const columns = gallery.shape[0]!;
  const similarity = cosines(queries, gallery);
  let right = 0;
  for (let i = 0; i < count; i++) {
    let best = 0;
    for (let j = 1; j < columns; j++) {
      if (similarity[i * columns + j]! > similarity[i * columns + best]!) best = j;
    }
    if (best === i) right++;
  }
  return right / count;
}
