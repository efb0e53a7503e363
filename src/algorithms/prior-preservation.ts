import type { Value } from '../onnx/graph.js';
import { denoisingLoss } from './denoising.js';
import { type Batch, priorRows } from './objective.js';

/** Prior preservation (Ruiz et al., DreamBooth, arXiv 2208.12242, eq. 2): the denoising error on the class's rows, or undefined where there are none. */
export function priorLoss(batch: Batch): Value | undefined {
  const prediction = priorRows(batch, batch.prediction);
  const target = priorRows(batch, batch.target);
  return prediction && target && denoisingLoss(prediction, target);
}
