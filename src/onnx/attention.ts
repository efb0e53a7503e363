import { GraphError, type Value } from './graph.js';

/**
 * Scaled dot-product attention in several heads (Vaswani et al., arXiv 1706.03762, section 3.2.2) as one operator that never holds the scores of all queries over
 * all keys: queries [B, T, H*D] over keys [B, S, H*D] and values [B, S, H*E], already projected; gives [B, T, H*E]. Scores are scaled by 1 / sqrt(D).
 */
export function fusedAttention(q: Value, k: Value, v: Value, heads: number): Value {
  const [batch, queries, width] = q.shape;
  const fits = (x: Value): boolean => x.rank === 3 && x.shape[0] === batch && x.shape[2]! % heads === 0;
  if (![q, k, v].every(fits) || k.shape[2] !== width || k.shape[1] !== v.shape[1])
    throw new GraphError(`attention of ${q} over ${k} and ${v} in ${heads} heads`);
  const shape = [batch!, queries!, v.shape[2]!];
  return q.graph.add('MultiHeadAttention', [q, k, v], [{ dtype: q.dtype, shape }], {
    num_heads: { int: heads },
  })[0]!;
}
