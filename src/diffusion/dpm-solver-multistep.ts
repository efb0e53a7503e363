import type { Config } from '../formats/json-config.js';
import { roundHalfToEven } from '../tensor/rounding.js';
import { float32, type Tensor } from '../tensor/tensor.js';
import type { NoiseSchedule } from './noise-schedule.js';
import { cleanSample } from './prediction.js';
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
import {
  readTimestepSpacing,
  requireSteps,
  requireWithin,
  type TimestepSpacing,
} from './timestep-spacing.js';

export interface DpmSolverSettings extends TimestepSpacing {
  readonly order: 1 | 2;
  /** The two forms of the second-order term. */
  readonly solver: 'midpoint' | 'heun';
  /** With fewer than 15 steps, the last one is of first order. */
  readonly lowerOrderFinal: boolean;
  /** The last step is of first order. */
  readonly eulerAtFinal: boolean;
  /** Timesteps whose log(signal / noise) is below this are left out. */
  readonly leastLambda: number;
  /** Space sigmas as Karras et al. do, over the whole schedule. */
  readonly karras: boolean;
  readonly finalSigma: FinalSigma;
}

export function readDpmSolverSettings(config: Config): DpmSolverSettings {
  config.must('algorithm_type', 'dpmsolver++', 'dpmsolver++');
  config.must('use_lu_lambdas', false, false);
  config.must('use_flow_sigmas', false, false);
  config.must('use_dynamic_shifting', false, false);
  const karras = readKarras(config);
  if (karras && config.raw('beta_schedule') === 'squaredcos_cap_v2') {
    // Diffusers runs off the end of its own sigmas there.
    throw config.unsupported(
      'use_karras_sigmas',
      'true only with another "beta_schedule" than "squaredcos_cap_v2"',
    );
  }
  // Diffusers writes minus infinity for its default, which is no JSON number but is let through.
  const unclipped = [undefined, null, Number.NEGATIVE_INFINITY].includes(
    config.raw('lambda_min_clipped') as number | null | undefined,
  );
  return {
    ...readTimestepSpacing(config, 'linspace'),
    order: config.oneOf('solver_order', [1, 2], 2),
    solver: config.oneOf('solver_type', ['midpoint', 'heun'], 'midpoint'),
    lowerOrderFinal: config.boolean('lower_order_final', true),
    eulerAtFinal: config.boolean('euler_at_final', false),
    leastLambda: unclipped ? Number.NEGATIVE_INFINITY : config.number('lambda_min_clipped'),
    karras,
    finalSigma: readFinalSigma(config),
  };
}

/** DPM-Solver++(2M), or the first-order form that is DDIM (Lu et al., arXiv 2211.01095, algorithm 2, eq. 8 and 9). */
export async function sampleDpmSolverMultistep(
  schedule: NoiseSchedule,
  settings: DpmSolverSettings,
  { steps, denoise, noise, onStep }: SamplingOptions,
): Promise<Tensor<'float32'>> {
  const { timesteps, sigmas } = dpmSolverSteps(schedule, settings, steps);
  const points = sigmas.map(pointAt);
  let sample = noise;
  let before: Float32Array | undefined;
  for (const [i, t] of timesteps.entries()) {
    const prediction = (await denoise(sample, t)).data;
    const [from, to] = [points[i]!, points[i + 1]!];
    const cleanAt = cleanSample(schedule.predictionType, from.signal, from.noise);
    const clean = sample.data.map((x, k) => cleanAt(x, prediction[k]!));
    const shrink = to.noise / from.noise;
    const h = to.lambda - from.lambda;
    const gain = -to.signal * Math.expm1(-h);
    if (before === undefined || settings.order === 1 || endsInFirstOrder(settings, i, timesteps.length)) {
      sample = float32(
        sample.shape,
        sample.data.map((x, k) => shrink * x + gain * clean[k]!),
      );
    } else {
      const r = (from.lambda - points[i - 1]!.lambda) / h;
      const curve = settings.solver === 'midpoint' ? gain / 2 : to.signal * (Math.expm1(-h) / h + 1);
      const previous = before;
      sample = float32(
        sample.shape,
        sample.data.map((x, k) => shrink * x + gain * clean[k]! + (curve / r) * (clean[k]! - previous[k]!)),
      );
    }
    before = clean;
    await onStep?.(i + 1);
  }
  return sample;
}

function endsInFirstOrder(settings: DpmSolverSettings, step: number, steps: number): boolean {
  const { eulerAtFinal, lowerOrderFinal, finalSigma } = settings;
  return step === steps - 1 && (eulerAtFinal || (lowerOrderFinal && steps < 15) || finalSigma === 'zero');
}

/** alpha, sigma and lambda = log(alpha / sigma) of the paper at one of our sigmas. */
function pointAt(sigma: number): { signal: number; noise: number; lambda: number } {
  const signal = 1 / Math.sqrt(sigma ** 2 + 1);
  return { signal, noise: sigma * signal, lambda: -Math.log(sigma) };
}

/** Whole timesteps with their sigmas, and one sigma more: where the last step goes. */
function dpmSolverSteps(
  schedule: NoiseSchedule,
  settings: DpmSolverSettings,
  steps: number,
): { timesteps: number[]; sigmas: number[] } {
  const all = allSigmas(schedule);
  const visible = all.filter((sigma) => -Math.log(sigma) >= settings.leastLambda).length;
  requireSteps(visible - 1, steps);
  const final = lastSigma(settings.finalSigma, all);
  if (settings.karras) {
    const sigmas = karrasSigmas(all.at(-1)!, all[0]!, steps);
    return {
      timesteps: sigmas.map((sigma) => roundHalfToEven(timestepOf(all, sigma))),
      sigmas: [...sigmas, final].map(Math.fround),
    };
  }
  const timesteps = placed[settings.timestepSpacing](visible, steps, schedule.steps).map(
    (t) => t + (settings.timestepSpacing === 'leading' ? settings.stepsOffset : 0),
  );
  requireWithin(schedule.steps, timesteps, steps, settings);
  return { timesteps, sigmas: [...timesteps.map((t) => sigmaAt(all, t)), final].map(Math.fround) };
}

/** Unlike the other samplers', these spacings have a place at the clean end that is not visited. */
const placed: Record<
  TimestepSpacing['timestepSpacing'],
  (visible: number, steps: number, total: number) => number[]
> = {
  leading: (visible, steps) => {
    const stride = Math.floor(visible / (steps + 1));
    return Array.from({ length: steps }, (_, i) => (steps - i) * stride);
  },
  trailing: (visible, steps, total) =>
    Array.from(
      { length: Math.ceil((visible * steps) / total) },
      (_, i) => roundHalfToEven(visible - i * (total / steps)) - 1,
    ),
  linspace: (visible, steps) =>
    Array.from({ length: steps }, (_, i) => roundHalfToEven(((steps - i) * (visible - 1)) / steps)),
};
