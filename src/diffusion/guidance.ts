import { float32, type Tensor } from '../tensor/tensor.js';

/** The one seam between a sampler and a model: the prediction, of the sample's shape, for a noisy sample [B, C, H, W] at timestep t. The condition is bound. */
export type Denoise = (sample: Tensor<'float32'>, t: number) => Promise<Tensor<'float32'>>;

/**
 * Classifier-free guidance (Ho and Salimans, arXiv 2207.12598, eq. 6): unconditional + scale * (conditional - unconditional).
 *
 * @param denoiseBoth takes [2B, C, H, W] and must bind the unconditional condition to the first half, the conditional to the second.
 * @param scale 1 is no guidance; 7.5 is usual.
 */
export function withGuidance(denoiseBoth: Denoise, scale: number): Denoise {
  return async (sample, t) => {
    const { shape, data } = sample;
    const doubled = new Float32Array(2 * data.length);
    doubled.set(data);
    doubled.set(data, data.length);
    const both = (await denoiseBoth(float32([2 * shape[0]!, ...shape.slice(1)], doubled), t)).data;
    const guided = data.map((_, i) => {
      const unconditional = both[i]!;
      return unconditional + scale * (both[data.length + i]! - unconditional);
    });
    return float32(shape, guided);
  };
}
