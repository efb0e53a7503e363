import {
  criticRewards,
  criticState,
  criticTurn,
  type DpgSettings,
  dpg,
  nextCriticState,
  rowsOf,
} from '../algorithms/dpg.js';
import { headingOf, type NextStates, nextStates } from '../algorithms/heading.js';
import { type Batch, meanOverRows, type Objective } from '../algorithms/objective.js';
import { type CriticState, ReturnCritic } from '../algorithms/return-critic.js';
import { gradients } from '../autodiff/gradient.js';
import { recompute } from '../autodiff/recompute.js';
import { lookForward } from '../diffusion/look-forward.js';
import { div } from '../onnx/elementwise.js';
import { Graph, type Value } from '../onnx/graph.js';
import { concat, reshape, slice } from '../onnx/movement.js';
import { mean } from '../onnx/reduction.js';
import { adamw } from '../optim/adamw.js';
import { updateWhereFinite } from '../optim/loss-scale.js';
import type { StableDiffusion } from '../pretrained/stable-diffusion.js';
import { combine } from '../rewards/combination.js';
import type { GraphReward, Heading } from '../rewards/reward.js';
import { referenceName } from './reference-cache.js';

/** Of the critic of any rewards. */
export const returnCriticOptimizer = adamw({ name: 'critic.adamw', weightDecay: 0 });

/** What the policy's turn hands to a critic's turn that comes after it, by the names of outputs and inputs. */
const experience = (name: string): string => `experience.${name}`;

/** The name under which rewards are fed to the critic's turn, and logged. */
export const rewardName = (reward: string): string => `reward.${reward}`;

/** Where the policy is heading, as pictures, for rewards outside the graph. */
export const PIXELS = 'experience.pixels';

export interface RewardTurns {
  readonly objective: Objective;
  /** The critic's turn, which waits for rewards from outside; undefined where there are none, and the step's one graph holds it. */
  readonly critic: Graph | undefined;
  /** Inputs of the critic's turn that the policy's turn puts out. */
  readonly experience: readonly string[];
  /** Scalars worth logging that the critic's turn puts out. */
  readonly criticMetrics: readonly string[];
  /** Scalars that are means over noised photographs alone, and say nothing where a batch has none. */
  readonly photographMetrics: readonly string[];
}

export interface RewardTurnOptions {
  readonly model: StableDiffusion;
  readonly settings: DpgSettings;
  /** Decode where the policy is heading again in the backward pass. */
  readonly gradientCheckpointing: boolean;
  /** The policy's prediction for other noisy latents and timesteps of the subject's rows. */
  readonly predict: (noisy: Value, timesteps: Value) => Value;
}

/**
 * Builds the turns of policy and critic for any rewards into a training step.
 *
 * With rewards that are all in the graph, one graph holds both turns. A black box can only answer once it has seen pictures: then the policy's turn puts these out,
 * together with what the critic has to know, and the critic's turn is a graph of its own, run when the answers are there. In both cases the policy follows the
 * critic as it was before this step.
 */
export function buildRewardTurns(graph: Graph, batch: Batch, options: RewardTurnOptions): RewardTurns {
  const { model, settings, predict } = options;
  const { rewards, criticTarget } = settings;
  const decode = (latents: Value): Value => {
    const build = (x: Value): Value => model.decoder(graph, div(x, model.vaeConfig.scalingFactor));
    return options.gradientCheckpointing ? recompute([latents], build) : build(latents);
  };
  const heading = headingOf(batch, decode);
  const values = new Map(
    rewards.flatMap(({ reward }) => {
      if (reward.kind !== 'graph') return [];
      const length = referenceLength(reward, heading);
      const reference =
        length === undefined
          ? undefined
          : graph.input(referenceName(reward.name), 'float32', [batch.instances, length]);
      return [[reward.name, reward.values(heading, reference)] as const];
    }),
  );
  const { fromPhotograph } = batch;
  const learnt = criticRewards(settings);
  const names = learnt.map((r) => r.reward.name);
  const critic = learnt.length > 0 ? new ReturnCritic(graph, names) : undefined;
  const objective = dpg(batch, heading, values, critic, settings);
  const seen: Experience = { now: criticState(batch, heading) };
  if (critic && criticTarget === 'return') {
    const next = nextStates(batch, heading);
    seen.next = { state: followed(batch, next, heading.clean, predict), goesOn: next.goesOn };
  }
  const photographMetrics = fromPhotograph
    ? [
        'instanceLoss',
        ...rewards.flatMap((r) => (rowsOf(r, fromPhotograph).counts ? [rewardName(r.reward.name)] : [])),
      ]
    : [];
  if (rewards.every(({ reward }) => reward.kind === 'graph')) {
    const metrics = learn(graph, critic, seen, values, options, fromPhotograph);
    return {
      objective: { ...objective, metrics: { ...objective.metrics, ...metrics } },
      critic: undefined,
      experience: [],
      criticMetrics: [],
      photographMetrics,
    };
  }

  graph.output(PIXELS, heading.pixels());
  const apart = new Graph('critic_turn');
  const handed: string[] = [];
  const hand = (name: string, value: Value): Value => {
    graph.output(name, value);
    handed.push(name);
    return apart.input(name, value.dtype, value.shape);
  };
  const handState = (prefix: string, state: CriticState): CriticState => ({
    heading: hand(experience(`${prefix}heading`), state.heading),
    clean: hand(experience(`${prefix}clean`), state.clean),
    noiseLevel: hand(experience(`${prefix}noise`), state.noiseLevel),
  });
  const told: Experience = { now: handState('', seen.now) };
  if (seen.next) {
    told.next = {
      state: handState('next.', seen.next.state),
      goesOn: hand(experience('goes_on'), seen.next.goesOn),
    };
  }
  const given = new Map(
    rewards.map(({ reward: { name } }) => {
      const known = values.get(name);
      const input = rewardName(name);
      return [name, known ? hand(input, known) : apart.input(input, 'float32', [batch.instances])] as const;
    }),
  );
  // Only where some reward needs it: an input that nothing reads is not fed.
  const toldFrom =
    fromPhotograph && photographMetrics.length > 1
      ? hand(experience('from_photograph'), fromPhotograph)
      : undefined;
  const metrics = learn(apart, new ReturnCritic(apart, names), told, given, options, toldFrom);
  for (const [name, value] of Object.entries(metrics)) apart.output(`metric.${name}`, value);
  const criticMetrics = Object.keys(metrics);
  return { objective, critic: apart, experience: handed, criticMetrics, photographMetrics };
}

interface Experience {
  readonly now: CriticState;
  next?: { readonly state: CriticState; readonly goesOn: Value };
}

/** Where the policy is heading from the states one timestep on. Only the critic's targets see it, so no gradient goes there. */
function followed(
  batch: Batch,
  next: NextStates,
  clean: Value,
  predict: RewardTurnOptions['predict'],
): CriticState {
  const prediction = predict(next.noisy, next.timesteps);
  const heading = lookForward(batch.schedule.predictionType, next.noisy, prediction, next.coefficients);
  return nextCriticState(next, heading, clean);
}

/** The critic's turn where there is a critic, and what is worth logging of the rewards. */
function learn(
  graph: Graph,
  critic: ReturnCritic | undefined,
  seen: Experience,
  values: ReadonlyMap<string, Value>,
  { model, settings }: RewardTurnOptions,
  fromPhotograph: Value | undefined,
): Record<string, Value> {
  const { rewards, combination } = settings;
  const total = combine(
    combination,
    rewards.map((r) => ({
      value: values.get(r.reward.name)!,
      weight: r.weight,
      ...rowsOf(r, fromPhotograph),
    })),
  );
  const metrics: Record<string, Value> = { reward: mean(total) };
  for (const r of rewards) {
    const { name } = r.reward;
    metrics[rewardName(name)] = meanOverRows(values.get(name)!, rowsOf(r, fromPhotograph).counts);
  }
  if (!critic) return metrics;
  const learnt = criticRewards(settings);
  const columns = concat(
    learnt.map(({ reward }) => reshape(values.get(reward.name)!, [-1, 1])),
    1,
  ); // [I, K]
  const turn = criticTurn(critic, seen.now, columns, learnt, seen.next);
  const grads = gradients(turn.loss, turn.copies);
  const update = (): void => returnCriticOptimizer.update(graph, turn.parameters, grads);
  // What the policy was heading for may be out of the range of halves.
  if (model.computeType === 'float16') updateWhereFinite(graph, grads, update);
  else update();
  metrics.criticLoss = turn.loss;
  learnt.forEach(({ reward: { name } }, k) => {
    metrics[`critic.${name}`] = mean(slice(turn.expected, 1, k, k + 1));
    metrics[`criticCorrelation.${name}`] = turn.fit[k]!.correlation;
    metrics[`criticExplainedVariance.${name}`] = turn.fit[k]!.explainedVariance;
  });
  return metrics;
}

/** The length of what a reward has to know of a row; undefined where it is nothing. */
function referenceLength({ reference }: GraphReward, heading: Heading): number | undefined {
  if (!reference) return undefined;
  if (reference.of === 'text') return [...reference.known.values()][0]!.data.length;
  const graph = new Graph('shapes');
  const [, ...picture] = heading.pixels().shape;
  return reference.build(graph.input('pixels', 'float32', [1, ...picture])).size;
}
