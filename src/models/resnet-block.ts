import { recompute } from '../autodiff/recompute.js';
import { conv2d } from '../nn/conv2d.js';
import { linear } from '../nn/linear.js';
import { groupNorm } from '../nn/norm.js';
import type { Scope } from '../nn/parameters.js';
import { add, silu } from '../onnx/elementwise.js';
import type { Value } from '../onnx/graph.js';
import { reshape } from '../onnx/movement.js';

export interface ResnetBlockOptions {
  readonly out: number;
  readonly groups: number;
  readonly eps: number;
  /** The embedded time [B, E] after its SiLU; without it the block has no time projection. */
  readonly time?: Value;
  /** Whether what the convolutions read is computed again in the backward pass from what is normalised: a convolution costs a hundred times as much as the rest. */
  readonly recomputed?: boolean;
}

/**
 * Two convolutions around a time-dependent offset, with a residual connection (Ho et al., arXiv 2006.11239, appendix B): [B, in, H, W] -> [B, out, H, W].
 * A 1x1 `conv_shortcut` carries the residual where the number of channels changes.
 */
export function resnetBlock(scope: Scope, x: Value, options: ResnetBlockOptions): Value {
  const { out, groups, eps, time, recomputed = false } = options;
  const channels = x.shape[1]!;
  const activated = (norm: string, v: Value): Value => {
    const block = (image: Value): Value => silu(groupNorm(scope.at(norm), image, { groups, eps }));
    return recomputed ? recompute([v], block) : block(v);
  };
  let h = activated('norm1', x);
  h = conv2d(scope.at('conv1'), h, { in: channels, out, kernel: 3, padding: 1 });
  if (time) {
    const offset = linear(scope.at('time_emb_proj'), time, { in: time.shape[1]!, out }); // [B, out]
    h = add(h, reshape(offset, [-1, out, 1, 1]));
  }
  h = activated('norm2', h);
  h = conv2d(scope.at('conv2'), h, { in: out, out, kernel: 3, padding: 1 });
  const residual =
    channels === out ? x : conv2d(scope.at('conv_shortcut'), x, { in: channels, out, kernel: 1 });
  return add(residual, h);
}
