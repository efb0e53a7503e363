import { recompute } from '../autodiff/recompute.js';
import { gelu, mul } from '../onnx/elementwise.js';
import type { Value } from '../onnx/graph.js';
import { linear, linearParts } from './linear.js';
import type { Scope } from './parameters.js';

/** 4 MiB of activations. */
const LARGE = 1 << 20;

/** Feed-forward layer with a GELU gate, GEGLU (Shazeer, arXiv 2002.05202): widens [..., dim] to 4 * dim and back. Parameters `net.0.proj` and `net.2`. */
export function gegluFeedForward(scope: Scope, x: Value, dim: number): Value {
  const inner = 4 * dim;
  const [hidden, gate] = linearParts(scope.at('net', 0, 'proj'), x, { in: dim, out: [inner, inner] }) as [
    Value,
    Value,
  ];
  const gated = (by: Value): Value => mul(hidden, gelu(by));
  // The widest values of a transformer, and cheap to have again.
  const narrowed = hidden.size + gate.size >= LARGE ? recompute([gate], gated) : gated(gate);
  return linear(scope.at('net', 2), narrowed, { in: inner, out: dim });
}
