import { linear } from '../nn/linear.js';
import { unitLength } from '../nn/norm.js';
import type { Initializer, Scope } from '../nn/parameters.js';
import { gelu } from '../onnx/elementwise.js';
import type { Value } from '../onnx/graph.js';
import { gemm } from '../onnx/linalg.js';

export interface DinoHeadConfig {
  readonly hiddenSize: number;
  readonly bottleneck: number;
  readonly prototypes: number;
}

const init: Initializer = { kind: 'normal', std: 0.02 };
const zero: Initializer = { kind: 'zeros' };

/**
 * The head that DINO trains its encoder through and then drops (Caron et al., arXiv 2104.14294, appendix C): three layers, a point on the unit sphere, and its cosine
 * with each prototype. Embeddings [B, D] -> scores [B, prototypes], in [-1, 1].
 */
export function dinoHead(scope: Scope, config: DinoHeadConfig, x: Value): Value {
  const { hiddenSize, bottleneck, prototypes } = config;
  const layer = (i: number, v: Value, out: number): Value =>
    linear(scope.at('mlp', i), v, { in: v.shape[1]!, out, weightInit: init, biasInit: zero });
  const point = layer(2, gelu(layer(1, gelu(layer(0, x, hiddenSize)), hiddenSize)), bottleneck);
  const directions = scope.at('last_layer').parameter('weight', [prototypes, bottleneck], init);
  return gemm(unitLength(point), unitLength(directions), { transB: true });
}
