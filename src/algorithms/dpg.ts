import { lookForward, lookForwardResidual } from '../diffusion/look-forward.js';
import { add, mul, neg, square, sub } from '../onnx/elementwise.js';
import type { Value } from '../onnx/graph.js';
import { gather } from '../onnx/movement.js';
import { mean } from '../onnx/reduction.js';
import { float32 } from '../tensor/tensor.js';
import type { Critic } from './critic.js';
import { type Batch, instanceRows, type Objective } from './objective.js';
import { priorLoss } from './prior-preservation.js';

export interface DpgSettings {
  /** Weight of the class's rows. */
  readonly priorLossWeight: number;
  /** Discount per timestep. */
  readonly gamma: number;
}

/**
 * Deterministic policy gradient with the look-forward reward (arXiv 2407.06642, sections 4.1 and 4.2), as the authors' released code computes it.
 *
 * The denoiser is a deterministic policy: its state is (x_t, t, c), its action the prediction. Looking forward from x_t gives xhat_0 and the residual
 * rho = (xhat_0 - x_0)^2, whose mean is the negative reward. The critic Q_phi learns that mean from rho, and the policy descends gamma^t Q_phi(rho):
 *
 *   policy:  w * mse(prior rows) + mean_i gamma^{t_i} Q_phi(rho_i)
 *   critic:  mean_i (Q_phi(rho_i) - mean(rho_i))^2, rho held constant
 *
 * Both are taken from one forward pass and with the critic as it was before this step, so one graph holds the policy's turn and the critic's.
 *
 * Deviations from that code: gamma^t is each sample's own, where there the first sample's timestep counted for all; any resolution; the prior rows may be absent.
 */
export function dpgLookForward(
  batch: Batch,
  critic: Critic,
  { priorLossWeight, gamma }: DpgSettings,
): Objective {
  const { schedule } = batch;
  const rows = (v: Value): Value => instanceRows(batch, v);
  const coefficients = { signal: rows(batch.coefficients.signal), noise: rows(batch.coefficients.noise) };
  const clean = rows(batch.clean);
  const heading = lookForward(
    schedule.predictionType,
    rows(batch.noisy),
    rows(batch.prediction),
    coefficients,
  );
  const rho = lookForwardResidual(heading, clean); // [I, C, h, w]
  const cost = mean(rho, [1, 2, 3]); // [I]
  const value = critic.value(rho); // [I]
  const discount = Float32Array.from({ length: schedule.steps }, (_, t) => gamma ** t);
  const table = rho.graph.constant(float32([schedule.steps], discount), 'discount');
  const valueLoss = mean(mul(gather(table, rows(batch.timesteps), 0), value));
  const prior = priorLoss(batch);
  return {
    loss: prior ? add(valueLoss, mul(prior, priorLossWeight)) : valueLoss,
    criticLoss: mean(square(sub(value, cost))),
    metrics: {
      reward: neg(mean(cost)),
      criticValue: neg(mean(value)),
      valueLoss,
      ...(prior ? { priorLoss: prior } : {}),
    },
  };
}
