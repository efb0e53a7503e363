import { attentionTile, byHead, byToken, tileOf } from '../onnx/attention.js';
import { add, cast, mul, neg } from '../onnx/elementwise.js';
import type { Value } from '../onnx/graph.js';
import { matmul } from '../onnx/linalg.js';
import { concat, equalParts, matrixTranspose, reshape, split } from '../onnx/movement.js';
import { softmax } from '../onnx/norm.js';
import { sum } from '../onnx/reduction.js';
import { full } from '../tensor/tensor.js';
import { after } from './order.js';
import { intAttribute, operand, type Rule } from './rule.js';

/**
 * The scores of one tile, some heads by some queries, are computed again from queries and keys; then, with P = softmax(Q K^T) and dP = dO V^T,
 * dV = P^T dO, dS = P (dP - rowsum(dO O)), dQ = dS K and dK = dS^T Q (Dao et al., "FlashAttention", arXiv 2205.14135, appendix B.2). The tiles follow one another, so that the
 * memory of one is enough.
 */
export const attentionRules = {
  MultiHeadAttention: (c) => {
    let made: readonly Value[] | undefined;
    const part = (i: number) => () => {
      made ??= attentionGradients(c.grad, [operand(c, 0), operand(c, 1), operand(c, 2)], c.outputs[0]!, {
        heads: intAttribute(c.attributes, 'num_heads'),
        tile: tileOf(c.attributes),
      });
      return made[i]!;
    };
    return [part(0), part(1), part(2)];
  },
} satisfies Record<string, Rule>;

/**
 * The gradients of queries, keys and values.
 *
 * @param grad what arrives at `output`, the attention of `q` over `k` and `v`
 * @param tile scores that are held at once, in elements
 */
export function attentionGradients(
  grad: Value,
  [q, k, v]: readonly [Value, Value, Value],
  output: Value,
  { heads, tile }: { readonly heads: number; readonly tile: number },
): readonly Value[] {
  const [batch, queries, width] = q.shape as [number, number, number];
  const keys = k.shape[1]!;
  const scale = 1 / Math.sqrt(width / heads);
  const count = batch * heads;
  const { heads: together, rows } = attentionTile(count, queries, keys, tile);

  // dP - rowsum(dO O) is one product with a column more: [dO, -rowsum(dO O)] [V, 1]^T.
  const along = neg(byHead(rowSums(grad, output, heads), heads)); // [B*H, T, 1]
  const upstream = concat([byHead(grad, heads), along], 2); // [B*H, T, E + 1]
  const values = byHead(v, heads);
  const extended = concat([values, cast(v.graph.constant(full([count, keys, 1], 1), 'ones'), v.dtype)], 2); // [B*H, S, E + 1]
  const inGroups = (x: Value): readonly Value[] => split(x, equalParts(count, together), 0);
  const [allQ, allK, allV, allDO] = [byHead(mul(q, scale), heads), byHead(k, heads), extended, upstream].map(
    inGroups,
  ) as [readonly Value[], readonly Value[], readonly Value[], readonly Value[]];

  const [dQ, dK, dV]: [Value[], Value[], Value[]] = [[], [], []];
  let previous: readonly Value[] = [];
  allQ.forEach((groupQ, g) => {
    const [groupK, groupV] = [allK[g]!, allV[g]!];
    const dO = split(allDO[g]!, equalParts(queries, rows), 1);
    let [sumK, sumV]: [Value | undefined, Value | undefined] = [undefined, undefined];
    const tilesQ: Value[] = [];
    split(groupQ, equalParts(queries, rows), 1).forEach((some, i) => {
      const [tileQ, tileDO] = after([some, dO[i]!], previous) as [Value, Value];
      const scores = matmul(tileQ, matrixTranspose(groupK)); // [together, rows, S]
      const p = cast(softmax(cast(scores, 'float32')), scores.dtype);
      const dS = mul(p, matmul(tileDO, matrixTranspose(groupV)));
      // Turned, so that it is the narrow matrix whose transpose is read and not the scores: [together, E + 1, S], [together, D, S].
      const ownV = matmul(matrixTranspose(tileDO), p);
      const ownK = matmul(matrixTranspose(tileQ), dS);
      sumV = sumV ? add(sumV, ownV) : ownV;
      sumK = sumK ? add(sumK, ownK) : ownK;
      const ownQ = matmul(dS, groupK);
      tilesQ.push(ownQ);
      previous = [sumV, sumK, ownQ];
    });
    dQ.push(concat(tilesQ, 1));
    dK.push(matrixTranspose(sumK!));
    // What the column more adds up to is not wanted.
    dV.push(matrixTranspose(split(sumV!, [values.shape[2]!, 1], 1)[0]!));
  });
  return [
    mul(byToken(concat(dQ, 0), batch), scale),
    byToken(concat(dK, 0), batch),
    byToken(concat(dV, 0), batch),
  ];
}

/** The sum of a * b over each head's part of a token, in float32 and back: [B, T, H*D] -> [B, T, H] */
function rowSums(a: Value, b: Value, heads: number): Value {
  const [batch, length] = a.shape as [number, number, number];
  const product = reshape(mul(cast(a, 'float32'), cast(b, 'float32')), [batch, length, heads, -1]);
  return cast(sum(product, [3]), a.dtype);
}
