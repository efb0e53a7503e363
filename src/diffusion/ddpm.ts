import type { Config } from '../formats/json-config.js';
import { float32, type Tensor } from '../tensor/tensor.js';
import { clipped, readClipRange } from './clipping.js';
import type { NoiseSchedule } from './noise-schedule.js';
import { cleanSample } from './prediction.js';
import type { SamplingOptions } from './sampler.js';
import { readTimestepSpacing, type TimestepSpacing, wholeTimesteps } from './timestep-spacing.js';

export interface DdpmSettings extends TimestepSpacing {
  /** Variance of the added noise: that of the posterior q(x_{t-1} | x_t, x_0), or beta_t. */
  readonly variance: 'posterior' | 'beta';
  /** Predicted clean samples are clipped to [-clipRange, clipRange]. */
  readonly clipRange: number;
}

/** The second way to compute the posterior's variance is the first through a logarithm. */
const variances = { fixed_small: 'posterior', fixed_small_log: 'posterior', fixed_large: 'beta' } as const;

export function readDdpmSettings(config: Config): DdpmSettings {
  const names = Object.keys(variances) as (keyof typeof variances)[];
  return {
    ...readTimestepSpacing(config, 'leading'),
    variance: config.has('variance_type') ? variances[config.oneOf('variance_type', names)] : 'posterior',
    clipRange: readClipRange(config),
  };
}

/** Ancestral sampling, as the denoiser was trained to: DDPM (Ho et al., arXiv 2006.11239, eq. 7 and algorithm 2), over a part of the timesteps. */
export async function sampleDdpm(
  schedule: NoiseSchedule,
  settings: DdpmSettings,
  { steps, denoise, noise, drawNoise, onStep }: SamplingOptions,
): Promise<Tensor<'float32'>> {
  const timesteps = wholeTimesteps(schedule.steps, settings, steps);
  let sample = noise;
  for (const [i, t] of timesteps.entries()) {
    const prediction = (await denoise(sample, t)).data;
    const alphaBar = schedule.alphasCumprod[t]!;
    const next = timesteps[i + 1];
    const nextAlphaBar = next === undefined ? 1 : schedule.alphasCumprod[next]!;
    const [signal, sigma] = [Math.sqrt(alphaBar), Math.sqrt(1 - alphaBar)];
    const clean = cleanSample(schedule.predictionType, signal, sigma);
    const alpha = alphaBar / nextAlphaBar;
    const beta = 1 - alpha;
    const cleanWeight = (Math.sqrt(nextAlphaBar) * beta) / (1 - alphaBar);
    const sampleWeight = (Math.sqrt(alpha) * (1 - nextAlphaBar)) / (1 - alphaBar);
    const variance = settings.variance === 'beta' ? beta : ((1 - nextAlphaBar) / (1 - alphaBar)) * beta;
    const fresh = t > 0 ? drawNoise().data : undefined;
    const deviation = Math.sqrt(Math.max(variance, 1e-20));
    sample = float32(
      sample.shape,
      sample.data.map((x, k) => {
        const mean = cleanWeight * clipped(clean(x, prediction[k]!), settings.clipRange) + sampleWeight * x;
        return fresh ? mean + deviation * fresh[k]! : mean;
      }),
    );
    await onStep?.(i + 1);
  }
  return sample;
}
