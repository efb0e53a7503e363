import { join } from 'node:path';
import { gradients } from '../autodiff/gradient.js';
import type { Engine, Program, State } from '../engine/engine.js';
import { CancelledError, DivergedError, RunError } from '../errors.js';
import { isObject, type Json } from '../formats/json-config.js';
import { makeFolder } from '../formats/make-folder.js';
import { firstNonFinite, type SafetensorsContents } from '../formats/safetensors.js';
import { openSafetensors, readSafetensorsFile, writeSafetensorsFile } from '../formats/safetensors-file.js';
import { initialParameters } from '../nn/initialize.js';
import type { InputParameters } from '../nn/parameters.js';
import type { Graph, Value } from '../onnx/graph.js';
import { adamw } from '../optim/adamw.js';
import { clipByGlobalNorm } from '../optim/clipping.js';
import { ema, emaDecay, emaName } from '../optim/ema.js';
import { scalarFeed } from '../optim/optimizer.js';
import { scheduleFactor } from '../optim/schedule.js';
import { Random } from '../tensor/random.js';
import type { Shape, Tensor } from '../tensor/tensor.js';
import type { TrainingEvent } from './events.js';
import { differingSettings, type RunConfig } from './run-folder.js';

/** What determines the numbers of a training, besides the program itself: a saved state is only gone on with under an equal plan. */
export interface TrainingPlan {
  /** Names the state file. */
  readonly name: string;
  readonly steps: number;
  readonly learningRate: number;
  readonly warmupSteps: number;
  readonly maxEmaDecay: number;
  /** What else the batches and the parameters follow from: seed, sizes, shapes. Default: nothing that is checked. */
  readonly data?: RunConfig;
}

/** One objective with all of its parameters trainable: how the models that ship are made. */
export interface FullTraining extends TrainingPlan {
  readonly graph: Graph;
  readonly loss: Value;
  /** What to report besides the loss. */
  readonly metrics?: Readonly<Record<string, Value>>;
  readonly parameters: readonly InputParameters[];
  /** Averages of the parameters that the loss itself reads, as the teacher of a self-distillation; their inputs have the averages' names. */
  readonly averages?: InputParameters;
  /** Where the parameters start, by input name; drawn as their models have it without this. */
  readonly initial?: ReadonlyMap<string, Tensor>;
  /** What to feed at a step (from 1); a function of the step alone, so that a restart repeats it. */
  readonly batch: (step: number) => Record<string, Tensor>;
}

export interface FullTrainingSettings {
  readonly engine: Engine;
  readonly folder: string;
  readonly random: Random;
  readonly checkpointingSteps: number;
  readonly onEvent?: (event: TrainingEvent) => void;
  readonly signal?: AbortSignal;
}

/** What every small model that ships is asked for in the same way. */
export interface SmallModelTraining {
  /** Becomes the model's folder. */
  readonly output: string;
  /** Where the training state is kept. */
  readonly work: string;
  readonly engine: Engine;
  readonly seed: number;
  readonly steps: number;
  readonly batchSize: number;
  readonly checkpointingSteps: number;
  readonly onEvent?: (event: TrainingEvent) => void;
  readonly signal?: AbortSignal;
}

/** How the training of a small model runs. Its work folder is made if it is missing. */
export async function smallModelSettings(training: SmallModelTraining): Promise<FullTrainingSettings> {
  const { work, engine, seed, checkpointingSteps, onEvent, signal } = training;
  await makeFolder(work);
  return {
    engine,
    folder: work,
    random: new Random(seed, 'initial'),
    checkpointingSteps,
    ...(onEvent ? { onEvent } : {}),
    ...(signal ? { signal } : {}),
  };
}

const MAX_GRAD_NORM = 1;

/** Metadata of a state file. */
const STEP = 'step';
const SETTINGS = 'settings';

const statePath = (folder: string, { name }: TrainingPlan): string => join(folder, `${name}.safetensors`);

/**
 * Trains from a seed, with AdamW, a cosine schedule and an average of the weights, and can be stopped and started at any time: the state is saved every so often and
 * picked up again.
 *
 * @returns the averaged parameters, by input name
 * @throws CancelledError after saving, when the signal is raised. DivergedError when the loss, the gradient or the state is not finite; what was saved before stays.
 * RunError when the state in the folder is damaged or of another training.
 */
export async function trainFully(
  training: FullTraining,
  settings: FullTrainingSettings,
): Promise<Map<string, Tensor<'float32'>>> {
  const { graph, loss, metrics = {} } = training;
  const { engine, folder, random } = settings;
  const path = statePath(folder, training);
  const specs = training.parameters.flatMap((p) => p.specs);
  const parameters = training.parameters.flatMap((p) => [...p.values.values()]);
  const optimizer = adamw({ beta2: 0.99, weightDecay: 1e-2 });
  const { clipped, norm } = clipByGlobalNorm(gradients(loss, parameters), MAX_GRAD_NORM);
  optimizer.update(graph, parameters, clipped);
  const averaged = [...(training.averages?.values.values() ?? [])];
  ema(graph, parameters, new Map(averaged.map((value) => [value.name, value])));
  graph.output('loss', loss);
  graph.output('gradient_norm', norm);
  for (const [metric, value] of Object.entries(metrics)) graph.output(metric, value);

  const moments = optimizer.init(specs.map((s) => ({ name: s.input, shape: s.shape })));
  const saved = await readState(path, training);
  if (saved) {
    const weights = specs.flatMap((s) => [s.input, emaName(s.input)].map((key) => [key, s.shape] as const));
    requireTensors(path, saved.tensors, [
      ...weights,
      ...[...moments].map(([key, t]) => [key, t.shape] as const),
    ]);
  }
  const averages = (tensors: ReadonlyMap<string, Tensor>) =>
    new Map(specs.map((s) => [s.input, tensors.get(emaName(s.input)) as Tensor<'float32'>]));
  if (saved && saved.step >= training.steps) return averages(saved.tensors);
  const beginning = () => {
    const initial = training.initial ?? initialParameters(specs, random);
    const initialAverages = [...initial].map(([key, t]) => [emaName(key), t] as const);
    return new Map<string, Tensor>([...initial, ...initialAverages, ...moments]);
  };
  const held: (Program | State)[] = [];
  try {
    const state = await engine.state(saved?.tensors ?? beginning());
    held.push(state);
    const program = await engine.compile(graph);
    held.push(program);
    await takeSteps(
      training,
      settings,
      saved?.step ?? 0,
      async (step, learningRate) => {
        const feeds = {
          ...training.batch(step),
          ...optimizer.feeds(step, learningRate),
          'ema.decay': scalarFeed(emaDecay(step, training.maxEmaDecay)),
        };
        return program.run(feeds, state);
      },
      (step) => saveState(path, training, step, state),
    );
    return averages(await state.read(specs.map((s) => emaName(s.input))));
  } finally {
    // Settled, not awaited one by one: an engine that has failed refuses these too, and its first error is the one to tell.
    await Promise.allSettled(held.map((resource) => resource.release()));
  }
}

/** The loop: from the step that was saved last to the end, or until the signal is raised. */
async function takeSteps(
  plan: TrainingPlan,
  { folder, checkpointingSteps, onEvent, signal }: FullTrainingSettings,
  firstStep: number,
  run: (step: number, learningRate: number) => Promise<Record<string, Tensor>>,
  save: (step: number) => Promise<void>,
): Promise<void> {
  const { name, steps, warmupSteps } = plan;
  const started = performance.now();
  let step = firstStep;
  let average: number | undefined;
  while (step < steps) {
    if (signal?.aborted) {
      await save(step);
      throw new CancelledError(
        `Stopped ${name} at step ${step} of ${steps}; the same command goes on from there.`,
      );
    }
    step++;
    const learningRate =
      plan.learningRate * scheduleFactor(step, { schedule: 'cosine', warmupSteps, totalSteps: steps });
    const outputs = await run(step, learningRate);
    const loss = outputs.loss!.data[0] as number;
    const gradientNorm = outputs.gradient_norm!.data[0] as number;
    for (const [what, value] of Object.entries({ loss, 'norm of the gradient': gradientNorm })) {
      if (Number.isFinite(value)) continue;
      throw diverged(statePath(folder, plan), `The ${what} of ${name} is ${value} at step ${step}`);
    }
    average = average === undefined ? loss : 0.98 * average + 0.02 * loss;
    const secondsPerStep = (performance.now() - started) / 1000 / (step - firstStep);
    onEvent?.({
      kind: 'progress',
      step,
      steps,
      loss: average,
      learningRate,
      secondsPerStep,
      secondsLeft: secondsPerStep * (steps - step),
    });
    if (step % checkpointingSteps === 0 || step === steps) await save(step);
  }
}

function diverged(path: string, what: string): DivergedError {
  return new DivergedError(
    `${what}. ${path}, if it is there, is still the state that was saved before. Start in another output folder with a lower learning rate or another seed.`,
  );
}

/** @throws DivergedError, with nothing written, when a value is not finite: the loss of a step says nothing about the weights that the step makes. */
async function saveState(path: string, plan: TrainingPlan, step: number, state: State): Promise<void> {
  const tensors = await state.read();
  const bad = nonFiniteTensor(tensors);
  if (bad !== undefined) {
    throw diverged(path, `After step ${step} of ${plan.name}, ${bad} has a value that is not finite`);
  }
  const metadata = new Map([
    [STEP, String(step)],
    [SETTINGS, JSON.stringify(settingsOf(plan))],
  ]);
  await writeSafetensorsFile(path, tensors, metadata);
}

/** The name of the first tensor that has a value that is infinite or not a number. */
export function nonFiniteTensor(tensors: ReadonlyMap<string, Tensor>): string | undefined {
  for (const [name, { dtype, data }] of tensors) {
    const bytes = new Uint8Array(data.buffer as ArrayBuffer, data.byteOffset, data.byteLength);
    if (firstNonFinite(dtype, bytes) >= 0) return name;
  }
  return undefined;
}

function settingsOf({ steps, learningRate, warmupSteps, maxEmaDecay, data }: TrainingPlan): RunConfig {
  return { ...data, steps, learningRate, warmupSteps, maxEmaDecay };
}

/**
 * Checks, without reading the tensors, that the state in the folder, if there is one, is of this plan. One that does not say what it is of is taken as it is.
 *
 * @throws RunError naming the settings that differ, or when the file is not such a state.
 */
export async function requireSamePlan(folder: string, plan: TrainingPlan): Promise<void> {
  const path = statePath(folder, plan);
  const file = await unlessMissing(path, openSafetensors(path));
  if (file) savedStep(path, plan, file.metadata);
}

/** Whether a file is a state that some training saved. */
export async function holdsState(path: string): Promise<boolean> {
  const file = await openSafetensors(path).catch(() => undefined);
  return file?.metadata.has(STEP) ?? false;
}

async function readState(
  path: string,
  plan: TrainingPlan,
): Promise<{ step: number; tensors: SafetensorsContents['tensors'] } | undefined> {
  const file = await unlessMissing(path, readSafetensorsFile(path));
  return file && { step: savedStep(path, plan, file.metadata), tensors: file.tensors };
}

async function unlessMissing<T>(path: string, reading: Promise<T>): Promise<T | undefined> {
  try {
    return await reading;
  } catch (error) {
    const cause = error instanceof Error ? error.cause : undefined;
    if (cause instanceof Error && 'code' in cause && cause.code === 'ENOENT') return undefined;
    throw unusable(path, error instanceof Error ? error.message : String(error), error);
  }
}

function unusable(path: string, reason: string, cause?: unknown): RunError {
  return new RunError(
    `${path}: this state cannot be gone on with (${reason}). Delete it to do its part of the training again, or choose another output folder.`,
    { cause },
  );
}

function savedStep(path: string, plan: TrainingPlan, metadata: ReadonlyMap<string, string>): number {
  const text = metadata.get(STEP) ?? '';
  if (!/^\d+$/.test(text)) throw unusable(path, 'it does not say at which step it was saved');
  const settings = metadata.get(SETTINGS);
  if (settings !== undefined) {
    const differences = differingSettings(parseSettings(path, settings), settingsOf(plan));
    if (differences.length > 0) {
      const shown = differences.map(({ key, was, is }) => `${key} (there ${was}, now ${is})`).join(', ');
      throw new RunError(
        `${path} is of a training with other settings: ${shown}. Give the same settings to go on with it, or choose another output folder.`,
      );
    }
  }
  return Number(text);
}

function parseSettings(path: string, text: string): RunConfig {
  let value: Json = null;
  try {
    value = JSON.parse(text) as Json;
  } catch {
    // Told below, as any other value that is not settings.
  }
  if (!isObject(value)) throw unusable(path, 'its settings are not a JSON object');
  return value as RunConfig;
}

function requireTensors(
  path: string,
  tensors: ReadonlyMap<string, Tensor>,
  expected: readonly (readonly [name: string, shape: Shape])[],
): void {
  for (const [name, shape] of expected) {
    const found = tensors.get(name);
    if (found === undefined) throw unusable(path, `it has no tensor ${name}`);
    const [wanted, came] = [`float32 [${shape.join(', ')}]`, `${found.dtype} [${found.shape.join(', ')}]`];
    if (came !== wanted) throw unusable(path, `its tensor ${name} is ${came}; expected ${wanted}`);
  }
  if (tensors.size > expected.length) {
    const names = new Set(expected.map(([name]) => name));
    const foreign = [...tensors.keys()].find((name) => !names.has(name));
    throw unusable(path, `it has a tensor ${foreign}, which this training does not`);
  }
  const bad = nonFiniteTensor(tensors);
  if (bad !== undefined) throw unusable(path, `its tensor ${bad} has a value that is not finite`);
}
