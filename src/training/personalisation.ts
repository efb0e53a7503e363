import { Critic } from '../algorithms/critic.js';
import type { Engine, Program, State } from '../engine/engine.js';
import { CancelledError, DivergedError, RunError } from '../errors.js';
import { initialParameters } from '../nn/initialize.js';
import { emaDecay, emaName } from '../optim/ema.js';
import { scalarFeed } from '../optim/optimizer.js';
import { type ScheduleName, scheduleFactor } from '../optim/schedule.js';
import type { StableDiffusion, TokenizedPrompt } from '../pretrained/stable-diffusion.js';
import type { PromptEmbedding } from '../pretrained/text-to-image.js';
import type { DType } from '../tensor/dtype.js';
import { Random } from '../tensor/random.js';
import { batchRows } from '../tensor/rows.js';
import { elementCount, float32, int64, type Tensor } from '../tensor/tensor.js';
import type { TrainingListener } from './events.js';
import type { LatentCache } from './latent-cache.js';
import { accumulatorState, buildStep, criticOptimizer, type StepSettings } from './personalisation-step.js';
import type { RunFolder } from './run-folder.js';

export interface PersonalisationSettings extends StepSettings {
  readonly steps: number;
  readonly learningRate: number;
  readonly lrScheduler: ScheduleName;
  readonly lrWarmupSteps: number;
  readonly emaDecay: number;
  readonly checkpointingSteps: number;
  readonly seed: number;
}

/** The text of a row, [1, ...] each: its embedding, for when the text encoders are frozen, and its tokens. */
export interface RowText {
  readonly embedding: PromptEmbedding;
  readonly tokens: TokenizedPrompt['tokens'];
}

export interface PersonalisationInputs {
  readonly model: StableDiffusion;
  readonly engine: Engine;
  readonly run: RunFolder;
  readonly instances: { readonly latents: LatentCache; readonly text: RowText };
  readonly priors?: { readonly latents: LatentCache; readonly text: RowText };
  /** Stands for the class pictures: a resumed run must have the same ones. */
  readonly priorDigest: string;
  readonly onEvent?: TrainingListener;
  readonly signal?: AbortSignal;
}

/** A run that is set up: its state is restored or fresh, its graphs are compiled, no step is taken yet. */
export class Personalisation {
  private constructor(
    private readonly inputs: PersonalisationInputs,
    private readonly settings: PersonalisationSettings,
    private readonly micro: Program,
    private readonly apply: Program | undefined,
    private readonly metrics: readonly string[],
    /** The low-rank factors' names. */
    readonly factorNames: readonly string[],
    /** Where everything that is learnt lives. */
    readonly state: State,
    /** Steps done before: those of the checkpoint that was restored. */
    readonly fromStep: number,
    readonly trainableParameters: number,
  ) {}

  static async create(
    inputs: PersonalisationInputs,
    settings: PersonalisationSettings,
  ): Promise<Personalisation> {
    const { model, engine, run } = inputs;
    const graphs = buildStep(model, settings);
    const specs = model.loraSpecs(settings.lora);
    const factors = initialParameters(specs, new Random(settings.seed, 'lora'));
    const shapes = specs.map((s) => ({ name: s.input, shape: s.shape }));
    const latents = [1, ...model.latentShape(settings.resolution)];
    const initial = new Map<string, Tensor>([
      ...factors,
      ...settings.optimizer.init(shapes),
      ...(settings.ema ? [...factors].map(([name, t]) => [emaName(name), t] as const) : []),
      ...(settings.objective.method === 'dpg'
        ? Critic.initial(latents, new Random(settings.seed, 'critic'))
        : []),
      ...accumulatorState(factors, settings.gradientAccumulationSteps),
    ]);
    const { restored } = run;
    if (restored) {
      requireSameState(initial, restored.tensors, restored.path);
      if (restored.progress.priorDigest !== inputs.priorDigest) {
        throw new RunError(
          `${restored.path}: this run was trained with other class pictures. Put them back, or start again in another output folder.`,
        );
      }
    }
    const state = await engine.state(restored?.tensors ?? initial);
    const micro = await engine.compile(graphs.micro);
    const apply = graphs.apply && (await engine.compile(graphs.apply));
    return new Personalisation(
      inputs,
      settings,
      micro,
      apply,
      graphs.metrics,
      shapes.map((s) => s.name),
      state,
      restored?.step ?? 0,
      shapes.reduce((n, s) => n + elementCount(s.shape), 0),
    );
  }

  /**
   * Takes the remaining steps, saving the state every so often and at the end. Everything random is drawn from streams named by the seed and the step, so a resumed run
   * repeats what the uninterrupted one would have done.
   *
   * @throws CancelledError after saving, when the signal is raised. DivergedError when a loss is not finite; the last checkpoint stays as it is.
   */
  async train(): Promise<void> {
    const { run, onEvent, signal } = this.inputs;
    const { steps, checkpointingSteps } = this.settings;
    let saved = this.fromStep;
    const started = performance.now();
    for (let step = this.fromStep + 1; step <= steps; step++) {
      if (signal?.aborted) {
        if (step - 1 > saved) await this.#save(step - 1);
        onEvent?.({ kind: 'stopped', folder: run.path, step: step - 1, steps });
        throw new CancelledError(
          `Stopped after step ${step - 1} of ${steps}. Everything is saved; the same command with --resume-from-checkpoint latest goes on from there.`,
        );
      }
      const before = performance.now();
      const record = await this.#step(step);
      const now = performance.now();
      await run.metrics.append(record);
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
      if (step % checkpointingSteps === 0 || step === steps) {
        await this.#save(step);
        saved = step;
      }
    }
  }

  /** The learnt factors, averaged ones where an average was kept, under the names of the plain ones. */
  async factors(): Promise<Map<string, Tensor>> {
    const stored = (name: string): string => (this.settings.ema ? emaName(name) : name);
    const read = await this.state.read(this.factorNames.map(stored));
    return new Map(this.factorNames.map((name) => [name, read.get(stored(name))!]));
  }

  async release(): Promise<void> {
    await this.micro.release();
    await this.apply?.release();
    await this.state.release();
  }

  async #save(step: number): Promise<void> {
    const tensors = await this.state.read();
    for (const [name, t] of tensors) {
      if (!(t.data as Float32Array).every(Number.isFinite))
        throw this.#diverged(step, `${name} holds values that are not finite`);
    }
    const { run, priorDigest } = this.inputs;
    const entry = await run.saveCheckpoint(step, tensors, { priorDigest });
    this.inputs.onEvent?.({ kind: 'checkpoint', step, path: entry.path });
  }

  async #step(step: number): Promise<StepRecord> {
    const { settings } = this;
    const { gradientAccumulationSteps: parts, objective } = settings;
    const learningRate =
      settings.learningRate *
      scheduleFactor(step, {
        schedule: settings.lrScheduler,
        warmupSteps: settings.lrWarmupSteps,
        totalSteps: settings.steps,
      });
    const updateFeeds = {
      ...settings.optimizer.feeds(step, learningRate),
      ...(settings.ema ? { 'ema.decay': scalarFeed(emaDecay(step, settings.emaDecay)) } : {}),
    };
    const criticFeeds =
      objective.method === 'dpg' ? criticOptimizer.feeds(step, objective.criticLearningRate) : {};
    const sums = new Map<string, number>();
    let gradientNorm = Number.NaN;
    for (let part = 0; part < parts; part++) {
      const feeds = await this.#batch((step - 1) * parts + part);
      const outputs = await this.micro.run(
        { ...feeds, ...criticFeeds, ...(this.apply ? {} : updateFeeds) },
        this.state,
      );
      for (const name of ['loss', ...this.metrics]) {
        sums.set(name, (sums.get(name) ?? 0) + scalarOf(outputs[name]) / parts);
      }
      if (!this.apply) gradientNorm = scalarOf(outputs.gradientNorm);
    }
    if (this.apply) gradientNorm = scalarOf((await this.apply.run(updateFeeds, this.state)).gradientNorm);
    const loss = sums.get('loss')!;
    if (![...sums.values(), gradientNorm].every(Number.isFinite)) {
      throw this.#diverged(step, 'the loss or the gradient is not finite');
    }
    return { step, ...(Object.fromEntries(sums) as { loss: number }), loss, gradientNorm, learningRate };
  }

  #diverged(step: number, what: string): DivergedError {
    const { checkpointingSteps, objective } = this.settings;
    const kept = Math.max(checkpointingSteps * Math.floor((step - 1) / checkpointingSteps), this.fromStep);
    const critic = objective.method === 'dpg' ? ' or --critic-learning-rate' : '';
    const advice = `lower --learning-rate${critic}, or lower --max-grad-norm`;
    return new DivergedError(
      kept > 0
        ? `Training diverged at step ${step}: ${what}. The checkpoint of step ${kept} in ${this.inputs.run.path} is good and was kept. Go on from it with --resume-from-checkpoint latest and ${advice}.`
        : `Training diverged at step ${step}, before the first checkpoint: ${what}. Start again and ${advice}, or add --lr-warmup-steps.`,
    );
  }

  /** What to feed at micro step `index`, counted from 0 over the whole run. */
  async #batch(index: number): Promise<Record<string, Tensor>> {
    const { model, instances, priors } = this.inputs;
    const { settings } = this;
    const random = new Random(settings.seed, 'step', index);
    const rows = [
      ...(await this.#rows('instance', instances, settings.instances, index)),
      ...(priors ? await this.#rows('prior', priors, settings.priors, index) : []),
    ];
    const shape = [rows.length, ...model.latentShape(settings.resolution)];
    const timesteps = rows.map(() => random.int(model.scheduler.schedule.steps));
    return {
      ...batchRows<DType>(
        rows.map(({ text, size }) => ({
          ...(settings.lora.textEncoder ? text.tokens : text.embedding),
          ...model.sizeFeeds(size),
        })),
      ),
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
      timesteps: int64([rows.length], timesteps),
    };
  }

  /** The pictures of a micro step: every picture once in a random order, then again in another one. */
  async #rows(kind: string, source: { latents: LatentCache; text: RowText }, count: number, index: number) {
    const { latents, text } = source;
    const { seed } = this.settings;
    return Promise.all(
      Array.from({ length: count }, async (_, i) => {
        const position = index * count + i;
        const epoch = Math.floor(position / latents.count);
        const order = new Random(seed, 'order', kind, epoch).permutation(latents.count);
        const picture = order[position % latents.count]!;
        const moments = await latents.moments(picture, new Random(seed, 'view', kind, position));
        return { ...moments, text };
      }),
    );
  }
}

type StepRecord = {
  readonly step: number;
  readonly loss: number;
  readonly reward?: number;
  readonly criticLoss?: number;
  readonly gradientNorm: number;
  readonly learningRate: number;
};

const scalarOf = (t: Tensor | undefined): number => (t ? Number(t.data[0]) : Number.NaN);

function joined(shape: readonly number[], parts: readonly Float32Array[]): Tensor<'float32'> {
  const size = parts[0]!.length;
  const all = new Float32Array(size * parts.length);
  parts.forEach((p, i) => {
    all.set(p, i * size);
  });
  return float32(shape, all);
}

function requireSameState(
  expected: ReadonlyMap<string, Tensor>,
  found: ReadonlyMap<string, Tensor>,
  path: string,
): void {
  for (const [name, t] of expected) {
    const other = found.get(name);
    if (!other || other.shape.join() !== t.shape.join()) {
      throw new RunError(
        `${path}: expected the tensor ${JSON.stringify(name)} [${t.shape.join(', ')}], found ${other ? `[${other.shape.join(', ')}]` : 'none'}. The checkpoint belongs to another model or other settings.`,
      );
    }
  }
}
