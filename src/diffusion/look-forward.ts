import { add, div, mul, square, sub } from '../onnx/elementwise.js';
import type { Graph, Value } from '../onnx/graph.js';
import { gather, reshape } from '../onnx/movement.js';
import { float32 } from '../tensor/tensor.js';
import type { NoiseSchedule, PredictionType } from './noise-schedule.js';

/** sqrt(abar_t) and sqrt(1 - abar_t) of a batch of timesteps, each [B, 1, 1, 1]. */
export interface Coefficients {
  readonly signal: Value;
  readonly noise: Value;
}

/** Looks the schedule's coefficients up inside the graph, for int64 timesteps [B]. */
export function coefficients(graph: Graph, schedule: NoiseSchedule, timesteps: Value): Coefficients {
  const look = (name: string, at: (t: number) => number): Value => {
    const table = float32(
      [schedule.steps],
      Float32Array.from({ length: schedule.steps }, (_, t) => at(t)),
    );
    return reshape(gather(graph.constant(table, name), timesteps, 0), [-1, 1, 1, 1]); // [B, 1, 1, 1]
  };
  return {
    signal: look('signal_table', (t) => schedule.signal(t)),
    noise: look('noise_table', (t) => schedule.noise(t)),
  };
}

/** x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps (Ho et al., arXiv 2006.11239, eq. 4); all [B, C, H, W]. */
export function noisySample(clean: Value, noise: Value, c: Coefficients): Value {
  return add(mul(c.signal, clean), mul(c.noise, noise));
}

/** What a denoiser of this prediction type is trained to give: eps, or v = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0. */
export function predictionTarget(type: PredictionType, clean: Value, noise: Value, c: Coefficients): Value {
  return type === 'epsilon' ? noise : sub(mul(c.signal, noise), mul(c.noise, clean));
}

/**
 * Looks forward from x_t to the end of the process in one jump: xhat_0 = (x_t - sqrt(1 - abar_t) a_t) / sqrt(abar_t), where the action a_t is the predicted noise
 * (arXiv 2407.06642, section 4.2). A predicted velocity gives xhat_0 = sqrt(abar_t) x_t - sqrt(1 - abar_t) v.
 */
export function lookForward(type: PredictionType, noisy: Value, prediction: Value, c: Coefficients): Value {
  return type === 'epsilon'
    ? div(sub(noisy, mul(c.noise, prediction)), c.signal)
    : sub(mul(c.signal, noisy), mul(c.noise, prediction));
}

/** The predicted noise a_t: the prediction itself, or sqrt(abar_t) v + sqrt(1 - abar_t) x_t. */
export function predictedNoise(
  type: PredictionType,
  noisy: Value,
  prediction: Value,
  c: Coefficients,
): Value {
  return type === 'epsilon' ? prediction : add(mul(c.signal, prediction), mul(c.noise, noisy));
}

/** rho = (xhat_0 - x_0)^2 per element, the residual of looking forward; the reward is -mean(rho). */
export function lookForwardResidual(predictedClean: Value, clean: Value): Value {
  return square(sub(predictedClean, clean));
}
