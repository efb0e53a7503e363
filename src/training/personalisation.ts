import { join } from 'node:path';
import { Critic } from '../algorithms/critic.js';
import { criticRewards } from '../algorithms/dpg.js';
import { ReturnCritic } from '../algorithms/return-critic.js';
import { type PictureSize, sizeName, squareOf } from '../data/aspect-buckets.js';
import type { Engine, Program, State } from '../engine/engine.js';
import { CancelledError, DivergedError, RewardError, RunError } from '../errors.js';
import { tensorStream } from '../formats/safetensors.js';
import { readTensor, type SafetensorsFile } from '../formats/safetensors-file.js';
import { wholePicture } from '../models/size-condition.js';
import { emaDecay, emaName } from '../optim/ema.js';
import { type Parameter, scalarFeed } from '../optim/optimizer.js';
import { type ScheduleName, scheduleFactor } from '../optim/schedule.js';
import { pictureBytes } from '../pretrained/picture-bytes.js';
import type { StableDiffusion, TokenizedPrompt } from '../pretrained/stable-diffusion.js';
import type { PromptEmbedding } from '../pretrained/text-to-image.js';
import { startValue, type TrainedWeights } from '../pretrained/trainable.js';
import type { BlackBoxReward } from '../rewards/reward.js';
import { score } from '../rewards/scoring.js';
import type { DType } from '../tensor/dtype.js';
import { Random } from '../tensor/random.js';
import { batchRows } from '../tensor/rows.js';
import { elementCount, float32, int64, type Tensor } from '../tensor/tensor.js';
import { type Pick, picksOf, turnOf } from './batch-order.js';
import { listCheckpoints, openCheckpoint } from './checkpoint.js';
import type { EarlyStopping } from './early-stopping.js';
import type { TrainingListener } from './events.js';
import type { LatentCache } from './latent-cache.js';
import { LossScaler } from './loss-scaler.js';
import {
  accumulatorState,
  buildStep,
  criticOptimizer,
  FROM_PHOTOGRAPH,
  type StepGraphs,
  type StepSettings,
  VISITED,
} from './personalisation-step.js';
import { PiecewiseUpdate } from './piecewise-update.js';
import { type ReferenceCache, referenceName } from './reference-cache.js';
import { PIXELS, returnCriticOptimizer, rewardName } from './reward-turns.js';
import { isVisited, type PickedState, type Rollouts } from './rollouts.js';
import { type RunFolder, runFiles } from './run-folder.js';

export interface PersonalisationSettings extends StepSettings {
  readonly steps: number;
  readonly learningRate: number;
  readonly lrScheduler: ScheduleName;
  readonly lrWarmupSteps: number;
  readonly emaDecay: number;
  readonly checkpointingSteps: number;
  /** Steps between validations; none without it. */
  readonly validationSteps?: number;
  readonly seed: number;
  /** What to do when a reward cannot be had: stop with everything saved, or let the critic miss that batch. */
  readonly onRewardFailure: 'stop' | 'skip';
  /** Share of the subject's rows that are states which the policy visited itself, where there are roll-outs. */
  readonly rolloutFraction?: number;
}

/** The text of a row. Its embedding, for when the text encoders are frozen, and its tokens are [1, ...] each. */
export interface RowText {
  /** What its picture should show, in words that a reward knows: without the rare token. */
  readonly shows: string;
  readonly embedding: PromptEmbedding;
  readonly tokens: TokenizedPrompt['tokens'];
}

export interface PersonalisationInputs {
  readonly model: StableDiffusion;
  readonly engine: Engine;
  readonly run: RunFolder;
  /** Photographs, with the text and the size that each is brought to; a square of the resolution without sizes. */
  readonly instances: {
    readonly latents: LatentCache;
    readonly references: ReferenceCache;
    readonly texts: readonly RowText[];
    readonly sizes?: readonly PictureSize[];
  };
  /** What the policy draws by itself, with the text of each of its prompts; squares of the resolution, beside photographs that are all of that size. */
  readonly rollouts?: { readonly states: Rollouts; readonly texts: readonly RowText[] };
  /** They are brought to the size of the photographs that they are beside. */
  readonly priors?: { readonly latents: LatentCache; readonly texts: readonly RowText[] };
  /**
   * Whether every picture that the run will see is encoded before the step's programs are made, and the encoder given up: the two together hold more. With random crops
   * there is nothing to encode ahead. Default false.
   */
  readonly encodesAhead?: boolean;
  /** What the subject's pictures should show, as rewards are told. */
  readonly prompt: string;
  /** Stands for the class pictures: a resumed run must have the same ones. */
  readonly priorDigest: string;
  /** Draws with what is learnt at a step, unless that is done already. */
  readonly validate?: (step: number, learnt: TrainedWeights) => Promise<void>;
  /** Says after a validation whether to stop, and which step was the best. */
  readonly earlyStopping?: EarlyStopping;
  readonly onEvent?: TrainingListener;
  readonly signal?: AbortSignal;
}

/** Steps in a row without rewards after which a run stops even if it may skip them. */
const MOST_MISSED = 10;

/** The programs of a step for one size of pictures. */
interface StepPrograms {
  readonly micro: Program;
  readonly critic: CriticTurn | undefined;
}

/** The bucket of a micro step. */
interface BucketTurn {
  readonly bucket: Bucket;
  readonly number: number;
  /** Which of the bucket's own micro steps it is. */
  readonly use: number;
}

/** A use of a picture, and the stream that says how it is seen. */
interface SeenPick extends Pick {
  readonly random: Random;
}

/** Rows of a micro step, and what knows their pictures. */
interface Shown {
  readonly latents: LatentCache;
  /** Of photographs alone. */
  readonly references?: ReferenceCache;
  readonly picks: readonly SeenPick[];
}

type CriticTurn = NonNullable<StepGraphs['critic']> & { readonly program: Program };

/** A run that is set up: its state is restored or fresh, its graphs are compiled, no step is taken yet. */
export class Personalisation {
  readonly #programs = new Map<string, Promise<StepPrograms>>();
  /** Whether prompts go through the text encoders at each step. */
  readonly #learnsText: boolean;
  /** Steps in a row without rewards. */
  #missed = 0;

  private constructor(
    private readonly inputs: PersonalisationInputs,
    private readonly settings: PersonalisationSettings,
    private readonly buckets: readonly Bucket[],
    /** The update, where the micro steps do not make it themselves. */
    private readonly apply: Program | PiecewiseUpdate | undefined,
    private readonly metrics: readonly string[],
    private readonly photographMetrics: readonly string[],
    /** What is trained. */
    private readonly parameters: readonly Parameter[],
    /** Where everything that is learnt lives. */
    readonly state: State,
    private readonly stateTensors: readonly Parameter[],
    /** Steps done before: those of the checkpoint that was restored. */
    readonly fromStep: number,
    readonly trainableParameters: number,
    /** In half precision. */
    private readonly lossScaler: LossScaler | undefined,
  ) {
    this.#learnsText = inputs.model.trainsText(settings.trainable);
  }

  /**
   * Restores what a resumed run has, and compiles what the first step needs.
   *
   * @throws RunError when the run was trained with other class pictures or another state; CancelledError when the signal is raised while pictures are encoded ahead.
   */
  static async create(
    inputs: PersonalisationInputs,
    settings: PersonalisationSettings,
  ): Promise<Personalisation> {
    const { model, engine, run } = inputs;
    const buckets = bucketsOf(inputs.instances, settings.resolution);
    const graphs = buildStep(model, settings, buckets[0]!.size);
    const variables = model.variables(settings.trainable);
    const shapes = variables.map((v) => ({ name: v.input, shape: v.shape }));
    const latents = [1, ...model.latentShape(settings.resolution)];
    const random = new Random(settings.seed, 'lora');
    const started = variables.flatMap((variable): StateTensor[] => {
      const { input, shape } = variable;
      const read = () => startValue(variable, random);
      return [{ name: input, shape, read }, ...(settings.ema ? [{ name: emaName(input), shape, read }] : [])];
    });
    const made = new Map<string, Tensor>([
      ...settings.optimizer.init(shapes),
      ...criticState(settings, latents),
      ...accumulatorState(shapes, settings.gradientAccumulationSteps),
    ]);
    const initial: StateTensor[] = [
      ...started,
      ...[...made].map(([name, t]) => ({ name, shape: t.shape, read: async () => t })),
    ];
    const { restored } = run;
    if (restored) {
      requireSameState(initial, restored.tensors);
      if (restored.progress.priorDigest !== inputs.priorDigest) {
        throw new RunError(
          `${restored.path}: this run was trained with other class pictures. Put them back, or start again in another output folder.`,
        );
      }
    }
    const half = model.computeType === 'float16';
    const restoredScaler = restored && (() => LossScaler.restore(restored.progress.lossScale, restored.path));
    const lossScaler = half ? (restoredScaler ?? LossScaler.start)() : undefined;
    const state = await engine.state(new Map());
    const held: { release(): Promise<unknown> }[] = [state];
    try {
      // One by one: all weights of a model and what the optimiser keeps of them would not fit into memory twice.
      for (const { name, read } of initial) {
        await state.write(new Map([[name, await (restored ? readTensor(restored.tensors, name) : read())]]));
      }
      const { rollouts } = inputs;
      if (
        restored &&
        rollouts &&
        restored.step < settings.steps &&
        !rollouts.states.isDue(restored.step + 1)
      ) {
        await rollouts.states.restore(restored.tensors, model.latentShape(settings.resolution));
      }
      const apply = graphs.pieces
        ? await PiecewiseUpdate.compile(engine, graphs.pieces)
        : graphs.apply && (await engine.compile(graphs.apply));
      if (apply) held.push(apply);
      const personalisation = new Personalisation(
        inputs,
        settings,
        buckets,
        apply,
        graphs.metrics,
        graphs.photographMetrics,
        shapes,
        state,
        initial.map(({ name, shape }) => ({ name, shape })),
        restored?.step ?? 0,
        shapes.reduce((n, s) => n + elementCount(s.shape), 0),
        lossScaler,
      );
      held.push({ release: () => personalisation.#releasePrograms() });
      const { fromStep } = personalisation;
      if (inputs.encodesAhead && !personalisation.#isOver(fromStep)) await personalisation.#encodeAhead();
      // What cannot be compiled is told before a step is announced; the other buckets' programs are made when their turn comes.
      const { bucket } = personalisation.#turn(fromStep * settings.gradientAccumulationSteps);
      await personalisation.#program(bucket);
      return personalisation;
    } catch (error) {
      await Promise.allSettled(held.map((resource) => resource.release()));
      throw error;
    }
  }

  /**
   * Takes the remaining steps, saving the state every so often and at the end. Everything random is drawn from streams named by the seed and the step, so a resumed run
   * repeats what the uninterrupted one would have done.
   *
   * @returns the steps done: all, or fewer where the run was stopped early.
   * @throws CancelledError after saving, when the signal is raised. DivergedError when a loss is not finite; the last checkpoint stays as it is.
   */
  async train(): Promise<number> {
    const { run, onEvent, signal, earlyStopping } = this.inputs;
    const { steps, checkpointingSteps } = this.settings;
    let saved = this.fromStep;
    const stop = async (step: number): Promise<never> => {
      if (step > saved) await this.#save(step);
      onEvent?.({ kind: 'stopped', folder: run.path, step, steps });
      throw new CancelledError(
        `Stopped after step ${step} of ${steps}. Everything is saved; the same command with --resume-from-checkpoint latest goes on from there.`,
      );
    };
    const validate = (step: number): Promise<void> =>
      this.#validate(step).catch((error: unknown) => {
        if (error instanceof CancelledError) return stop(step);
        throw error;
      });
    // The last start may have been stopped while it drew.
    await validate(this.fromStep);
    if (this.#isOver(this.fromStep)) return this.fromStep;
    const started = performance.now();
    for (let step = this.fromStep + 1; step <= steps; step++) {
      if (signal?.aborted) await stop(step - 1);
      const before = performance.now();
      await this.#drawRollouts(step).catch((error: unknown) => {
        if (error instanceof CancelledError) return stop(step - 1);
        throw error;
      });
      const { record, failure } = await this.#step(step);
      const now = performance.now();
      await run.metrics.append(record);
      await run.tensorboard?.append(record);
      await run.timings.append({ step, seconds: Number(((now - before) / 1000).toFixed(4)) });
      const secondsPerStep = (now - started) / 1000 / (step - this.fromStep);
      onEvent?.({
        kind: 'progress',
        step,
        steps,
        loss: record.loss,
        ...(record.reward === undefined ? {} : { reward: record.reward }),
        ...(record.criticLoss === undefined ? {} : { critic: record.criticLoss }),
        learningRate: record.learningRate,
        secondsPerStep,
        secondsLeft: secondsPerStep * (steps - step),
      });
      await validate(step);
      const isOver = this.#isOver(step);
      const due = step % checkpointingSteps === 0 || step === steps;
      if (due || failure || isOver || earlyStopping?.best?.step === step) {
        await this.#save(step);
        saved = step;
      }
      if (failure) {
        throw new RewardError(
          `${failure.message}\nStopped after step ${step} of ${steps}. Everything is saved; once it is mended, the same command with --resume-from-checkpoint latest goes on from there.`,
          { cause: failure },
        );
      }
      if (isOver) return step;
    }
    return Math.max(steps, this.fromStep);
  }

  /** Whether the validation of this step, if it has one, ends the run early. */
  #isOver(step: number): boolean {
    return this.#isValidated(step) && this.inputs.earlyStopping?.isOver === true;
  }

  /** Whether pictures are drawn after this step, and training goes on. */
  #isValidated(step: number): boolean {
    const { validationSteps, steps } = this.settings;
    return validationSteps !== undefined && step > 0 && step < steps && step % validationSteps === 0;
  }

  /** What is learnt so far, averaged where an average is kept, under the names of the plain tensors. */
  get learnt(): TrainedWeights {
    return this.#named(async (name) => (await this.state.read([name])).get(name)!);
  }

  /**
   * What was learnt by a step that has a checkpoint: those at which training ends have.
   *
   * @throws RunError when the checkpoint of that step is not there any more.
   */
  async learntAt(step: number): Promise<TrainedWeights> {
    const { path } = this.inputs.run;
    const entry = (await listCheckpoints(join(path, runFiles.checkpoints))).find((e) => e.step === step);
    if (!entry) {
      throw new RunError(
        `${path}: the checkpoint of step ${step}, which the judges found best, is not there any more. Put it back and resume, or start again with a larger --checkpoints-total-limit.`,
      );
    }
    const { tensors } = await openCheckpoint(entry.path);
    return this.#named((name) => readTensor(tensors, name));
  }

  /** @param read by the name in the state */
  #named(read: (name: string) => Promise<Tensor>): TrainedWeights {
    return {
      names: this.parameters.map(({ name }) => name),
      read: (name) => read(this.settings.ema ? emaName(name) : name),
    };
  }

  async release(): Promise<void> {
    await this.#releasePrograms();
    await this.inputs.rollouts?.states.release();
    await this.apply?.release();
    await this.state.release();
  }

  /** Draws in between. The step's programs make room for it: either takes much memory, and compiling again little time beside drawing. */
  async #validate(step: number): Promise<void> {
    const { validate } = this.inputs;
    if (!validate || !this.#isValidated(step)) return;
    await this.#releasePrograms();
    await validate(step, this.learnt);
  }

  /** Size by size, so that the encoder of one is held at a time. @throws CancelledError when the signal is raised. */
  async #encodeAhead(): Promise<void> {
    const { instances, priors, onEvent, signal } = this.inputs;
    const { steps, gradientAccumulationSteps: parts } = this.settings;
    const sizes = new Map<string, Map<string, () => Promise<unknown>>>();
    for (let index = this.fromStep * parts; index < steps * parts; index++) {
      const turn = this.#turn(index);
      const { size } = turn.bucket;
      const views = sizes.get(sizeName(size)) ?? new Map();
      sizes.set(sizeName(size), views);
      for (const [kind, { latents, references, picks }] of Object.entries(this.#shown(index, turn))) {
        for (const { picture, random } of picks) {
          const view = latents.viewOf(picture, size, random);
          if (view === undefined) return;
          views.set(`${kind} ${view}`, async () => {
            await latents.moments(picture, size, random);
            await references?.of(picture, size, random);
          });
        }
      }
    }
    const total = [...sizes.values()].reduce((sum, views) => sum + views.size, 0);
    let done = 0;
    for (const views of sizes.values()) {
      for (const encode of views.values()) {
        if (signal?.aborted) {
          throw new CancelledError(
            'Stopped while encoding pictures. What was drawn is kept; the same command with --resume-from-checkpoint latest goes on from there.',
          );
        }
        await encode();
        onEvent?.({ kind: 'stage', name: 'encoding pictures', done: ++done, total });
      }
      for (const held of [instances.latents, priors?.latents, instances.references]) await held?.release();
    }
  }

  async #drawRollouts(step: number): Promise<void> {
    const states = this.inputs.rollouts?.states;
    if (states?.isDue(step)) await states.draw(step, this.state);
  }

  async #releasePrograms(): Promise<void> {
    const programs = [...this.#programs.values()];
    this.#programs.clear();
    // What was not compiled was told where it was asked for.
    for (const result of await Promise.allSettled(programs)) {
      if (result.status === 'rejected') continue;
      await result.value.micro.release();
      await result.value.critic?.program.release();
    }
  }

  async #save(step: number): Promise<void> {
    const { run, priorDigest, model, rollouts, earlyStopping } = this.inputs;
    const read = async (name: string): Promise<Tensor> => {
      const tensor = (await this.state.read([name])).get(name)!;
      if (!(tensor.data as Float32Array).every(Number.isFinite))
        throw this.#diverged(step, `${name} holds values that are not finite`);
      return tensor;
    };
    const states = rollouts?.states.tensors(model.latentShape(this.settings.resolution)) ?? [];
    const tensors = [
      ...this.stateTensors.map(({ name, shape }) =>
        tensorStream(name, { dtype: 'float32', shape }, () => read(name)),
      ),
      ...[...states].map(([name, tensor]) => tensorStream(name, tensor, async () => tensor)),
    ];
    const lossScale = this.lossScaler?.progress;
    const progress = { priorDigest, ...(lossScale === undefined ? {} : { lossScale }) };
    const entry = await run.saveCheckpoint(step, tensors, progress, earlyStopping?.best?.step);
    this.inputs.onEvent?.({ kind: 'checkpoint', step, path: entry.path });
  }

  async #step(step: number): Promise<{ record: StepRecord; failure?: RewardError }> {
    const { settings, lossScaler } = this;
    const { gradientAccumulationSteps: parts, objective } = settings;
    const learningRate =
      settings.learningRate *
      scheduleFactor(step, {
        schedule: settings.lrScheduler,
        warmupSteps: settings.lrWarmupSteps,
        totalSteps: settings.steps,
      });
    const scaleFeeds = lossScaler?.feeds() ?? {};
    const updateFeeds = {
      // A skipped step is none for the optimiser's bias corrections.
      ...settings.optimizer.feeds(step - (lossScaler?.skippedSteps ?? 0), learningRate),
      ...(settings.ema ? { 'ema.decay': scalarFeed(emaDecay(step, settings.emaDecay)) } : {}),
    };
    let failure: RewardError | undefined;
    const means = new Means();
    let updated: Readonly<Record<string, Tensor>> = {};
    for (let part = 0; part < parts; part++) {
      const index = (step - 1) * parts + part;
      const turn = this.#turn(index);
      const { feeds, shows, ofPhotographs } = await this.#batch(index, turn);
      const { micro, critic } = await this.#program(turn.bucket);
      const criticFeeds = criticFeedsOf(objective, step, index + 1);
      const outputs = await micro.run(
        { ...feeds, ...scaleFeeds, ...criticFeeds, ...(this.apply ? {} : updateFeeds) },
        this.state,
      );
      const counts = (name: string): boolean => ofPhotographs || !this.photographMetrics.includes(name);
      for (const name of ['loss', ...this.metrics]) {
        if (counts(name)) means.add(name, scalarOf(outputs[name]));
      }
      const learnt = await this.#criticTurn(critic, step, outputs, criticFeeds, shows);
      failure ??= learnt.failure;
      for (const [name, value] of learnt.metrics) if (counts(name)) means.add(name, value);
      updated = outputs;
    }
    if (this.apply) updated = await this.apply.run({ ...scaleFeeds, ...updateFeeds }, this.state);
    const gradientNorm = scalarOf(updated.gradientNorm);
    const measured = means.all();
    const loss = measured.get('loss')!;
    const overflowed = lossScaler !== undefined && scalarOf(updated.overflowed) !== 0;
    if (!overflowed && ![...measured.values(), gradientNorm].every(Number.isFinite)) {
      throw this.#diverged(step, 'the loss or the gradient is not finite');
    }
    const record = {
      step,
      ...(Object.fromEntries(measured) as { loss: number }),
      loss,
      gradientNorm,
      learningRate,
      ...this.#settleScale(step, overflowed, loss),
    };
    if (!failure) {
      this.#missed = 0;
      return { record };
    }
    // A critic that has learnt nothing for long leads the policy nowhere.
    this.#missed++;
    if (settings.onRewardFailure === 'stop' || this.#missed >= MOST_MISSED) return { record, failure };
    this.inputs.onEvent?.({
      kind: 'warning',
      message: `${failure.message} The critic misses the batch of step ${step}.`,
    });
    return { record };
  }

  /** Takes note of whether a step in half precision was skipped; what is worth logging of it. @throws DivergedError when too many were in a row. */
  #settleScale(step: number, overflowed: boolean, loss: number): Partial<StepRecord> {
    const { lossScaler } = this;
    if (!lossScaler) return {};
    const lossScale = lossScaler.scale;
    lossScaler.settle(overflowed);
    if (lossScaler.isStuck) {
      const what = Number.isFinite(loss)
        ? `the gradients overflow half precision, however small the loss scale (now ${lossScaler.scale})`
        : 'what the model computes overflows half precision, whose largest number is 65504';
      throw new DivergedError(
        `Training stopped at step ${step}: ${what}. The last ${lossScaler.skippedInARow} steps changed nothing. ` +
          'Start again in another output folder, with --mixed-precision no; or, if it went well at first, with a lower --learning-rate.',
      );
    }
    return { lossScale, skippedSteps: lossScaler.skippedSteps };
  }

  /** The critic's turn with rewards from outside the graph; nothing where there are none. What has no reward is not learnt from. */
  async #criticTurn(
    turn: CriticTurn | undefined,
    step: number,
    outputs: Readonly<Record<string, Tensor>>,
    feeds: Readonly<Record<string, Tensor>>,
    shows: readonly string[],
  ): Promise<{ metrics: ReadonlyMap<string, number>; failure?: RewardError }> {
    const { objective } = this.settings;
    if (!turn || objective.method !== 'dpg') return { metrics: new Map() };
    const boxes = objective.rewards.flatMap(({ reward }) => (reward.kind === 'black box' ? [reward] : []));
    const pixels = outputs[PIXELS] as Tensor<'float32'>;
    // In half precision the step is skipped, and with it the critic's turn.
    if (this.lossScaler && !pixels.data.every(Number.isFinite)) return { metrics: new Map() };
    let rewards: Record<string, Tensor>;
    try {
      rewards = await this.#ask(boxes, pixels, step, shows);
    } catch (error) {
      if (!(error instanceof RewardError)) throw error;
      return { metrics: new Map(), failure: error };
    }
    const handed = Object.fromEntries(turn.experience.map((name) => [name, outputs[name]!]));
    const results = await turn.program.run({ ...feeds, ...handed, ...rewards }, this.state);
    return {
      metrics: new Map(turn.criticMetrics.map((name) => [name, scalarOf(results[`metric.${name}`])])),
    };
  }

  async #ask(
    boxes: readonly BlackBoxReward[],
    pixels: Tensor<'float32'>,
    step: number,
    prompts: readonly string[],
  ): Promise<Record<string, Tensor>> {
    if (!pixels.data.every(Number.isFinite)) {
      throw this.#diverged(
        step,
        'the pictures that the model is heading for hold values that are not finite',
      );
    }
    const pictures = Array.from({ length: pixels.shape[0]! }, (_, i) => pictureBytes(pixels, i));
    const rewards: Record<string, Tensor> = {};
    for (const box of boxes) {
      const values = await score(box, pictures, { step, prompt: this.inputs.prompt, prompts });
      rewards[rewardName(box.name)] = float32([values.length], values);
    }
    return rewards;
  }

  #diverged(step: number, what: string): DivergedError {
    const { checkpointingSteps, objective } = this.settings;
    const kept = Math.max(checkpointingSteps * Math.floor((step - 1) / checkpointingSteps), this.fromStep);
    const critic = objective.method.startsWith('dpg') ? ' or --critic-learning-rate' : '';
    const advice = `lower --learning-rate${critic}, or lower --max-grad-norm`;
    return new DivergedError(
      kept > 0
        ? `Training diverged at step ${step}: ${what}. The checkpoint of step ${kept} in ${this.inputs.run.path} is good and was kept. Go on from it with --resume-from-checkpoint latest and ${advice}.`
        : `Training diverged at step ${step}, before the first checkpoint: ${what}. Start again and ${advice}, or add --lr-warmup-steps.`,
    );
  }

  #turn(index: number): BucketTurn {
    const counts = this.buckets.map(({ pictures }) => pictures.length);
    const { bucket, use } = turnOf(this.settings.seed, counts, index);
    return { bucket: this.buckets[bucket]!, number: bucket, use };
  }

  /** The step for a bucket's size; compiled when it is first needed, since each has its own copy of the weights. */
  #program({ size }: Bucket): Promise<StepPrograms> {
    const key = sizeName(size);
    let program = this.#programs.get(key);
    if (!program) {
      const { model, engine } = this.inputs;
      const { micro, critic } = buildStep(model, this.settings, size);
      program = (async () => ({
        micro: await engine.compile(micro),
        critic: critic && { ...critic, program: await engine.compile(critic.graph) },
      }))();
      this.#programs.set(key, program);
    }
    return program;
  }

  /** Which pictures micro step `index` shows. */
  #shown(index: number, { bucket, number, use }: BucketTurn): { photographs: Shown; ofClass?: Shown } {
    const { instances, priors } = this.inputs;
    const { seed, instances: count, priors: beside } = this.settings;
    const seen = (stream: readonly (string | number)[], picks: readonly Pick[]): readonly SeenPick[] =>
      picks.map((pick) => ({ ...pick, random: new Random(seed, 'view', ...stream, pick.position) }));
    const ownStream = ['instance', number];
    const { latents, references } = instances;
    const own = seen(ownStream, picksOf(seed, ownStream, bucket.pictures, count, use));
    const photographs = { latents, references, picks: own };
    if (!priors) return { photographs };
    const all = Array.from({ length: priors.latents.count }, (_, i) => i);
    const picks = seen(['prior'], picksOf(seed, ['prior'], all, beside, index));
    return { photographs, ofClass: { latents: priors.latents, picks } };
  }

  /** What to feed at micro step `index`, counted from 0 over the whole run, and what the pictures of the subject's rows should show. */
  async #batch(index: number, turn: BucketTurn): Promise<MicroBatch> {
    const { model, instances, priors, rollouts } = this.inputs;
    const { settings } = this;
    const { bucket } = turn;
    const random = new Random(settings.seed, 'step', index);
    const rowsOf = ({ latents, picks }: Shown) =>
      Promise.all(picks.map((pick) => latents.moments(pick.picture, bucket.size, pick.random)));
    const { photographs, ofClass } = this.#shown(index, turn);
    const own = photographs.picks;
    const rows = await rowsOf(photographs);
    const fraction = settings.rolloutFraction ?? 0;
    const visited = own.map(({ position }) =>
      rollouts && isVisited(fraction, position) ? rollouts.states.pick(position) : undefined,
    );
    const texts = own.map(({ picture }, i) =>
      visited[i] ? rollouts!.texts[visited[i].prompt]! : instances.texts[picture]!,
    );
    const shows = texts.map((text) => text.shows);
    const known = await Promise.all(
      own.map(async (pick, i) => ({
        ...(await instances.references.of(pick.picture, bucket.size, pick.random)),
        ...this.#textReferences(shows[i]!),
      })),
    );
    if (priors && ofClass) {
      rows.push(...(await rowsOf(ofClass)));
      texts.push(...ofClass.picks.map(({ picture }) => priors.texts[picture]!));
    }
    const shape = [rows.length, ...model.latentShape(bucket.size.width, bucket.size.height)];
    const timesteps = rows.map((_, r) => {
      const drawn = random.int(model.scheduler.schedule.steps);
      return visited[r]?.timestep ?? drawn;
    });
    const whole = wholePicture(settings.resolution, settings.resolution);
    const feeds = {
      ...batchRows<DType>(
        rows.map(({ size }, r) => ({
          ...(this.#learnsText ? texts[r]!.tokens : texts[r]!.embedding),
          ...model.sizeFeeds(visited[r] ? whole : size),
        })),
      ),
      ...batchRows<DType>(known),
      'latents.mean': joined(
        shape,
        rows.map((r) => r.mean),
      ),
      'latents.logvar': joined(
        shape,
        rows.map((r) => r.logvar),
      ),
      'latents.noise': random.derive('posterior').normals(shape),
      noise: random.derive('noise').normals(shape),
      ...(settings.noiseOffset
        ? { 'noise.offset': random.derive('offset').normals([rows.length, shape[1]!, 1, 1]) }
        : {}),
      timesteps: int64([rows.length], timesteps),
      ...(rollouts ? stateFeeds(visited, shape.slice(1)) : {}),
    };
    return { feeds, shows, ofPhotographs: visited.some((state) => !state) };
  }

  /** What rewards have to know of the text of a row, by the names that a step is fed. */
  #textReferences(shows: string): Record<string, Tensor> {
    const { objective } = this.settings;
    if (objective.method !== 'dpg') return {};
    return Object.fromEntries(
      objective.rewards.flatMap(({ reward }) => {
        if (reward.kind !== 'graph' || reward.reference?.of !== 'text') return [];
        return [[referenceName(reward.name), reward.reference.known.get(shows)!] as const];
      }),
    );
  }
}

/** A micro step's batch. */
interface MicroBatch {
  readonly feeds: Record<string, Tensor>;
  /** What the pictures of the subject's rows should show, as rewards are told it. */
  readonly shows: readonly string[];
  /** Whether any of the subject's rows is a noised photograph. */
  readonly ofPhotographs: boolean;
}

/** Visited states in their rows, zeros in those of noised photographs. @param shape [C, h, w] */
function stateFeeds(
  visited: readonly (PickedState | undefined)[],
  shape: readonly number[],
): Record<string, Tensor> {
  const nothing = new Float32Array(elementCount(shape));
  return {
    [FROM_PHOTOGRAPH]: float32(
      [visited.length],
      visited.map((state) => (state ? 0 : 1)),
    ),
    [VISITED]: joined(
      [visited.length, ...shape],
      visited.map((state) => state?.sample ?? nothing),
    ),
  };
}

/** Means by name over the micro steps that have a value for it. */
class Means {
  readonly #sums = new Map<string, { sum: number; count: number }>();

  add(name: string, value: number): void {
    const { sum, count } = this.#sums.get(name) ?? { sum: 0, count: 0 };
    this.#sums.set(name, { sum: sum + value, count: count + 1 });
  }

  all(): Map<string, number> {
    return new Map([...this.#sums].map(([name, { sum, count }]) => [name, sum / count]));
  }
}

/** A tensor of the state, as it is before the first step. */
interface StateTensor extends Parameter {
  readonly read: () => Promise<Tensor>;
}

/** Pictures that are brought to one size, by their numbers. */
interface Bucket {
  readonly size: PictureSize;
  readonly pictures: readonly number[];
}

/** The photographs by size, in the order in which the sizes first come. */
function bucketsOf({ latents, sizes }: PersonalisationInputs['instances'], resolution: number): Bucket[] {
  const buckets = new Map<string, { size: PictureSize; pictures: number[] }>();
  for (let picture = 0; picture < latents.count; picture++) {
    const size = sizes?.[picture] ?? squareOf(resolution);
    const bucket = buckets.get(sizeName(size));
    if (bucket) bucket.pictures.push(picture);
    else buckets.set(sizeName(size), { size, pictures: [picture] });
  }
  return [...buckets.values()];
}

type StepRecord = {
  readonly step: number;
  readonly loss: number;
  readonly reward?: number;
  readonly criticLoss?: number;
  readonly gradientNorm: number;
  readonly learningRate: number;
  /** What the loss was multiplied by, in half precision. */
  readonly lossScale?: number;
  /** Steps so far whose gradients overflowed, in half precision. */
  readonly skippedSteps?: number;
};

/** What the critic starts with and its optimiser keeps. */
function criticState(
  { objective, seed }: PersonalisationSettings,
  latents: readonly number[],
): Map<string, Tensor> {
  const random = new Random(seed, 'critic');
  if (objective.method === 'dpg look-forward') return Critic.initial(latents, random);
  if (objective.method !== 'dpg') return new Map();
  const names = criticRewards({ ...objective, priorLossWeight: 0 }).map((r) => r.reward.name);
  if (names.length === 0) return new Map();
  const parameters = ReturnCritic.parameters(latents, names);
  return new Map([
    ...ReturnCritic.initial(latents, names, random),
    ...returnCriticOptimizer.init(parameters),
  ]);
}

/** What the critic's optimiser is fed; its turn comes at each micro step. */
function criticFeedsOf(
  objective: StepSettings['objective'],
  step: number,
  turn: number,
): Record<string, Tensor> {
  if (objective.method === 'dreambooth') return {};
  return objective.method === 'dpg'
    ? returnCriticOptimizer.feeds(turn, objective.criticLearningRate)
    : criticOptimizer.feeds(step, objective.criticLearningRate);
}

const scalarOf = (t: Tensor | undefined): number => (t ? Number(t.data[0]) : Number.NaN);

function joined(shape: readonly number[], parts: readonly Float32Array[]): Tensor<'float32'> {
  const size = parts[0]!.length;
  const all = new Float32Array(size * parts.length);
  parts.forEach((p, i) => {
    all.set(p, i * size);
  });
  return float32(shape, all);
}

function requireSameState(expected: readonly Parameter[], { path, entries }: SafetensorsFile): void {
  for (const { name, shape } of expected) {
    const other = entries.get(name);
    if (other?.dtype !== 'float32' || other.shape.join() !== shape.join()) {
      throw new RunError(
        `${path}: expected the tensor ${JSON.stringify(name)} [${shape.join(', ')}], found ${other ? `[${other.shape.join(', ')}]` : 'none'}. The checkpoint belongs to another model or other settings.`,
      );
    }
  }
}
