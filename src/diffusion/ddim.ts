import type { Config } from '../formats/json-config.js';
import { float32, type Tensor } from '../tensor/tensor.js';
import { clipped, readClipRange } from './clipping.js';
import { alphaBarAfter, type NoiseSchedule } from './noise-schedule.js';
import { cleanSample, noiseInSample } from './prediction.js';
import type { SamplingOptions } from './sampler.js';
import { readTimestepSpacing, type TimestepSpacing, wholeTimesteps } from './timestep-spacing.js';

export interface DdimSettings extends TimestepSpacing {
  /** Whether the last step goes to abar = 1 rather than to abar_0. */
  readonly setAlphaToOne: boolean;
  /** Predicted clean samples are clipped to [-clipRange, clipRange]. */
  readonly clipRange: number;
}

export function readDdimSettings(config: Config): DdimSettings {
  return {
    ...readTimestepSpacing(config, 'leading'),
    setAlphaToOne: config.boolean('set_alpha_to_one', true),
    clipRange: readClipRange(config),
  };
}

/** Deterministic sampling: DDIM (Song et al., arXiv 2010.02502, eq. 12 with sigma = 0). */
export async function sampleDdim(
  schedule: NoiseSchedule,
  settings: DdimSettings,
  { steps, denoise, noise, onStep }: SamplingOptions,
): Promise<Tensor<'float32'>> {
  const timesteps = wholeTimesteps(schedule.steps, settings, steps);
  const stride = Math.floor(schedule.steps / steps);
  let sample = noise;
  for (const [i, t] of timesteps.entries()) {
    const prediction = (await denoise(sample, t)).data;
    const alphaBar = schedule.alphasCumprod[t]!;
    const nextAlphaBar = alphaBarAfter(schedule, t - stride, settings.setAlphaToOne);
    const [signal, sigma] = [Math.sqrt(alphaBar), Math.sqrt(1 - alphaBar)];
    const clean = cleanSample(schedule.predictionType, signal, sigma);
    const eps = noiseInSample(schedule.predictionType, signal, sigma);
    const [nextSignal, nextSigma] = [Math.sqrt(nextAlphaBar), Math.sqrt(1 - nextAlphaBar)];
    sample = float32(
      sample.shape,
      sample.data.map((x, k) => {
        const p = prediction[k]!;
        return nextSignal * clipped(clean(x, p), settings.clipRange) + nextSigma * eps(x, p);
      }),
    );
    await onStep?.(i + 1);
  }
  return sample;
}
