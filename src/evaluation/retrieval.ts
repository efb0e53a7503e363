import type { Tensor } from '../tensor/tensor.js';

/** The cosines [N, M] between the rows of two sets of embeddings, [N, D] and [M, D]. */
export function cosines(a: Tensor<'float32'>, b: Tensor<'float32'>): Float64Array {
  const dim = a.shape[1]!;
  const [unitA, unitB] = [unitRows(a), unitRows(b)];
  const [rows, columns] = [a.shape[0]!, b.shape[0]!];
  const result = new Float64Array(rows * columns);
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) {
      let dot = 0;
      for (let k = 0; k < dim; k++) dot += unitA[i * dim + k]! * unitB[j * dim + k]!;
      result[i * columns + j] = dot;
    }
  }
  return result;
}

function unitRows({ shape, data }: Tensor<'float32'>): Float64Array {
  const [rows, dim] = shape as [number, number];
  const unit = new Float64Array(rows * dim);
  for (let i = 0; i < rows; i++) {
    let squares = 0;
    for (let k = 0; k < dim; k++) squares += data[i * dim + k]! ** 2;
    const length = Math.sqrt(squares) || 1;
    for (let k = 0; k < dim; k++) unit[i * dim + k] = data[i * dim + k]! / length;
  }
  return unit;
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
