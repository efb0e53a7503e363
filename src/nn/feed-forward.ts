import { recompute } from '../autodiff/recompute.js';
import { gelu, mul } from '../onnx/elementwise.js';
import type { Value } from '../onnx/graph.js';
import { split } from '../onnx/movement.js';
import { linear } from './linear.js';
import type { Scope } from './parameters.js';

/** 4 MiB of activations. */
const LARGE = 1 << 20;

/** Feed-forward layer with a GELU gate, GEGLU (Shazeer, arXiv 2002.05202): widens [..., dim] to 4 * dim and back. Parameters `net.0.proj` and `net.2`. */
export function gegluFeedForward(scope: Scope, x: Value, dim: number): Value {
  const inner = 4 * dim;
  const widened = linear(scope.at('net', 0, 'proj'), x, { in: dim, out: 2 * inner });
  const gated = (wide: Value): Value => {
    const [hidden, gate] = split(wide, [inner, inner], -1) as [Value, Value]; // [..., inner] each
    return mul(hidden, gelu(gate));
  };
  // The widest values of a transformer, and cheap to have again.
  const narrowed = widened.size >= LARGE ? recompute([widened], gated) : gated(widened);
  return linear(scope.at('net', 2), narrowed, { in: inner, out: dim });
}
