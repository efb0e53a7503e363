import type { Config } from '../formats/json-config.js';
import { float32, type Tensor } from '../tensor/tensor.js';
import { slopeAt, startFrom } from './euler.js';
import type { NoiseSchedule } from './noise-schedule.js';
import type { SamplingOptions } from './sampler.js';
import { allSigmas, sigmaAt } from './sigmas.js';
import { readTimestepSpacing, spacedTimesteps, type TimestepSpacing } from './timestep-spacing.js';

export type EulerAncestralSettings = TimestepSpacing;

export function readEulerAncestralSettings(config: Config): EulerAncestralSettings {
  return readTimestepSpacing(config, 'linspace');
}

/** Ancestral sampling with Euler's method: each step goes below the next sigma and adds fresh noise back up to it (Katherine Crowson, k-diffusion, after Karras et al., arXiv 2206.00364). */
export async function sampleEulerAncestral(
  schedule: NoiseSchedule,
  settings: EulerAncestralSettings,
  { steps, denoise, noise, drawNoise, onStep }: SamplingOptions,
): Promise<Tensor<'float32'>> {
  const all = allSigmas(schedule);
  const timesteps = spacedTimesteps(schedule.steps, settings, steps).map(Math.fround);
  const sigmas = [...timesteps.map((t) => Math.fround(sigmaAt(all, t))), 0];
  let sample = startFrom(noise, Math.max(...sigmas), settings);
  for (const [i, t] of timesteps.entries()) {
    const [from, to] = [sigmas[i]!, sigmas[i + 1]!];
    const slope = await slopeAt(schedule, denoise, { sample, t, sigma: from });
    const up = Math.sqrt((to ** 2 * (from ** 2 - to ** 2)) / from ** 2);
    const down = Math.sqrt(to ** 2 - up ** 2);
    const fresh = drawNoise().data;
    sample = float32(
      sample.shape,
      sample.data.map((x, k) => x + slope[k]! * (down - from) + fresh[k]! * up),
    );
    await onStep?.(i + 1);
  }
  return sample;
}
