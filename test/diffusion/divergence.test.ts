import assert from 'node:assert/strict';
import { test } from 'node:test';
import { chainDivergence } from '../../src/diffusion/divergence.js';
import { NoiseSchedule } from '../../src/diffusion/noise-schedule.js';

const betas = Float32Array.of(0.1, 0.25, 0.5);

/** Of two Gaussians of the same variance: the squared distance of their means over twice the variance. */
const gaussians = (a: number, b: number, variance: number): number => (a - b) ** 2 / (2 * variance);

test('the divergence of two chains is the sum of those of their steps, worked out from the means', () => {
  // In one dimension, on one state for each timestep: x, what the policy says and what the base says.
  const states = [
    [0.3, 0.5, -0.25],
    [-1.2, 0.125, 0.5],
    [0.7, 1, 2],
  ] as const;
  let [bar, expected] = [1, 0];
  const pairs = states.map(([x, policy, base], t) => {
    const [beta, alpha] = [betas[t]!, 1 - betas[t]!];
    bar *= alpha;
    // Ho et al., arXiv 2006.11239, eq. 11.
    const mean = (eps: number): number => (x - (beta / Math.sqrt(1 - bar)) * eps) / Math.sqrt(alpha);
    expected += gaussians(mean(policy), mean(base), beta);
    return { timestep: t, policy: Float32Array.of(policy), base: Float32Array.of(base) };
  });
  const found = chainDivergence(new NoiseSchedule(betas, 'epsilon'), pairs);
  assert.ok(Math.abs(found - expected) < 1e-6 * expected, `${found}, by the means ${expected}`);

  // Velocities v = sqrt(abar) eps - sqrt(1 - abar) x_0 that say the same of the same states.
  let signal = 1;
  const velocities = states.map(([x, policy, base], t) => {
    signal *= 1 - betas[t]!;
    const [a, s] = [Math.sqrt(signal), Math.sqrt(1 - signal)];
    const velocity = (eps: number): Float32Array => Float32Array.of(a * eps - (s * (x - s * eps)) / a);
    return { timestep: t, policy: velocity(policy), base: velocity(base) };
  });
  const same = chainDivergence(new NoiseSchedule(betas, 'v_prediction'), velocities);
  assert.ok(Math.abs(same - expected) < 1e-5 * expected, `${same} of velocities, ${expected} of noise`);
});

test('a visited timestep stands for those below it that were not, the last also for those above, and equal policies are not apart', () => {
  const schedule = new NoiseSchedule(Float32Array.of(0.2, 0.2, 0.2, 0.2, 0.2), 'epsilon');
  const pair = (timestep: number, base: number) => ({
    timestep,
    policy: Float32Array.of(1, 1, 1, 1),
    base: Float32Array.of(base, 1, 1, 1),
  });
  const weight = (t: number): number => 0.2 / (2 * 0.8 * (1 - 0.8 ** (t + 1)));
  // Two states of the third timestep count as their mean.
  const found = chainDivergence(schedule, [pair(2, 2), pair(0, 3), pair(2, 4)]);
  const expected = weight(0) * 1 + (weight(1) + weight(2) + weight(3) + weight(4)) * ((1 / 4 + 9 / 4) / 2);
  assert.ok(Math.abs(found - expected) < 1e-6, `${found}, by hand ${expected}`);
  assert.equal(chainDivergence(schedule, [pair(0, 1), pair(3, 1)]), 0);
});
