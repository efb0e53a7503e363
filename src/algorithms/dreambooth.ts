import { add, mul } from '../onnx/elementwise.js';
import { denoisingLoss, minSnrWeights } from './denoising.js';
import { type Batch, instanceRows, type Objective } from './objective.js';
import { priorLoss } from './prior-preservation.js';

export interface DreamBoothSettings {
  /** Weight of the class's rows. */
  readonly priorLossWeight: number;
  /** Gamma of min-SNR weighting of the subject's rows; none without it. */
  readonly snrGamma?: number;
}

/**
 * DreamBooth (Ruiz et al., arXiv 2208.12242, eq. 2): the denoising error on the subject, plus the weighted error on the class.
 *
 * As in diffusers' script, min-SNR weights apply to the subject's rows alone.
 */
export function dreambooth(batch: Batch, { priorLossWeight, snrGamma }: DreamBoothSettings): Objective {
  const weights =
    snrGamma === undefined
      ? undefined
      : minSnrWeights(batch.schedule, instanceRows(batch, batch.timesteps), snrGamma);
  const instance = denoisingLoss(
    instanceRows(batch, batch.prediction),
    instanceRows(batch, batch.target),
    weights,
  );
  const prior = priorLoss(batch);
  if (!prior) return { loss: instance, metrics: { instanceLoss: instance } };
  return {
    loss: add(instance, mul(prior, priorLossWeight)),
    metrics: { instanceLoss: instance, priorLoss: prior },
  };
}
