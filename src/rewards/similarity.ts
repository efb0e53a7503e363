import { unitLength } from '../nn/norm.js';
import { mul, sub } from '../onnx/elementwise.js';
import type { Value } from '../onnx/graph.js';
import { expand, reshape } from '../onnx/movement.js';
import { sum } from '../onnx/reduction.js';
import type { Tensor } from '../tensor/tensor.js';
import type { GraphReward } from './reward.js';

/** Pictures [B, 3, H, W] in [-1, 1] to embeddings [B, D], inside the graph. */
export type ImageEmbedding = (pixels: Value) => Value;

/**
 * Likeness to the photograph behind the row in the eyes of an image encoder (arXiv 2407.06642, section 4.3, for DINO): -(1 - cos(khat, k)), where khat embeds the
 * picture that the policy is heading for and k the photograph, cropped and mirrored as the row has it.
 */
export function imageSimilarityReward(name: string, embed: ImageEmbedding): GraphReward {
  return {
    kind: 'graph',
    name,
    reference: { of: 'photograph', build: (photograph) => unitLength(embed(photograph)) },
    values: (heading, reference) => minusDistance(embed(heading.pixels()), reference!),
  };
}

/**
 * Alignment with a text in the eyes of CLIP: -(1 - cos(khat, l)), with the embedding l of the text that the row's picture should show.
 *
 * @param texts the embedding [1, D] of each text that a row may have
 */
export function textAlignmentReward(
  name: string,
  embed: ImageEmbedding,
  texts: ReadonlyMap<string, Tensor<'float32'>>,
): GraphReward {
  return {
    kind: 'graph',
    name,
    reference: { of: 'text', known: texts },
    values: (heading, reference) => minusDistance(embed(heading.pixels()), unitLength(reference!)),
  };
}

/** The same with one text for all rows. @param text its embedding [1, D] */
export function fixedTextReward(name: string, embed: ImageEmbedding, text: Tensor<'float32'>): GraphReward {
  return {
    kind: 'graph',
    name,
    values(heading) {
      const khat = embed(heading.pixels());
      return minusDistance(khat, expand(unitLength(khat.graph.constant(text, 'text_embedding')), khat.shape));
    },
  };
}

/** cos(a, b) - 1 for rows a [I, D] and rows b [I, D] of length 1. */
function minusDistance(a: Value, b: Value): Value {
  return sub(reshape(sum(mul(unitLength(a), b), [1]), [a.shape[0]!]), 1);
}
