import { unitLength } from '../nn/norm.js';
import { add, clip, exp, mul } from '../onnx/elementwise.js';
import type { Value } from '../onnx/graph.js';
import { matmul } from '../onnx/linalg.js';
import { matrixTranspose } from '../onnx/movement.js';
import { int64 } from '../tensor/tensor.js';
import { crossEntropy } from './classification.js';

/** The logarithm of 100: CLIP lets its scale grow no further (Radford et al., section 2.5). */
const LARGEST_LOG_SCALE = Math.log(100);

/**
 * CLIP's objective (Radford et al., arXiv 2103.00020, figure 3): among the texts of the batch a picture has to find its own, and the other way round. In the place of
 * texts may stand other views of what the pictures show.
 *
 * @param images embeddings [B, D], not normalised
 * @param texts embeddings [B, D] of the texts in the same order
 * @param logScale the logarithm of the inverse temperature; a scalar
 * @returns the mean of both cross-entropies, in nats
 */
export function contrastiveLoss(images: Value, texts: Value, logScale: Value): Value {
  const batch = images.shape[0]!;
  const cosines = matmul(unitLength(images), matrixTranspose(unitLength(texts))); // [B, B]
  const logits = mul(cosines, exp(clip(logScale, 0, LARGEST_LOG_SCALE)));
  const own = images.graph.constant(
    int64(
      [batch],
      Array.from({ length: batch }, (_, i) => i),
    ),
    'own',
  );
  return mul(add(crossEntropy(logits, own), crossEntropy(matrixTranspose(logits), own)), 0.5);
}
