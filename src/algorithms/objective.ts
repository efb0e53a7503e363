import type { Coefficients } from '../diffusion/look-forward.js';
import type { NoiseSchedule } from '../diffusion/noise-schedule.js';
import { div, maximum, mul } from '../onnx/elementwise.js';
import type { Value } from '../onnx/graph.js';
import { slice } from '../onnx/movement.js';
import { mean, sum } from '../onnx/reduction.js';

/**
 * One batch as every training objective sees it. The first `instances` rows are noised photographs of the subject, or states that the policy visited itself; the rest
 * (if any) are noised pictures of its class for prior preservation.
 */
export interface Batch {
  readonly schedule: NoiseSchedule;
  readonly coefficients: Coefficients;
  /** Number of subject rows, at least 1. */
  readonly instances: number;
  /** [B] int64 */
  readonly timesteps: Value;
  /**
   * For each of the subject's rows 1 where it is a noised photograph and 0 where the policy visited it, which has neither a true noise nor a target, [I]. Left out
   * where all are noised photographs.
   */
  readonly fromPhotograph?: Value;
  /** x_0, scaled latents [B, C, h, w]; for a visited state those of a photograph all the same. */
  readonly clean: Value;
  /** eps, [B, C, h, w]. */
  readonly noise: Value;
  /** x_t, [B, C, h, w]. */
  readonly noisy: Value;
  /** What the denoiser says of x_t: noise or velocity, [B, C, h, w]. */
  readonly prediction: Value;
  /** What it should have said, [B, C, h, w]. */
  readonly target: Value;
}

/** What an objective builds from a batch. */
export interface Objective {
  /** Minimised by the policy's parameters; a scalar. */
  readonly loss: Value;
  /** Minimised by the critic's parameters, which the policy's step leaves alone; a scalar. */
  readonly criticLoss?: Value;
  /** Scalars worth logging, by the names of the run's metrics. */
  readonly metrics: Readonly<Record<string, Value>>;
}

/** The subject's rows of a value of the batch. */
export function instanceRows(batch: Batch, value: Value): Value {
  return slice(value, 0, 0, batch.instances);
}

/** The mean of values [I] over the subject's rows, or over those that count, [I] of 0 and 1; 0 where none does. */
export function meanOverRows(values: Value, counts: Value | undefined): Value {
  if (!counts) return mean(values);
  return div(sum(mul(values, counts)), maximum(sum(counts), 1));
}

/** The class's rows, or undefined where the batch has none. */
export function priorRows(batch: Batch, value: Value): Value | undefined {
  const rows = value.shape[0]!;
  return rows > batch.instances ? slice(value, 0, batch.instances, rows) : undefined;
}
