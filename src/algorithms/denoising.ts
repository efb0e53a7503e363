import type { NoiseSchedule } from '../diffusion/noise-schedule.js';
import { mul, square, sub } from '../onnx/elementwise.js';
import type { Value } from '../onnx/graph.js';
import { gather } from '../onnx/movement.js';
import { mean } from '../onnx/reduction.js';
import { float32 } from '../tensor/tensor.js';

/** Squared error of each sample of a batch: [B, C, H, W] -> [B]. */
export function errorPerSample(prediction: Value, target: Value): Value {
  return mean(square(sub(prediction, target)), [1, 2, 3]);
}

/**
 * Min-SNR weights of a batch of timesteps [B] (Hang et al., arXiv 2303.09556, section 3.4): min(snr, gamma) / snr for noise prediction, over snr + 1 for velocity.
 */
export function minSnrWeights(schedule: NoiseSchedule, timesteps: Value, gamma: number): Value {
  const table = Float32Array.from({ length: schedule.steps }, (_, t) => {
    const snr = schedule.snr(t);
    return Math.min(snr, gamma) / (schedule.predictionType === 'epsilon' ? snr : snr + 1);
  });
  return gather(timesteps.graph.constant(float32([schedule.steps], table), 'min_snr'), timesteps, 0);
}

/** The denoising objective (Ho et al., arXiv 2006.11239, eq. 14): mean squared error, weighted a sample where weights [B] are given. */
export function denoisingLoss(prediction: Value, target: Value, weights?: Value): Value {
  const errors = errorPerSample(prediction, target);
  return mean(weights ? mul(errors, weights) : errors);
}
