import { lookForwardResidual } from '../diffusion/look-forward.js';
import { add, mul, neg, square } from '../onnx/elementwise.js';
import { mean } from '../onnx/reduction.js';
import { lookForwardReward } from '../rewards/look-forward.js';
import type { Critic } from './critic.js';
import { discountPerTimestep, headingOf } from './heading.js';
import type { Batch, Objective } from './objective.js';
import { priorLoss } from './prior-preservation.js';

export interface DpgLookForwardSettings {
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
  { priorLossWeight, gamma }: DpgLookForwardSettings,
): Objective {
  const heading = headingOf(batch);
  const reward = lookForwardReward.values(heading, undefined); // [I]
  const value = critic.value(lookForwardResidual(heading.latents, heading.clean)); // [I], what it expects of -reward
  const valueLoss = mean(mul(discountPerTimestep(batch, gamma), value));
  const prior = priorLoss(batch);
  return {
    loss: prior ? add(valueLoss, mul(prior, priorLossWeight)) : valueLoss,
    criticLoss: mean(square(add(value, reward))),
    metrics: {
      reward: mean(reward),
      criticValue: neg(mean(value)),
      valueLoss,
      ...(prior ? { priorLoss: prior } : {}),
    },
  };
}
