import { gelu, mul } from '../onnx/elementwise.js';
import type { Value } from '../onnx/graph.js';
import { split } from '../onnx/movement.js';
import { linear } from './linear.js';
import type { Scope } from './parameters.js';

/** Feed-forward layer with a GELU gate, GEGLU (Shazeer, arXiv 2002.05202): widens [..., dim] to 4 * dim and back. Parameters `net.0.proj` and `net.2`. */
export function gegluFeedForward(scope: Scope, x: Value, dim: number): Value {
  const inner = 4 * dim;
  const widened = linear(scope.at('net', 0, 'proj'), x, { in: dim, out: 2 * inner });
  const [hidden, gate] = split(widened, [inner, inner], -1) as [Value, Value]; // [..., inner] each
  return linear(scope.at('net', 2), mul(hidden, gelu(gate)), { in: inner, out: dim });
}
