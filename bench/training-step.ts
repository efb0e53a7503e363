// One side of the benchmark of the training step: ours, in a process of its own. It prints a line of JSON when it is ready, takes one step for each line "step" that
// it reads, and ends at "end".
import { createInterface } from 'node:readline';
import type { Device } from '../src/engine/device.js';
import { createNodeEngine } from '../src/engine/node.js';
import type { ComputeType } from '../src/nn/parameters.js';
import { adamw } from '../src/optim/adamw.js';
import { StableDiffusion } from '../src/pretrained/stable-diffusion.js';
import { Random } from '../src/tensor/random.js';
import { int64, type Tensor } from '../src/tensor/tensor.js';
import { LossScaler } from '../src/training/loss-scaler.js';
import { accumulatorState, buildStep, criticOptimizer } from '../src/training/personalisation-step.js';
import { deviceMemory, peakMemory } from './peak-memory.js';
import { learningRates, stepInputs, type Workload } from './step-inputs.js';

interface Task {
  readonly model: string;
  readonly threads: number;
  readonly device: Device;
  readonly computeType: ComputeType;
  readonly workload: Workload;
  readonly gradientCheckpointing?: boolean;
  /** Where to write the engine's profile; none without it. */
  readonly profilePrefix?: string;
}

const task = JSON.parse(process.argv[2] ?? '{}') as Task;
const say = (line: object): void => void process.stdout.write(`${JSON.stringify(line)}\n`);

const { workload, device, computeType } = task;
const model = await StableDiffusion.open(task.model, { computeType, device });
const inputs = stepInputs(model, workload);
const optimizer = adamw();

const building = performance.now();
const { micro } = buildStep(model, {
  objective:
    workload.method === 'dpg'
      ? { method: 'dpg look-forward', gamma: 0.9986, criticLearningRate: learningRates.critic }
      : { method: 'dreambooth' },
  priorLossWeight: 1,
  trainable: { lora: workload.lora },
  instances: workload.instances,
  priors: workload.priors,
  resolution: workload.resolution,
  gradientAccumulationSteps: 1,
  gradientCheckpointing: task.gradientCheckpointing ?? false,
  maxGradNorm: 1,
  ema: false,
  optimizer,
});
const engine = createNodeEngine({ threads: task.threads, device });
const compiling = performance.now();
const program = await engine.compile(micro, {
  ...(task.profilePrefix === undefined ? {} : { profilePrefix: task.profilePrefix }),
});
const compiled = performance.now();

const parameters = [...inputs.factors].map(([name, { shape }]) => ({ name, shape }));
const state = await engine.state(
  new Map([
    ...inputs.factors,
    ...(workload.method === 'dpg' ? inputs.critic : []),
    ...optimizer.init(parameters),
    ...accumulatorState(parameters, 1),
  ]),
);
say({
  buildSeconds: (compiling - building) / 1000,
  compileSeconds: (compiled - compiling) / 1000,
  nodes: micro.liveNodes().length,
  version: `Node ${process.versions.node}`,
});

/** The batch of a step: the first is the one that both sides share, later ones draw their own noise as a run does. */
function batchOf(step: number): Record<string, Tensor> {
  const batch = Object.fromEntries(inputs.batch);
  if (step === 1) return batch;
  const random = new Random(step, 'step');
  const { shape } = inputs.batch.get('noise')!;
  const [rows] = shape as [number];
  return {
    ...batch,
    'latents.noise': random.derive('posterior').normals(shape),
    noise: random.derive('noise').normals(shape),
    timesteps: int64(
      [rows],
      Array.from({ length: rows }, () => random.int(model.scheduler.schedule.steps)),
    ),
  };
}

let step = 0;
for await (const line of createInterface({ input: process.stdin })) {
  if (line !== 'step') break;
  step++;
  const started = performance.now();
  const results = await program.run(
    {
      ...batchOf(step),
      ...optimizer.feeds(step, learningRates.policy),
      ...(workload.method === 'dpg' ? criticOptimizer.feeds(step, learningRates.critic) : {}),
      ...(computeType === 'float16' ? LossScaler.start().feeds() : {}),
    },
    state,
  );
  const seconds = (performance.now() - started) / 1000;
  say({ seconds, loss: results.loss!.data[0], residentBytes: process.memoryUsage.rss() });
}
const onCard = device === 'cpu' ? undefined : deviceMemory();
const profile = await program.release();
say({
  peakBytes: peakMemory(),
  ...(onCard === undefined ? {} : { deviceBytes: onCard }),
  ...(profile === undefined ? {} : { profile }),
});
await engine.close();
