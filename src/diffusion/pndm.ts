import type { Config } from '../formats/json-config.js';
import { float32, type Tensor } from '../tensor/tensor.js';
import { alphaBarAfter, type NoiseSchedule } from './noise-schedule.js';
import { noiseInSample } from './prediction.js';
import type { SamplingOptions } from './sampler.js';
import { readTimestepSpacing, type TimestepSpacing, wholeTimesteps } from './timestep-spacing.js';

export interface PndmSettings extends TimestepSpacing {
  /** Whether the last step goes to abar = 1 rather than to abar_0. */
  readonly setAlphaToOne: boolean;
}

/** Only the form without Runge-Kutta steps at the beginning is supported, which Stable Diffusion 1 takes. */
export function readPndmSettings(config: Config): PndmSettings {
  config.must('skip_prk_steps', true, false);
  return {
    ...readTimestepSpacing(config, 'leading'),
    setAlphaToOne: config.boolean('set_alpha_to_one', false),
  };
}

/**
 * Pseudo linear multistep sampling: PNDM (Liu et al., arXiv 2202.09778, eq. 9, 12 and 14, algorithm 2 with the linear multistep from the second step on). The first step is
 * taken twice, the second time with the mean of the predictions at its two ends, so the denoiser is called once more than there are steps.
 */
export async function samplePndm(
  schedule: NoiseSchedule,
  settings: PndmSettings,
  { steps, denoise, noise, onStep }: SamplingOptions,
): Promise<Tensor<'float32'>> {
  const timesteps = wholeTimesteps(schedule.steps, settings, steps);
  const stride = Math.floor(schedule.steps / steps);
  const transfer = (sample: Tensor<'float32'>, t: number, prediction: (k: number) => number) =>
    transferred(schedule, settings, { sample, prediction, from: t, to: t - stride });
  const history: Float32Array[] = [];
  let sample = noise;
  for (const [i, t] of timesteps.entries()) {
    history.push((await denoise(sample, t)).data);
    if (history.length > 4) history.shift();
    const [p0, p1, p2, p3] = history.toReversed();
    const before = sample;
    if (!p1) {
      sample = transfer(before, t, (k) => p0![k]!);
      const end = timesteps[1];
      if (end !== undefined) {
        const there = (await denoise(sample, end)).data;
        // Diffusers counts the correction from the second timestep, which is a stride away except where spacings are rounded.
        const from = end + stride;
        sample = transfer(before, from, (k) => (there[k]! + p0![k]!) / 2);
      }
    } else if (!p2) {
      sample = transfer(before, t, (k) => (3 * p0![k]! - p1[k]!) / 2);
    } else if (!p3) {
      sample = transfer(before, t, (k) => (23 * p0![k]! - 16 * p1[k]! + 5 * p2[k]!) / 12);
    } else {
      sample = transfer(before, t, (k) => (55 * p0![k]! - 59 * p1[k]! + 37 * p2[k]! - 9 * p3[k]!) / 24);
    }
    await onStep?.(i + 1);
  }
  return sample;
}

interface Transfer {
  readonly sample: Tensor<'float32'>;
  /** The prediction's element k. */
  readonly prediction: (k: number) => number;
  readonly from: number;
  /** Below 0 at the end. */
  readonly to: number;
}

/** The transfer from one timestep to another along a prediction (eq. 9). */
function transferred(
  schedule: NoiseSchedule,
  settings: PndmSettings,
  { sample, prediction, from, to }: Transfer,
): Tensor<'float32'> {
  const alphaBar = schedule.alphasCumprod[from]!;
  const nextAlphaBar = alphaBarAfter(schedule, to, settings.setAlphaToOne);
  const [signal, sigma] = [Math.sqrt(alphaBar), Math.sqrt(1 - alphaBar)];
  const eps = noiseInSample(schedule.predictionType, signal, sigma);
  const scale = Math.sqrt(nextAlphaBar / alphaBar);
  const weight =
    (nextAlphaBar - alphaBar) /
    (alphaBar * Math.sqrt(1 - nextAlphaBar) + Math.sqrt(alphaBar * (1 - alphaBar) * nextAlphaBar));
  return float32(
    sample.shape,
    sample.data.map((x, k) => scale * x - weight * eps(x, prediction(k))),
  );
}
