import { cast, mul } from './elementwise.js';
import { type Attributes, Graph, GraphError, type Node, type Value } from './graph.js';
import { matmul } from './linalg.js';
import { concat, equalParts, matrixTranspose, reshape, split, transpose } from './movement.js';
import { softmax } from './norm.js';

/**
 * Scaled dot-product attention in several heads (Vaswani et al., arXiv 1706.03762, section 3.2.2) as one operator that never holds the scores of all queries over
 * all keys: queries [B, T, H*D] over keys [B, S, H*D] and values [B, S, H*E], already projected; gives [B, T, H*E]. Scores are scaled by 1 / sqrt(D). Where plain
 * operators take its place, in the backward pass for one, `tile` is how many scores they hold at once.
 */
export function fusedAttention(q: Value, k: Value, v: Value, heads: number, tile?: number): Value {
  const [batch, queries, width] = q.shape;
  const fits = (x: Value): boolean => x.rank === 3 && x.shape[0] === batch && x.shape[2]! % heads === 0;
  if (![q, k, v].every(fits) || k.shape[2] !== width || k.shape[1] !== v.shape[1])
    throw new GraphError(`attention of ${q} over ${k} and ${v} in ${heads} heads`);
  const shape = [batch!, queries!, v.shape[2]!];
  return q.graph.add('MultiHeadAttention', [q, k, v], [{ dtype: q.dtype, shape }], {
    num_heads: { int: heads },
    ...(tile === undefined ? {} : { tile: { hint: tile } }),
  })[0]!;
}

/** Scores that are held at once where nothing else is asked for, in elements: 16 MiB. On a processor larger tiles are no faster. */
const ATTENTION_TILE = 1 << 22;

/** How many scores plain operators hold at once in place of an attention node. */
export const tileOf = ({ tile }: Attributes): number => (tile && 'hint' in tile ? tile.hint : ATTENTION_TILE);

/** How many of so many heads, and of so many queries of a head, are taken together so that a tile holds no more scores than this. Both divide what they are of. */
export function attentionTile(
  count: number,
  queries: number,
  keys: number,
  tile: number,
): { readonly heads: number; readonly rows: number } {
  const rows = largestDivisor(queries, tile / keys);
  return { heads: rows < queries ? 1 : largestDivisor(count, tile / (queries * keys)), rows };
}

/**
 * `fusedAttention` of plain operators, for devices whose own kernel is not to be trusted: some heads by some queries at a time, so that the scores of all of them are
 * never held together either.
 */
export function tiledAttention(q: Value, k: Value, v: Value, heads: number, tile = ATTENTION_TILE): Value {
  const [batch, queries, width] = q.shape as [number, number, number];
  const keys = k.shape[1]!;
  const count = batch * heads;
  const part = attentionTile(count, queries, keys, tile);
  const [allQ, allK, allV] = [mul(q, 1 / Math.sqrt(width / heads)), k, v].map((x) =>
    split(byHead(x, heads), equalParts(count, part.heads), 0),
  ) as [readonly Value[], readonly Value[], readonly Value[]];
  const mixed = allQ.map((group, g) => {
    const rows = split(group, equalParts(queries, part.rows), 1).map((some) => {
      const scores = cast(matmul(some, matrixTranspose(allK[g]!)), 'float32'); // [heads, rows, S]
      return matmul(cast(softmax(scores), v.dtype), allV[g]!);
    });
    return concat(rows, 1);
  });
  return byToken(concat(mixed, 0), batch);
}

/** An attention node as a graph of plain operators, with the inputs "0", "1", "2" and the output "0". */
export function plainAttention({ inputs, attributes }: Node): Graph {
  const graph = new Graph('attention');
  const values = inputs.map((v, i) => graph.input(`${i}`, v!.dtype, v!.shape));
  const { num_heads: heads } = attributes;
  const [q, k, v] = values as [Value, Value, Value];
  graph.output('0', tiledAttention(q, k, v, heads && 'int' in heads ? heads.int : 1, tileOf(attributes)));
  return graph;
}

/** [B, T, H*D] -> [B*H, T, D] */
export function byHead(x: Value, heads: number): Value {
  const [batch, length, width] = x.shape as [number, number, number];
  const split = transpose(reshape(x, [batch, length, heads, width / heads]), [0, 2, 1, 3]);
  return reshape(split, [batch * heads, length, width / heads]);
}

/** [B*H, T, D] -> [B, T, H*D] */
export function byToken(x: Value, batch: number): Value {
  const [count, length, width] = x.shape as [number, number, number];
  const heads = count / batch;
  const joined = transpose(reshape(x, [batch, heads, length, width]), [0, 2, 1, 3]);
  return reshape(joined, [batch, length, heads * width]);
}

/** The largest divisor of n that is at most `limit`, and at least 1. */
function largestDivisor(n: number, limit: number): number {
  for (let d = Math.min(n, Math.floor(limit)); d > 1; d--) if (n % d === 0) return d;
  return 1;
}
