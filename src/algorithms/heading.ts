import {
  type Coefficients,
  coefficients,
  lookForward,
  noisySample,
  predictedNoise,
} from '../diffusion/look-forward.js';
import { cast, equal, maximum, not, sub } from '../onnx/elementwise.js';
import { GraphError, type Value } from '../onnx/graph.js';
import { gather } from '../onnx/movement.js';
import type { Heading } from '../rewards/reward.js';
import { float32 } from '../tensor/tensor.js';
import { type Batch, instanceRows } from './objective.js';

/** The coefficients of the subject's rows. */
export function instanceCoefficients(batch: Batch): Coefficients {
  const { signal, noise } = batch.coefficients;
  return { signal: instanceRows(batch, signal), noise: instanceRows(batch, noise) };
}

/**
 * Where the policy is heading on the subject's rows (see {@link lookForward}).
 *
 * @param decode scaled latents [I, C, h, w] to pictures; without it no reward may ask for pixels
 */
export function headingOf(batch: Batch, decode?: (latents: Value) => Value): Heading {
  const latents = lookForward(
    batch.schedule.predictionType,
    instanceRows(batch, batch.noisy),
    instanceRows(batch, batch.prediction),
    instanceCoefficients(batch),
  );
  let pixels: Value | undefined;
  return {
    latents,
    clean: instanceRows(batch, batch.clean),
    pixels() {
      if (!decode) throw new GraphError('a reward asked for pixels where there is no decoder');
      pixels ??= decode(latents);
      return pixels;
    },
  };
}

/** The states one timestep on, on the subject's rows: x_{t-1} as the policy's own action leads there, without noise (Song et al., DDIM, arXiv 2010.02502, eq. 12 with sigma = 0). */
export interface NextStates {
  /** t - 1, and 0 after 0; [I] int64. */
  readonly timesteps: Value;
  readonly coefficients: Coefficients;
  /** x_{t-1}, [I, C, h, w]. */
  readonly noisy: Value;
  /** 1, and 0 where the process ended at t = 0; [I]. */
  readonly goesOn: Value;
}

/** @param heading of the same batch */
export function nextStates(batch: Batch, heading: Heading): NextStates {
  const { schedule } = batch;
  const now = instanceRows(batch, batch.timesteps);
  const timesteps = maximum(sub(now, 1), 0);
  const next = coefficients(now.graph, schedule, timesteps);
  const action = predictedNoise(
    schedule.predictionType,
    instanceRows(batch, batch.noisy),
    instanceRows(batch, batch.prediction),
    instanceCoefficients(batch),
  );
  return {
    timesteps,
    coefficients: next,
    noisy: noisySample(heading.latents, action, next),
    goesOn: cast(not(equal(now, 0)), 'float32'),
  };
}

/** gamma^t of the subject's rows, [I]. */
export function discountPerTimestep(batch: Batch, gamma: number): Value {
  const table = Float32Array.from({ length: batch.schedule.steps }, (_, t) => gamma ** t);
  const { graph } = batch.timesteps;
  return gather(
    graph.constant(float32([table.length], table), 'discount'),
    instanceRows(batch, batch.timesteps),
    0,
  );
}
