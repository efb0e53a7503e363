import type { Config } from '../formats/json-config.js';
import { float32, type Tensor } from '../tensor/tensor.js';
import type { NoiseSchedule } from './noise-schedule.js';
import type { SamplingOptions } from './sampler.js';
import {
  allSigmas,
  type FinalSigma,
  karrasSigmas,
  lastSigma,
  readFinalSigma,
  readKarras,
  sigmaAt,
  timestepOf,
} from './sigmas.js';
import { readTimestepSpacing, spacedTimesteps, type TimestepSpacing } from './timestep-spacing.js';

export interface EulerSettings extends TimestepSpacing {
  /** Space sigmas as Karras et al. do, from the first timestep's to the last one's or between the given ones. */
  readonly karras: boolean;
  readonly sigmaMax?: number | undefined;
  readonly sigmaMin?: number | undefined;
  readonly finalSigma: FinalSigma;
}

export function readEulerSettings(config: Config): EulerSettings {
  config.must('interpolation_type', 'linear', 'linear');
  config.must('timestep_type', 'discrete', 'discrete');
  return {
    ...readTimestepSpacing(config, 'linspace'),
    karras: readKarras(config),
    sigmaMax: config.optionalNumber('sigma_max'),
    sigmaMin: config.optionalNumber('sigma_min'),
    finalSigma: readFinalSigma(config),
  };
}

/** Euler's method on the probability flow (Karras et al., arXiv 2206.00364, algorithm 1 without the second-order correction). */
export async function sampleEuler(
  schedule: NoiseSchedule,
  settings: EulerSettings,
  { steps, denoise, noise, onStep }: SamplingOptions,
): Promise<Tensor<'float32'>> {
  const { timesteps, sigmas } = eulerSteps(schedule, settings, steps);
  let sample = startFrom(noise, Math.max(...sigmas), settings);
  for (const [i, t] of timesteps.entries()) {
    const slope = await slopeAt(schedule, denoise, { sample, t, sigma: sigmas[i]! });
    const distance = sigmas[i + 1]! - sigmas[i]!;
    sample = float32(
      sample.shape,
      sample.data.map((x, k) => x + slope[k]! * distance),
    );
    await onStep?.(i + 1);
  }
  return sample;
}

/** The timesteps, which need not be whole, with their sigmas, and one sigma more: where the last step goes. */
function eulerSteps(
  schedule: NoiseSchedule,
  settings: EulerSettings,
  steps: number,
): { timesteps: number[]; sigmas: number[] } {
  const all = allSigmas(schedule);
  const last = lastSigma(settings.finalSigma, all);
  const timesteps = spacedTimesteps(schedule.steps, settings, steps).map(Math.fround);
  const sigmas = timesteps.map((t) => sigmaAt(all, t));
  if (!settings.karras) return { timesteps, sigmas: [...sigmas, last].map(Math.fround) };
  const spaced = karrasSigmas(settings.sigmaMax ?? sigmas[0]!, settings.sigmaMin ?? sigmas.at(-1)!, steps);
  return {
    timesteps: spaced.map((sigma) => Math.fround(timestepOf(all, sigma))),
    sigmas: [...spaced, last].map(Math.fround),
  };
}

/** Noise scaled to where the first step begins. */
export function startFrom(
  noise: Tensor<'float32'>,
  largestSigma: number,
  { timestepSpacing }: TimestepSpacing,
): Tensor<'float32'> {
  // `leading` does not begin at pure noise; the clean sample's own unit variance is added.
  const deviation = timestepSpacing === 'leading' ? Math.sqrt(largestSigma ** 2 + 1) : largestSigma;
  return float32(
    noise.shape,
    noise.data.map((x) => x * deviation),
  );
}

interface Point {
  /** Clean sample plus noise of standard deviation sigma; nothing is scaled down. */
  readonly sample: Tensor<'float32'>;
  readonly t: number;
  readonly sigma: number;
}

/** dx / dsigma = (x - denoised) / sigma (Karras et al., eq. 3), for a denoiser that takes samples of unit variance. */
export async function slopeAt(
  { predictionType }: NoiseSchedule,
  denoise: SamplingOptions['denoise'],
  { sample, t, sigma }: Point,
): Promise<Float32Array> {
  const signal = 1 / Math.sqrt(sigma ** 2 + 1);
  const scaled = float32(
    sample.shape,
    sample.data.map((x) => x * signal),
  );
  const prediction = (await denoise(scaled, t)).data;
  if (predictionType === 'epsilon') return prediction;
  return sample.data.map((x, k) => {
    const clean = signal ** 2 * x - sigma * signal * prediction[k]!;
    return (x - clean) / sigma;
  });
}
