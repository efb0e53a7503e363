import type { Tensor } from '../tensor/tensor.js';
import type { Denoise } from './guidance.js';

/** What every sampler takes besides the noise schedule and its own settings. */
export interface SamplingOptions {
  readonly steps: number;
  readonly denoise: Denoise;
  /** Standard normal noise [B, C, H, W] to start from. */
  readonly noise: Tensor<'float32'>;
  /** More standard normal noise of that shape at each call, for samplers that add noise on their way. */
  readonly drawNoise: () => Tensor<'float32'>;
  /** Called after each step with the number of steps done; throw from it to stop. */
  readonly onStep?: ((done: number) => void | Promise<void>) | undefined;
}

/** Goes from noise to a clean sample. @throws UsageError when the noise schedule cannot take that many steps. */
export type Sampler = (options: SamplingOptions) => Promise<Tensor<'float32'>>;
