import type { NoiseSchedule } from './noise-schedule.js';

/** What two policies say of one state: predictions of the schedule's type, of as many elements. */
export interface PredictionPair {
  /** A whole timestep. */
  readonly timestep: number;
  readonly policy: Float32Array;
  readonly base: Float32Array;
}

/**
 * How far a policy is from the base on states x_t that it visited: the Kullback-Leibler divergence of their denoising chains, KL(policy || base), in nats for each element
 * of the latents, as it regularises DPOK (Fan et al., arXiv 2305.16381, section 4). A step of the chain (Ho et al., arXiv 2006.11239, section 3.2, with
 * sigma_t^2 = beta_t) is a Gaussian about a mean that is linear in the predicted noise, so that
 *
 *   KL = sum_t w_t E_(x_t of the policy) [ mean((a_t - a_t of the base)^2) ],    w_t = beta_t / (2 alpha_t (1 - abar_t)).
 *
 * Where not every timestep was visited, a visited one stands for those after the next one below it, over which a sampler's step leads, and the last for all above it
 * too: w_t falls like 1 / t, so it is summed, and only the difference is taken to be the same. Velocities are differences of noise over sqrt(abar_t).
 */
export function chainDivergence(schedule: NoiseSchedule, pairs: readonly PredictionPair[]): number {
  const errors = new Map<number, number[]>();
  for (const { timestep, policy, base } of pairs) {
    let squares = 0;
    for (let i = 0; i < policy.length; i++) squares += (policy[i]! - base[i]!) ** 2;
    const known = errors.get(timestep) ?? [];
    known.push(squares / policy.length);
    errors.set(timestep, known);
  }
  const visited = [...errors.keys()].sort((a, b) => a - b);
  let divergence = 0;
  visited.forEach((t, k) => {
    const from = k === 0 ? 0 : visited[k - 1]! + 1;
    const to = k === visited.length - 1 ? schedule.steps - 1 : t;
    let weight = 0;
    for (let s = from; s <= to; s++) weight += stepWeight(schedule, s);
    const own = errors.get(t)!;
    divergence += weight * (own.reduce((sum, e) => sum + e, 0) / own.length);
  });
  return divergence;
}

/** What a mean squared difference of predictions at timestep t counts. */
function stepWeight({ predictionType, alphasCumprod, betas }: NoiseSchedule, t: number): number {
  const beta = betas[t]!;
  const noise = 1 - alphasCumprod[t]!;
  // alpha_t in the denominator is part of abar_t, which may be zero at the end of the process.
  return predictionType === 'epsilon'
    ? beta / (2 * (1 - beta) * noise)
    : (beta * (alphasCumprod[t - 1] ?? 1)) / (2 * noise);
}
