import { join } from 'node:path';
import { gradients } from '../autodiff/gradient.js';
import type { Engine } from '../engine/engine.js';
import { CancelledError, DivergedError, RunError } from '../errors.js';
import { readSafetensorsFile, writeSafetensorsFile } from '../formats/safetensors-file.js';
import { initialParameters } from '../nn/initialize.js';
import type { InputParameters } from '../nn/parameters.js';
import type { Graph, Value } from '../onnx/graph.js';
import { adamw } from '../optim/adamw.js';
import { clipByGlobalNorm } from '../optim/clipping.js';
import { ema, emaDecay, emaName } from '../optim/ema.js';
import { scalarFeed } from '../optim/optimizer.js';
import { scheduleFactor } from '../optim/schedule.js';
import type { Random } from '../tensor/random.js';
import type { Tensor } from '../tensor/tensor.js';
import type { TrainingEvent } from './events.js';

/** One objective with all of its parameters trainable: how the models that ship are made. */
export interface FullTraining {
  /** Names the state file. */
  readonly name: string;
  readonly graph: Graph;
  readonly loss: Value;
  /** What to report besides the loss. */
  readonly metrics?: Readonly<Record<string, Value>>;
  readonly parameters: readonly InputParameters[];
  /** What to feed at a step (from 1); a function of the step alone, so that a restart repeats it. */
  readonly batch: (step: number) => Record<string, Tensor>;
  readonly steps: number;
  readonly learningRate: number;
  readonly warmupSteps: number;
  readonly maxEmaDecay: number;
}

export interface FullTrainingSettings {
  readonly engine: Engine;
  readonly folder: string;
  readonly random: Random;
  readonly checkpointingSteps: number;
  readonly onEvent?: (event: TrainingEvent) => void;
  readonly signal?: AbortSignal;
}

const MAX_GRAD_NORM = 1;

/**
 * Trains from a seed, with AdamW, a cosine schedule and an average of the weights, and can be stopped and started at any time: the state is saved every so often and
 * picked up again.
 *
 * @returns the averaged parameters, by input name
 * @throws CancelledError after saving, when the signal is raised; DivergedError when the loss is not finite
 */
export async function trainFully(
  training: FullTraining,
  settings: FullTrainingSettings,
): Promise<Map<string, Tensor>> {
  const { graph, loss, metrics = {}, steps, batch, name } = training;
  const { engine, folder, random, signal, onEvent } = settings;
  const path = join(folder, `${name}.safetensors`);
  const specs = training.parameters.flatMap((p) => p.specs);
  const parameters = training.parameters.flatMap((p) => [...p.values.values()]);
  const optimizer = adamw({ beta2: 0.99, weightDecay: 1e-2 });
  const { clipped, norm } = clipByGlobalNorm(gradients(loss, parameters), MAX_GRAD_NORM);
  optimizer.update(graph, parameters, clipped);
  ema(graph, parameters);
  graph.output('loss', loss);
  graph.output('gradient_norm', norm);
  for (const [metric, value] of Object.entries(metrics)) graph.output(metric, value);

  const saved = await readState(path);
  let { step } = saved;
  const initial = initialParameters(specs, random);
  const state = await engine.state(
    saved.tensors ??
      new Map([
        ...initial,
        ...[...initial].map(([key, t]) => [emaName(key), t] as const),
        ...optimizer.init(specs.map((s) => ({ name: s.input, shape: s.shape }))),
      ]),
  );
  const program = await engine.compile(graph);
  const save = async () => writeSafetensorsFile(path, await state.read(), new Map([['step', String(step)]]));
  const started = performance.now();
  const firstStep = step;
  let average: number | undefined;
  while (step < steps) {
    if (signal?.aborted) {
      await save();
      throw new CancelledError(
        `Stopped ${name} at step ${step} of ${steps}; the same command goes on from there.`,
      );
    }
    const factor = scheduleFactor(step + 1, {
      schedule: 'cosine',
      warmupSteps: training.warmupSteps,
      totalSteps: steps,
    });
    const learningRate = training.learningRate * factor;
    const outputs = await program.run(
      {
        ...batch(step + 1),
        ...optimizer.feeds(step + 1, learningRate),
        'ema.decay': scalarFeed(emaDecay(step + 1, training.maxEmaDecay)),
      },
      state,
    );
    step++;
    const value = outputs.loss!.data[0] as number;
    if (!Number.isFinite(value)) {
      throw new DivergedError(
        `The loss of ${name} is ${value} at step ${step}. ${path} holds the last good state; lower the learning rate and start again.`,
      );
    }
    average = average === undefined ? value : 0.98 * average + 0.02 * value;
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
    if (step % settings.checkpointingSteps === 0 || step === steps) await save();
  }
  const averaged = await state.read(specs.map((s) => emaName(s.input)));
  await program.release();
  await state.release();
  return new Map(specs.map((s) => [s.input, averaged.get(emaName(s.input))!]));
}

async function readState(path: string): Promise<{ step: number; tensors?: ReadonlyMap<string, Tensor> }> {
  const file = await readSafetensorsFile(path).catch((error: unknown) => {
    if (error instanceof Error && /ENOENT|no such file/i.test(`${error.message} ${String(error.cause)}`))
      return undefined;
    throw error;
  });
  if (!file) return { step: 0 };
  const step = Number(file.metadata.get('step'));
  if (!Number.isInteger(step))
    throw new RunError(`${path} does not say at which step it was saved; delete it to start again.`);
  return { step, tensors: file.tensors };
}
