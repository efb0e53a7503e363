import { Critic } from '../algorithms/critic.js';
import type { DpgSettings } from '../algorithms/dpg.js';
import { dpgLookForward } from '../algorithms/dpg-look-forward.js';
import { dreambooth } from '../algorithms/dreambooth.js';
import type { Batch, Objective } from '../algorithms/objective.js';
import { priorLoss } from '../algorithms/prior-preservation.js';
import { gradients } from '../autodiff/gradient.js';
import { after } from '../autodiff/order.js';
import { type PictureSize, squareOf } from '../data/aspect-buckets.js';
import { coefficients, noisySample, predictionTarget } from '../diffusion/look-forward.js';
import type { Condition } from '../models/unet-2d-condition.js';
import { add, cast, div, equal, exp, mul, not, where } from '../onnx/elementwise.js';
import { Graph, type Value } from '../onnx/graph.js';
import { concat, reshape, slice } from '../onnx/movement.js';
import { clipByGlobalNorm, scaleAll } from '../optim/clipping.js';
import { ema } from '../optim/ema.js';
import { updateWhereFinite } from '../optim/loss-scale.js';
import type { Parameter } from '../optim/optimizer.js';
import { sgd } from '../optim/sgd.js';
import type { StableDiffusion } from '../pretrained/stable-diffusion.js';
import type { Trainable } from '../pretrained/trainable.js';
import { type Tensor, zeros } from '../tensor/tensor.js';
import { LOSS_SCALE } from './loss-scaler.js';
import {
  accumulatedName,
  buildPiecewiseUpdate,
  isLarge,
  type PiecewiseGraphs,
  type UpdateSettings,
} from './piecewise-update.js';
import { buildRewardTurns, type RewardTurns } from './reward-turns.js';

/** The objective that the policy descends. */
export type ObjectiveSettings =
  | { readonly method: 'dreambooth'; readonly snrGamma?: number }
  | { readonly method: 'dpg look-forward'; readonly gamma: number; readonly criticLearningRate: number }
  | ({ readonly method: 'dpg'; readonly criticLearningRate: number } & Omit<DpgSettings, 'priorLossWeight'>);

export interface StepSettings extends UpdateSettings {
  readonly objective: ObjectiveSettings;
  readonly priorLossWeight: number;
  readonly trainable: Trainable;
  readonly instances: number;
  /** Whether some of these rows, told by what is fed, are states that the policy visited itself instead of noised photographs. */
  readonly rollouts?: boolean;
  /** Rows of the class in each batch; 0 without prior preservation. */
  readonly priors: number;
  /** Side in pixels of a square picture. */
  readonly resolution: number;
  /** Standard deviation of the noise that a whole channel has in common; none without it. */
  readonly noiseOffset?: number;
  readonly gradientAccumulationSteps: number;
  readonly gradientCheckpointing: boolean;
  /** Whether the class's rows go forwards and back only after the subject's, in the memory that those leave; where rows are large and the model says so by default. */
  readonly inTurn?: boolean;
  /** Whether the update goes over what is trained piece by piece, apart from the step's graph; where it is large by default. */
  readonly inPieces?: boolean;
}

/** The graphs of a training step. */
export interface StepGraphs {
  /** Forward, loss and backward; without accumulation also the update, unless that goes piece by piece. */
  readonly micro: Graph;
  /** With accumulation, the update from the gradients that the micro steps have summed. */
  readonly apply: Graph | undefined;
  /** The update from the gradients that the micro steps leave in the state, where it goes piece by piece. */
  readonly pieces: PiecewiseGraphs | undefined;
  /** What `micro` returns besides `loss`. */
  readonly metrics: readonly string[];
  /** Those of all metrics that say nothing of a batch without noised photographs. */
  readonly photographMetrics: readonly string[];
  /** The critic's turn, where it waits for rewards from outside. */
  readonly critic:
    | (Pick<RewardTurns, 'experience' | 'criticMetrics'> & { readonly graph: Graph })
    | undefined;
}

export const criticOptimizer = sgd({ name: 'critic.sgd' });

/**
 * Builds the training step of a personalisation.
 *
 * Fed at each micro step, with B = instances + priors rows: the posterior of the clean latents (`latents.mean`, `latents.logvar`, as the autoencoder gives them) and
 * standard normal `latents.noise` to draw from it, the `noise` and `timesteps` of the forward process (with an offset also `noise.offset` [B, C, 1, 1], standard
 * normal), and the condition: what `model.condition` asks for, or, when the text encoders learn too, the tokens in place of the embedding. With roll-outs also
 * `states.photograph` [I], 1 for the subject's rows that are noised photographs and 0 for those that are visited states, and the latter as `states.visited`
 * [I, C, h, w], whose timesteps and conditions are in their rows. Taken from the state and updated in it: what is trainable, the optimiser's moments, the critic,
 * the averages.
 *
 * Where the model computes in half precision, the loss is multiplied by the fed scalar `loss_scale` before it is differentiated, and gradients are divided by it,
 * in float32, before anything else sees them. If one of them is not finite, the output `overflowed` is 1 and what is learnt stays as it was; `loss` and `gradientNorm`
 * are told unscaled. The critic, whose gradients are its own, stays as it was if one of those is not finite.
 *
 * @param size of the batch's pictures, a square of the resolution by default. Steps for several sizes share one state.
 */
export function buildStep(
  model: StableDiffusion,
  settings: StepSettings,
  size: PictureSize = squareOf(settings.resolution),
): StepGraphs {
  const { trainable, gradientAccumulationSteps: parts } = settings;
  const graph = new Graph('training_step');
  // All weights' gradients would be most of what a step holds, and stay to its end anyway.
  if (settings.gradientCheckpointing && !trainable.weights) graph.planInStages();
  const rows = settings.instances + settings.priors;
  const shape = [rows, ...model.latentShape(size.width, size.height)];
  const { schedule } = model.scheduler;

  const deviation = exp(mul(graph.input('latents.logvar', 'float32', shape), 0.5));
  const drawn = add(
    graph.input('latents.mean', 'float32', shape),
    mul(deviation, graph.input('latents.noise', 'float32', shape)),
  );
  const clean = mul(drawn, model.vaeConfig.scalingFactor);
  const noise = offsetNoise(graph.input('noise', 'float32', shape), settings.noiseOffset);
  const timesteps = graph.input('timesteps', 'int64', [rows]);
  const text = model.trainsText(trainable) ? model.textEncoder(graph, rows, trainable) : undefined;
  const condition = model.condition(graph, rows, text?.result);

  const { instances } = settings;
  const fromPhotograph = settings.rollouts ? graph.input(FROM_PHOTOGRAPH, 'float32', [instances]) : undefined;
  let inputs: ReadonlyMap<string, Value> | undefined;
  /** Rows of the batch, from one to another, and what the denoiser says of them once `before` is computed. */
  const batchOf = (from: number, to: number, before: readonly Value[] = []): Batch => {
    const own = (v: Value): Value => (to - from === rows ? v : slice(v, 0, from, to));
    const x0 = own(clean);
    const eps = own(noise);
    const t = own(timesteps);
    const c = coefficients(graph, schedule, t);
    const noised = noisySample(x0, eps, c);
    const visits = from < instances ? fromPhotograph : undefined;
    const noisy = visits ? withVisited(noised, visits) : noised;
    const denoiser = model.denoiser(
      graph,
      { sample: after([noisy], before)[0]!, timestep: t, condition: conditionOf(condition, own) },
      {
        adaptation: trainable,
        gradientCheckpointing: settings.gradientCheckpointing,
        ...(inputs ? { inputs } : {}),
      },
    );
    inputs ??= denoiser.inputs;
    return {
      schedule,
      coefficients: c,
      instances: Math.min(Math.max(instances - from, 0), to - from),
      ...(visits ? { fromPhotograph: visits } : {}),
      timesteps: t,
      clean: x0,
      noise: eps,
      noisy,
      prediction: denoiser.result,
      target: predictionTarget(schedule.predictionType, x0, eps, c),
    };
  };
  // Where whole weights train, a first set of their gradients would wait for the second.
  const savesMemory = model.rowsInTurn && places(shape) >= LARGE_ROW && trainable.weights === undefined;
  const inTurn = settings.priors > 0 && (settings.inTurn ?? savesMemory);
  const batch = batchOf(0, inTurn ? instances : rows);
  const parameters = [...inputs!.values(), ...(text?.inputs.values() ?? [])];
  const predict = (sample: Value, timestep: Value): Value =>
    model.denoiser(
      graph,
      { sample, timestep, condition: conditionOf(condition, (v) => slice(v, 0, 0, instances)) },
      { adaptation: trainable, inputs: inputs! },
    ).result;
  const built = buildObjective(graph, batch, model, predict, settings);
  const half = model.computeType === 'float16';
  const scaleOf = (g: Graph): Value | undefined => (half ? g.input(LOSS_SCALE, 'float32', []) : undefined);
  const scale = scaleOf(graph);
  const descend = (part: Value): Value[] => gradients(scale ? mul(part, scale) : part, parameters);
  let { loss, metrics } = built.objective;
  let grads = descend(loss);
  if (inTurn) {
    const prior = priorLoss(batchOf(instances, rows, grads))!;
    const weighted = mul(prior, settings.priorLossWeight);
    const added = descend(weighted);
    grads = grads.map((own, i) => add(own, added[i]!));
    loss = add(loss, weighted);
    metrics = { ...metrics, priorLoss: prior };
  }
  const { criticLoss } = built.objective;
  const { critic } = built;
  const named = { ...metrics, ...(criticLoss ? { criticLoss } : {}) };
  const inPieces = settings.inPieces ?? isLarge(parameters);
  if (parts > 1 || inPieces) {
    parameters.forEach((p, i) => {
      const kept = graph.input(accumulatedName(p.name), 'float32', p.shape);
      graph.update(kept, parts > 1 ? add(kept, div(grads[i]!, parts)) : grads[i]!);
    });
  }
  let apply: Graph | undefined;
  let pieces: PiecewiseGraphs | undefined;
  if (inPieces) {
    pieces = buildPiecewiseUpdate(parameters, settings, { half, sums: parts > 1 });
  } else if (parts === 1) {
    update(graph, parameters, grads, settings, scale);
  } else {
    apply = new Graph('update');
    const own = apply;
    const sums = parameters.map((p) => own.input(accumulatedName(p.name), 'float32', p.shape));
    const inputs = parameters.map((p) => own.input(p.name, 'float32', p.shape));
    update(own, inputs, sums, settings, scaleOf(own));
    for (const sum of sums) own.update(sum, own.constant(zeros(sum.shape)));
  }
  if (critic && criticLoss) {
    const ownGrads = gradients(criticLoss, critic.parameters);
    const learn = (): void => criticOptimizer.update(graph, critic.parameters, ownGrads);
    if (half) updateWhereFinite(graph, ownGrads, learn);
    else learn();
  }
  // Left to itself the engine would make the whole weights' gradients last, and hold all that they are made of until then.
  graph.output('loss', trainable.weights ? after([loss], inOrder(grads))[0]! : loss);
  for (const [name, value] of Object.entries(named)) graph.output(name, value);
  const { turns } = built;
  return {
    micro: graph,
    apply,
    pieces,
    metrics: Object.keys(named),
    photographMetrics: turns?.photographMetrics ?? [],
    critic: turns?.critic && { ...turns, graph: turns.critic },
  };
}

/** Values of one graph, the one that was made first in front. */
function inOrder(values: readonly Value[]): Value[] {
  const places = new Map(values[0]?.graph.nodes.map((node, i) => [node, i]));
  const place = ({ producer }: Value): number => (producer ? places.get(producer)! : -1);
  return [...values].sort((a, b) => place(a) - place(b));
}

/** Which of the subject's rows are noised photographs; the others are states that the policy visited. */
export const FROM_PHOTOGRAPH = 'states.photograph';
export const VISITED = 'states.visited';

/** The noisy latents [B, C, h, w] with the visited states in the place of the subject's rows that are none of a photograph. */
function withVisited(noised: Value, fromPhotograph: Value): Value {
  const [rows, ...latent] = noised.shape as [number, ...number[]];
  const [instances] = fromPhotograph.shape as [number];
  const own = where(
    equal(reshape(fromPhotograph, [instances, 1, 1, 1]), 1),
    slice(noised, 0, 0, instances),
    noised.graph.input(VISITED, 'float32', [instances, ...latent]),
  );
  return rows === instances ? own : concat([own, slice(noised, 0, instances, rows)], 0);
}

/** From so many places of latents a row keeps the processor busy by itself: 512 by 512 pixels. Several at once would not be faster, and take memory. */
const LARGE_ROW = 64 * 64;

const places = (latents: readonly number[]): number => latents.at(-1)! * latents.at(-2)!;

/** What some rows are conditioned on. */
function conditionOf({ encoderHiddenStates, added }: Condition, rows: (v: Value) => Value): Condition {
  return {
    encoderHiddenStates: rows(encoderHiddenStates),
    ...(added ? { added: { textEmbeds: rows(added.textEmbeds), timeIds: rows(added.timeIds) } } : {}),
  };
}

interface BuiltObjective {
  readonly objective: Objective;
  /** The critic of the released code, whose turn is still to be built. */
  readonly critic?: Critic;
  /** The turns of the general method, critic's turn included. */
  readonly turns?: RewardTurns;
}

/**
 * Noise with a common part in each channel, from which a model learns to draw pictures that are dark or bright as a whole ("Diffusion with Offset Noise",
 * crosslabs.org, 2023): noise + offset * z, with z [B, C, 1, 1] standard normal.
 */
function offsetNoise(noise: Value, offset = 0): Value {
  if (offset === 0) return noise;
  const [b, c] = noise.shape;
  return add(noise, mul(noise.graph.input('noise.offset', 'float32', [b!, c!, 1, 1]), offset));
}

function buildObjective(
  graph: Graph,
  batch: Batch,
  model: StableDiffusion,
  predict: (noisy: Value, timesteps: Value) => Value,
  { objective, priorLossWeight, resolution, gradientCheckpointing }: StepSettings,
): BuiltObjective {
  switch (objective.method) {
    case 'dreambooth': {
      const { snrGamma } = objective;
      const weights = snrGamma === undefined ? {} : { snrGamma };
      return { objective: dreambooth(batch, { priorLossWeight, ...weights }) };
    }
    case 'dpg look-forward': {
      const critic = new Critic(graph, [1, ...model.latentShape(resolution)]);
      return {
        objective: dpgLookForward(batch, critic, { priorLossWeight, gamma: objective.gamma }),
        critic,
      };
    }
    case 'dpg': {
      const settings = { ...objective, priorLossWeight };
      const turns = buildRewardTurns(graph, batch, {
        model,
        settings,
        gradientCheckpointing,
        predict,
      });
      return { objective: turns.objective, turns };
    }
  }
}

/** @param scale what the loss was multiplied by, in half precision */
function update(
  graph: Graph,
  parameters: readonly Value[],
  grads: readonly Value[],
  settings: UpdateSettings,
  scale: Value | undefined,
): void {
  const apply = (given: readonly Value[]): void => {
    const { clipped, norm } = clipByGlobalNorm(given, settings.maxGradNorm);
    settings.optimizer.update(graph, parameters, clipped);
    if (settings.ema) ema(graph, parameters);
    graph.output('gradientNorm', norm);
  };
  if (!scale) {
    apply(grads);
    return;
  }
  const unscaled = scaleAll(grads, div(1, scale));
  const finite = updateWhereFinite(graph, unscaled, () => apply(unscaled));
  graph.output('overflowed', cast(not(finite), 'float32'));
}

/** The state that `buildStep` adds to the variables' own: sums of gradients, where there are several micro steps. */
export function accumulatorState(parameters: readonly Parameter[], parts: number): Map<string, Tensor> {
  if (parts === 1) return new Map();
  return new Map(parameters.map(({ name, shape }) => [accumulatedName(name), zeros(shape)]));
}
