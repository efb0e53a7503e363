import { fusedAttention } from '../onnx/attention.js';
import type { Value } from '../onnx/graph.js';
import { reshape, transpose } from '../onnx/movement.js';
import { attention } from '../onnx/norm.js';

/** Score matrices of more elements than this are never held as a whole. */
const LARGE = 1 << 20;

/**
 * Scaled dot-product attention in several heads (Vaswani et al., arXiv 1706.03762, section 3.2.2) of queries [B, T, H*D] over keys and values [B, S, H*D], all
 * already projected; gives [B, T, H*D]. `mask` is added to the scores and broadcasts to [B, H, T, S]; `tile` is that of `fusedAttention`.
 */
export function multiHeadAttention(
  q: Value,
  k: Value,
  v: Value,
  options: { readonly heads: number; readonly mask?: Value; readonly tile?: number | undefined },
): Value {
  const { heads, mask, tile } = options;
  const scores = q.shape[0]! * heads * q.shape[1]! * k.shape[1]!;
  if (!mask && scores > LARGE) return fusedAttention(q, k, v, heads, tile);
  const mixed = attention(
    splitHeads(q, heads),
    splitHeads(k, heads),
    splitHeads(v, heads),
    mask ? { mask } : {},
  ); // [B, H, T, D]
  return reshape(transpose(mixed, [0, 2, 1, 3]), q.shape); // [B, T, H*D]
}

function splitHeads(x: Value, heads: number): Value {
  const [batch, length, width] = x.shape as [number, number, number];
  return transpose(reshape(x, [batch, length, heads, width / heads]), [0, 2, 1, 3]); // [B, H, T, D]
}
