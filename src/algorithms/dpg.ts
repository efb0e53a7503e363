import { add, mul, neg } from '../onnx/elementwise.js';
import type { Value } from '../onnx/graph.js';
import { concat, reshape, slice } from '../onnx/movement.js';
import { mean } from '../onnx/reduction.js';
import { type Combination, combine } from '../rewards/combination.js';
import type { Heading, WeightedReward } from '../rewards/reward.js';
import { errorPerSample } from './denoising.js';
import { discountPerTimestep, instanceCoefficients, type NextStates } from './heading.js';
import { type Batch, instanceRows, meanOverRows, type Objective } from './objective.js';
import { priorLoss } from './prior-preservation.js';
import type { CriticState, ReturnCritic } from './return-critic.js';

/** Which way the policy's gradient takes: through the critic, straight through rewards that have a gradient, or the mean of both. */
export type PolicyGradient = 'critic' | 'reward' | 'both';

/**
 * What the critic learns of a reward r. `return`: the discounted return, with the temporal-difference target r(x_t) + gamma Q(x_{t-1}), as the paper has it.
 * `reward`: r(x_t) alone, as the released code has it; then gamma^t discounts what the policy follows.
 */
export type CriticTarget = 'return' | 'reward';

export interface DpgSettings {
  /** Weight of the class's rows. */
  readonly priorLossWeight: number;
  /** Weight of the rewards against the denoising error. */
  readonly lambda: number;
  readonly rewards: readonly WeightedReward[];
  readonly combination: Combination;
  /** Left out: straight for the rewards that have a gradient, through the critic for the others. */
  readonly policyGradient?: PolicyGradient;
  readonly criticTarget: CriticTarget;
}

/** Whether a reward is followed by its own gradient under these settings. */
export function isFollowedStraight({ reward }: WeightedReward, { policyGradient }: DpgSettings): boolean {
  return reward.kind === 'graph' && policyGradient !== 'critic';
}

/** The rewards that the critic has to learn under these settings, in the order of its heads. */
export function criticRewards(settings: DpgSettings): readonly WeightedReward[] {
  const { rewards, policyGradient } = settings;
  if (policyGradient === 'critic' || policyGradient === 'both') return rewards;
  return rewards.filter((r) => !isFollowedStraight(r, settings));
}

/** A state for the critic, of the subject's rows. */
export function criticState(batch: Batch, heading: Heading): CriticState {
  return {
    heading: heading.latents,
    clean: heading.clean,
    noiseLevel: instanceCoefficients(batch).noise,
  };
}

/**
 * The policy's turn of the deterministic policy gradient on any rewards, as arXiv 2407.06642 describes it (section 4, algorithm 1): it maximises
 *
 *   mean_i ( lambda * P_i - m_i |eps_i - a_i|^2 )  -  w * mse(prior rows)
 *
 * over the subject's rows i, with m_i 1 for a noised photograph and 0 for a state that the policy visited, where no noise is the true one. P combines what is
 * expected of each reward r_k: the critic's Q_k, whose gradient reaches the policy through where it is heading, or, where r_k has a gradient, gamma_k^t r_k itself.
 *
 * Deviations from the paper, which is silent on some of this and knows noised photographs alone: the squared error is a mean over elements, as everywhere; the released
 * code has no denoising error on the subject's rows; a reward that compares with the row's own photograph is left out of P on visited states, and has to be followed
 * straight; what Q sees is described at {@link ReturnCritic}.
 *
 * @param values of the graph rewards by name, [I] each; black boxes have none
 * @param critic where some reward is learnt by it
 */
export function dpg(
  batch: Batch,
  heading: Heading,
  values: ReadonlyMap<string, Value>,
  critic: ReturnCritic | undefined,
  settings: DpgSettings,
): Objective {
  const { rewards, combination, policyGradient, criticTarget } = settings;
  const learnt = criticRewards(settings);
  const expected = critic?.values(criticState(batch, heading)); // [I, K]
  const byCritic = (r: WeightedReward) => {
    const k = learnt.indexOf(r);
    const value = reshape(slice(expected!, 1, k, k + 1), [batch.instances]);
    // A return is discounted in itself.
    return criticTarget === 'return'
      ? { value, weight: r.weight }
      : { value, weight: r.weight, discount: discountPerTimestep(batch, r.gamma) };
  };
  const straight = (r: WeightedReward) => ({
    value: values.get(r.reward.name)!,
    weight: r.weight,
    discount: discountPerTimestep(batch, r.gamma),
    ...rowsOf(r, batch.fromPhotograph),
  });
  const bestWay = (): Value =>
    combine(
      combination,
      rewards.map((r) => (isFollowedStraight(r, settings) ? straight(r) : byCritic(r))),
    );
  const throughCritic = (): Value => combine(combination, rewards.map(byCritic));
  const promise =
    policyGradient === 'critic'
      ? throughCritic()
      : policyGradient === 'both'
        ? mul(add(bestWay(), throughCritic()), 0.5)
        : bestWay(); // [I]
  const valueLoss = neg(mean(promise));
  const { fromPhotograph } = batch;
  const errors = errorPerSample(instanceRows(batch, batch.prediction), instanceRows(batch, batch.target));
  const own = add(
    mean(fromPhotograph ? mul(errors, fromPhotograph) : errors),
    mul(valueLoss, settings.lambda),
  );
  const prior = priorLoss(batch);
  return {
    loss: prior ? add(own, mul(prior, settings.priorLossWeight)) : own,
    metrics: {
      valueLoss,
      instanceLoss: meanOverRows(errors, fromPhotograph),
      ...(prior ? { priorLoss: prior } : {}),
    },
  };
}

/** The rows that a reward says something of, where these are not all. @param fromPhotograph of the batch */
export function rowsOf(
  { reward }: WeightedReward,
  fromPhotograph: Value | undefined,
): { readonly counts?: Value } {
  return reward.kind === 'graph' && reward.ofNoisedPhotographs && fromPhotograph
    ? { counts: fromPhotograph }
    : {};
}

/**
 * The critic's turn: one step on (Q_k(x_t) - y_k)^2 of each reward it learns, with y_k = r_k(x_t) + gamma_k Q_k(x_{t-1}) or r_k(x_t). The process ends at t = 0,
 * after which there is no return.
 *
 * @param rewards r_k(x_t) of the learnt rewards, in the order of the heads, [I, K]
 * @param next where x_{t-1} leads, and whether there is one; left out where returns are not learnt
 */
export function criticTurn(
  critic: ReturnCritic,
  state: CriticState,
  rewards: Value,
  learnt: readonly WeightedReward[],
  next?: { readonly state: CriticState; readonly goesOn: Value },
): ReturnType<ReturnCritic['turn']> {
  if (!next) return critic.turn(state, rewards);
  const later = critic.values(next.state); // [I, K]
  const discounts = concat(
    learnt.map((r) => mul(reshape(next.goesOn, [-1, 1]), r.gamma)),
    1,
  ); // [I, K]
  return critic.turn(state, add(rewards, mul(discounts, later)));
}

/** The state that the critic sees one timestep on, from where the policy is heading there. */
export function nextCriticState(next: NextStates, heading: Value, clean: Value): CriticState {
  return { heading, clean, noiseLevel: next.coefficients.noise };
}
