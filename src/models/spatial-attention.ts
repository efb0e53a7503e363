import { multiHeadAttention } from '../nn/attention.js';
import { linear } from '../nn/linear.js';
import { groupNorm } from '../nn/norm.js';
import type { Scope } from '../nn/parameters.js';
import { add } from '../onnx/elementwise.js';
import type { Value } from '../onnx/graph.js';
import { reshape, transpose } from '../onnx/movement.js';

const CURRENT_NAMES = { q: 'to_q', k: 'to_k', v: 'to_v', out: 'to_out.0' } as const;
/** The names that the first autoencoder checkpoints were saved with. */
const FIRST_NAMES = { q: 'query', k: 'key', v: 'value', out: 'proj_attn' } as const;

/** Single-head self-attention over the pixels of [B, C, H, W], around a residual connection: the middle of the autoencoder. */
export function spatialAttention(scope: Scope, x: Value, options: { groups: number; eps: number }): Value {
  const [batch, channels, height, width] = x.shape as [number, number, number, number];
  const names = scope.has(`${FIRST_NAMES.q}.weight`) ? FIRST_NAMES : CURRENT_NAMES;
  const project = (name: string, v: Value): Value =>
    linear(scope.at(name), v, { in: channels, out: channels });

  const normed = groupNorm(scope.at('group_norm'), x, options);
  const tokens = reshape(transpose(normed, [0, 2, 3, 1]), [batch, height * width, channels]); // [B, H*W, C]
  const mixed = multiHeadAttention(
    project(names.q, tokens),
    project(names.k, tokens),
    project(names.v, tokens),
    { heads: 1 },
  );
  const image = reshape(project(names.out, mixed), [batch, height, width, channels]);
  return add(transpose(image, [0, 3, 1, 2]), x); // [B, C, H, W]
}
