/** An embedding of length one. */
export type UnitVector = Float64Array;

/** A vector over its length. */
export function normalized(vector: ArrayLike<number>): UnitVector {
  const unit = Float64Array.from(vector);
  const length = Math.sqrt(unit.reduce((sum, v) => sum + v * v, 0));
  return length === 0 ? unit : unit.map((v) => v / length);
}

export function cosine(a: UnitVector, b: UnitVector): number {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i]! * b[i]!;
  return sum;
}

export function mean(values: readonly number[]): number {
  return values.reduce((sum, v) => sum + v, 0) / values.length;
}

/** The mean cosine over all pairs of one from each side: fidelity of generated pictures to real ones. */
export function meanCosine(generated: readonly UnitVector[], real: readonly UnitVector[]): number {
  return mean(generated.map((g) => mean(real.map((r) => cosine(g, r)))));
}

/** The mean cosine over all pairs of different members; undefined for fewer than two. */
export function meanCosineWithin(vectors: readonly UnitVector[]): number | undefined {
  const pairs = vectors.flatMap((a, i) => vectors.slice(i + 1).map((b) => cosine(a, b)));
  return pairs.length === 0 ? undefined : mean(pairs);
}

/** The mean distance, 1 - cosine, over all pairs of pictures of one prompt; 0 when all are the same, undefined for fewer than two. */
export function diversity(pictures: readonly UnitVector[]): number | undefined {
  const within = meanCosineWithin(pictures);
  return within === undefined ? undefined : 1 - within;
}
