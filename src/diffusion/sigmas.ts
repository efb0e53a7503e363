import type { Config } from '../formats/json-config.js';
import type { NoiseSchedule } from './noise-schedule.js';

/**
 * The noise schedule as samplers over ordinary differential equations see it (Karras et al., arXiv 2206.00364): sigma = sqrt((1 - abar) / abar), the standard deviation of the
 * noise on a clean sample that is not scaled down. One a timestep, growing.
 */
export function allSigmas(schedule: NoiseSchedule): Float32Array {
  return schedule.alphasCumprod.map((alphaBar) => {
    // Where nothing of the signal is left, sigma would be infinite.
    const signal = alphaBar === 0 ? 2 ** -24 : alphaBar;
    return Math.sqrt(Math.fround(Math.fround(1 - signal) / signal));
  });
}

/** Sigma at a timestep that need not be whole, between its neighbours' in proportion. */
export function sigmaAt(sigmas: Float32Array, timestep: number): number {
  const low = Math.floor(timestep);
  const from = sigmas[low]!;
  const rest = timestep - low;
  return rest === 0 ? from : from + rest * (sigmas[low + 1]! - from);
}

/** The timestep, not rounded, whose sigma this is: log sigma between its neighbours' in proportion. */
export function timestepOf(sigmas: Float32Array, sigma: number): number {
  const target = Math.log(Math.max(sigma, 1e-10));
  const logs = sigmas.map(Math.log);
  const low = Math.min(
    Math.max(
      logs.findLastIndex((log) => log <= target),
      0,
    ),
    logs.length - 2,
  );
  const weight = (logs[low]! - target) / (logs[low]! - logs[low + 1]!);
  return low + Math.max(0, Math.min(1, weight));
}

const RHO = 7;

/** Sigmas from `largest` down to `smallest`, denser at the small ones (Karras et al., arXiv 2206.00364, eq. 5 with rho = 7). */
export function karrasSigmas(largest: number, smallest: number, steps: number): number[] {
  const from = largest ** (1 / RHO);
  const to = smallest ** (1 / RHO);
  return Array.from(
    { length: steps },
    (_, i) => (from + (steps === 1 ? 0 : i / (steps - 1)) * (to - from)) ** RHO,
  );
}

/** Where the last step goes: to no noise at all, or to the noise of timestep 0. */
export type FinalSigma = 'zero' | 'sigma_min';

export function readFinalSigma(config: Config): FinalSigma {
  return config.oneOf('final_sigmas_type', ['zero', 'sigma_min'], 'zero');
}

/** The sigma of that. */
export function lastSigma(final: FinalSigma, sigmas: Float32Array): number {
  return final === 'zero' ? 0 : sigmas[0]!;
}

/** Whether sigmas are spaced as {@link karrasSigmas}; the other ways to space them are refused. */
export function readKarras(config: Config): boolean {
  config.must('use_exponential_sigmas', false, false);
  config.must('use_beta_sigmas', false, false);
  return config.boolean('use_karras_sigmas', false);
}
