import { multiHeadAttention } from '../nn/attention.js';
import { conv2d } from '../nn/conv2d.js';
import { gegluFeedForward } from '../nn/feed-forward.js';
import { linear } from '../nn/linear.js';
import { groupNorm, layerNorm } from '../nn/norm.js';
import type { Scope } from '../nn/parameters.js';
import { add } from '../onnx/elementwise.js';
import type { Value } from '../onnx/graph.js';
import { reshape, transpose } from '../onnx/movement.js';

export interface Transformer2DOptions {
  readonly heads: number;
  /** Number of transformer blocks. */
  readonly depth: number;
  readonly groups: number;
  /** Project in and out by a linear layer per pixel rather than by a 1x1 convolution: the same numbers, other parameter shapes. */
  readonly linearProjection: boolean;
  /** Text condition [B, S, E]. */
  readonly context: Value;
}

/**
 * Spatial transformer (Rombach et al., arXiv 2112.10752, appendix E.2.1): pixels of [B, C, H, W] attend to each other and to the text, around a residual
 * connection.
 */
export function transformer2D(scope: Scope, x: Value, options: Transformer2DOptions): Value {
  const { depth, groups, linearProjection } = options;
  const [batch, channels, height, width] = x.shape as [number, number, number, number];
  const same = { in: channels, out: channels };
  const toTokens = (v: Value): Value => reshape(transpose(v, [0, 2, 3, 1]), [-1, channels]); // [B*H*W, C]
  const toImage = (v: Value): Value => transpose(reshape(v, [batch, height, width, channels]), [0, 3, 1, 2]); // [B, C, H, W]

  const normed = groupNorm(scope.at('norm'), x, { groups, eps: 1e-6 });
  const projIn = scope.at('proj_in');
  let h = linearProjection
    ? linear(projIn, toTokens(normed), same)
    : toTokens(conv2d(projIn, normed, { ...same, kernel: 1 }));
  for (let i = 0; i < depth; i++) h = transformerBlock(scope.at('transformer_blocks', i), h, options);
  const projOut = scope.at('proj_out');
  const y = linearProjection
    ? toImage(linear(projOut, h, same))
    : conv2d(projOut, toImage(h), { ...same, kernel: 1 });
  return add(y, x);
}

/** Self-attention, cross-attention to the text and a gated feed-forward layer, each after a layer normalisation and around a residual connection: [B*T, C]. */
function transformerBlock(scope: Scope, x: Value, options: Transformer2DOptions): Value {
  const { heads, context } = options;
  const [batch, , contextDim] = context.shape as [number, number, number];
  const dim = x.shape[1]!;
  const normed = (name: string, v: Value): Value => layerNorm(scope.at(name), v, { eps: 1e-5 });
  const self = normed('norm1', x);
  let h = add(crossAttention(scope.at('attn1'), self, self, { batch, heads }), x);
  const text = reshape(context, [-1, contextDim]); // [B*S, E]
  h = add(crossAttention(scope.at('attn2'), normed('norm2', h), text, { batch, heads }), h);
  return add(gegluFeedForward(scope.at('ff'), normed('norm3', h), dim), h);
}

/** Attention of the tokens x [B*T, C] of each of B rows over its `context` [B*S, E], with its projections `to_q`, `to_k`, `to_v` (no bias) and `to_out.0`. */
function crossAttention(
  scope: Scope,
  x: Value,
  context: Value,
  { batch, heads }: { readonly batch: number; readonly heads: number },
): Value {
  const dim = x.shape[1]!;
  const projected = (name: string, v: Value): Value =>
    reshape(linear(scope.at(name), v, { in: v.shape[1]!, out: dim, bias: false }), [batch, -1, dim]);
  const mixed = multiHeadAttention(
    projected('to_q', x),
    projected('to_k', context),
    projected('to_v', context),
    { heads, tile: scope.computation.attentionTile },
  ); // [B, T, C]
  return linear(scope.at('to_out', 0), reshape(mixed, [-1, dim]), { in: dim, out: dim });
}
