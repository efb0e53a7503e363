import { unitLength } from '../nn/norm.js';
import { add, log, mul, sub } from '../onnx/elementwise.js';
import type { Value } from '../onnx/graph.js';
import { matmul } from '../onnx/linalg.js';
import { matrixTranspose } from '../onnx/movement.js';
import { max, mean } from '../onnx/reduction.js';
import { float32 } from '../tensor/tensor.js';

/** Keeps the logarithm finite where two directions are the same; of a squared distance. */
const EPSILON = 1e-4;

/**
 * The Kozachenko-Leonenko regulariser (Sablayrolles et al., arXiv 1806.03198, section 3; DINOv2, arXiv 2304.07193, section 4): pushes each embedding's direction away
 * from its nearest neighbour's, so that the batch spreads over the sphere.
 *
 * @param x embeddings [B, D] of B different things, not normalised; B is at least 2
 * @returns the mean over the batch of minus the logarithm of the distance to the nearest neighbour
 */
export function koleoLoss(x: Value): Value {
  const batch = x.shape[0]!;
  const directions = unitLength(x);
  // Below any cosine, so that nothing is its own neighbour.
  const self = float32([batch, batch], new Float32Array(batch * batch));
  for (let i = 0; i < batch; i++) self.data[i * (batch + 1)] = -4;
  const cosines = add(matmul(directions, matrixTranspose(directions)), x.graph.constant(self, 'self'));
  const squaredDistance = mul(sub(1, max(cosines, [1])), 2); // [B]
  return mul(mean(log(add(squaredDistance, EPSILON))), -0.5);
}
