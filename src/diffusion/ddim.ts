import { UsageError } from '../errors.js';
import { float32, type Tensor } from '../tensor/tensor.js';
import type { Denoise } from './guidance.js';
import type { NoiseSchedule } from './noise-schedule.js';

/** How the sampler places its steps (Lin et al., arXiv 2305.08891, table 2) and ends. */
export interface DdimSettings {
  readonly timestepSpacing: 'leading' | 'trailing' | 'linspace';
  /** Added to `leading` timesteps. */
  readonly stepsOffset: number;
  /** Whether the last step goes to abar = 1 rather than to abar_0. */
  readonly setAlphaToOne: boolean;
  /** Where given, predicted clean samples are clipped to [-clipRange, clipRange]. */
  readonly clipRange?: number;
}

/**
 * The timesteps that a sampler of `steps` steps visits, from noisy to clean.
 *
 * @throws UsageError when the schedule has fewer timesteps.
 */
export function ddimTimesteps(schedule: NoiseSchedule, settings: DdimSettings, steps: number): number[] {
  const total = schedule.steps;
  if (!Number.isInteger(steps) || steps < 1 || steps > total) {
    throw new UsageError(
      `A sampler takes 1 to ${total} steps with this model's noise schedule, not ${steps}.`,
    );
  }
  const timesteps = spacings[settings.timestepSpacing](total, steps, settings.stepsOffset);
  const outside = timesteps.find((t) => t >= total);
  if (outside !== undefined) {
    throw new UsageError(
      `${steps} steps with "steps_offset": ${settings.stepsOffset} would visit timestep ${outside}, but the noise schedule ends at ${total - 1}. Take fewer steps.`,
    );
  }
  return timesteps;
}

type Spacing = (total: number, steps: number, offset: number) => number[];

const spacings: Record<DdimSettings['timestepSpacing'], Spacing> = {
  leading: (total, steps, offset) => {
    const stride = Math.floor(total / steps);
    return Array.from({ length: steps }, (_, i) => (steps - 1 - i) * stride + offset);
  },
  trailing: (total, steps) => {
    const stride = total / steps;
    return Array.from({ length: steps }, (_, i) => roundHalfToEven(total - i * stride) - 1);
  },
  linspace: (total, steps) => {
    const stride = steps === 1 ? 0 : (total - 1) / (steps - 1);
    return Array.from({ length: steps }, (_, i) => roundHalfToEven((steps - 1 - i) * stride));
  },
};

function roundHalfToEven(x: number): number {
  const floor = Math.floor(x);
  const rest = x - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2 === 1) ? floor + 1 : floor;
}

export interface DdimOptions {
  readonly steps: number;
  readonly denoise: Denoise;
  /** Standard normal noise [B, C, H, W] to start from. */
  readonly noise: Tensor<'float32'>;
  /** Called after each step with the number of steps done; throw from it to stop. */
  readonly onStep?: (done: number) => void | Promise<void>;
}

/**
 * Deterministic sampling from noise to a clean sample: DDIM (Song et al., arXiv 2010.02502, eq. 12 with sigma = 0).
 *
 * @throws UsageError when the schedule cannot take that many steps.
 */
export async function sampleDdim(
  schedule: NoiseSchedule,
  settings: DdimSettings,
  { steps, denoise, noise, onStep }: DdimOptions,
): Promise<Tensor<'float32'>> {
  const stride = Math.floor(schedule.steps / steps);
  const clipRange = settings.clipRange ?? Number.POSITIVE_INFINITY;
  let sample = noise;
  let done = 0;
  for (const t of ddimTimesteps(schedule, settings, steps)) {
    const prediction = (await denoise(sample, t)).data;
    const alphaBar = schedule.alphasCumprod[t]!;
    const next = t - stride;
    const nextAlphaBar =
      next >= 0 ? schedule.alphasCumprod[next]! : settings.setAlphaToOne ? 1 : schedule.alphasCumprod[0]!;
    const [signal, sigma] = [Math.sqrt(alphaBar), Math.sqrt(1 - alphaBar)];
    const [nextSignal, nextSigma] = [Math.sqrt(nextAlphaBar), Math.sqrt(1 - nextAlphaBar)];
    const velocity = schedule.predictionType === 'v_prediction';
    sample = float32(
      sample.shape,
      sample.data.map((x, i) => {
        const p = prediction[i]!;
        const clean = velocity ? signal * x - sigma * p : (x - sigma * p) / signal;
        const eps = velocity ? signal * p + sigma * x : p;
        return nextSignal * Math.max(-clipRange, Math.min(clipRange, clean)) + nextSigma * eps;
      }),
    );
    await onStep?.(++done);
  }
  return sample;
}
