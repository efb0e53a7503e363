import { linear } from '../nn/linear.js';
import { unitLength } from '../nn/norm.js';
import type { Initializer, Scope } from '../nn/parameters.js';
import type { Value } from '../onnx/graph.js';
import { gemm } from '../onnx/linalg.js';

export interface DinoHeadConfig {
  readonly bottleneck: number;
  readonly prototypes: number;
}

const init: Initializer = { kind: 'normal', std: 0.02 };
const zero: Initializer = { kind: 'zeros' };

/**
 * The head that DINO trains its encoder through and then drops (Caron et al., arXiv 2104.14294, appendix C), with one layer in place of its three: a point on the
 * unit sphere, and its cosine with each prototype. Embeddings [B, D] -> scores [B, prototypes], in [-1, 1].
 */
export function dinoHead(scope: Scope, { bottleneck, prototypes }: DinoHeadConfig, x: Value): Value {
  const point = linear(scope.at('bottleneck'), x, {
    in: x.shape[1]!,
    out: bottleneck,
    weightInit: init,
    biasInit: zero,
  });
  const directions = scope.at('last_layer').parameter('weight', [prototypes, bottleneck], init);
  return gemm(unitLength(point), unitLength(directions), { transB: true });
}
