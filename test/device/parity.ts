import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, suite, type TestContext, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { Critic } from '../../src/algorithms/critic.js';
import { gradients } from '../../src/autodiff/gradient.js';
import type { Device } from '../../src/engine/device.js';
import type { Engine } from '../../src/engine/engine.js';
import { createNodeEngine } from '../../src/engine/node.js';
import { EngineError } from '../../src/errors.js';
import type { ComputeType } from '../../src/nn/parameters.js';
import { fusedAttention } from '../../src/onnx/attention.js';
import { cast, mul } from '../../src/onnx/elementwise.js';
import { Graph } from '../../src/onnx/graph.js';
import { sum } from '../../src/onnx/reduction.js';
import { adamw } from '../../src/optim/adamw.js';
import { emaName } from '../../src/optim/ema.js';
import { sgd } from '../../src/optim/sgd.js';
import { StableDiffusion } from '../../src/pretrained/stable-diffusion.js';
import { Random } from '../../src/tensor/random.js';
import { elementCount, float32, int64, type Shape, type Tensor } from '../../src/tensor/tensor.js';
import { LossScaler } from '../../src/training/loss-scaler.js';
import {
  buildStep,
  criticOptimizer,
  type ObjectiveSettings,
  type StepSettings,
} from '../../src/training/personalisation-step.js';
import { shippedModelPath } from '../../src/workflows/shipped.js';
import { goldenPath } from '../goldens.js';
import { temporaryFolder } from '../temporary-folder.js';

/** Of the largest value: both compute in 32-bit floats, in another order. */
const TOLERANCE = 1e-3;
/** Of the whole, in the Euclidean norm: the device computes in halves, the processor in 32-bit floats. */
const HALF_TOLERANCE = 2e-2;

/** How far apart two tensors are, relative to the largest value of the first. */
function difference(expected: Tensor, found: Tensor): number {
  assert.deepEqual(found.shape, expected.shape);
  let largest = 0;
  let apart = 0;
  for (const [i, value] of (expected.data as Float32Array).entries()) {
    largest = Math.max(largest, Math.abs(value));
    // Not Math.max, which a NaN would pass through as the larger or the smaller.
    const distance = Math.abs(value - (found.data as Float32Array)[i]!);
    if (!(distance <= apart)) apart = distance;
  }
  assert.ok(largest > 0, 'all zero');
  return apart / largest;
}

/** How far apart two tensors are in the Euclidean norm, relative to the first. */
function relativeL2(expected: readonly Tensor[], found: readonly Tensor[]): number {
  let apart = 0;
  let whole = 0;
  for (const [i, { data }] of expected.entries()) {
    for (const [k, value] of (data as Float32Array).entries()) {
      apart += (value - (found[i]!.data as Float32Array)[k]!) ** 2;
      whole += value ** 2;
    }
  }
  assert.ok(whole > 0, 'all zero');
  return Math.sqrt(apart / whole);
}

const normal = (shape: Shape, name: string): Tensor => new Random(3, name).normals(shape);

/** Values for the inputs of a graph that are not given: normal numbers, timesteps, and tokens that every small vocabulary has. */
function feedsFor(graph: Graph, given: ReadonlySet<string> = new Set()): Record<string, Tensor> {
  const wanted = graph.liveSources().inputs.filter(({ name }) => !given.has(name));
  return Object.fromEntries(
    wanted.map(({ name, dtype, shape }) => {
      if (dtype === 'float32') return [name, normal(shape, name)];
      const random = new Random(3, name);
      const limit = name.startsWith('timestep') ? 1000 : 40;
      return [
        name,
        int64(
          shape,
          Array.from({ length: elementCount(shape) }, () => random.int(limit)),
        ),
      ];
    }),
  );
}

const path = fileURLToPath(goldenPath('models/sd1-tiny'));

/** A device as the engine knows it, and the execution provider that runs its part of a graph. */
export interface TestedDevice {
  readonly device: Device;
  readonly provider: string;
}

/** Declares the suite that compares a device with the processor. */
export function compareWithProcessor({ device, provider }: TestedDevice): void {
  suite(`${device} against the processor`, () => suiteOf(device, provider));
}

function suiteOf(device: Device, provider: string): void {
  let model: StableDiffusion;
  let processor: Engine;
  let tested: Engine;
  before(async () => {
    model = await StableDiffusion.open(path);
    processor = createNodeEngine({ threads: 1 });
    tested = createNodeEngine({ threads: 1, device });
  });
  after(async () => {
    await processor.close();
    await tested.close();
  });

  /** The model in half precision, or undefined where the device has no 16-bit floats, which the test then says. */
  async function halfModel(t: TestContext, folder = path): Promise<StableDiffusion | undefined> {
    const graph = new Graph('half');
    const x = graph.input('x', 'float32', [2]);
    graph.output('half', cast(mul(cast(x, 'float16'), 0.5), 'float32'));
    try {
      const { half } = await (await tested.compile(graph)).run({ x: float32([2], [1, 2]) });
      assert.deepEqual([...(half!.data as Float32Array)], [0.5, 1]);
    } catch (error) {
      if (!(error instanceof EngineError) || !/cannot compute in half precision/.test(error.message))
        throw error;
      t.skip(error.message);
      return undefined;
    }
    return StableDiffusion.open(folder, { computeType: 'float16' });
  }

  async function compare(graph: Graph): Promise<void> {
    const feeds = feedsFor(graph);
    const expected = await (await processor.compile(graph)).run(feeds);
    const found = await (await tested.compile(graph)).run(feeds);
    for (const [name, value] of Object.entries(expected)) {
      const apart = difference(value, found[name]!);
      assert.ok(apart <= TOLERANCE, `${name}: ${apart}`);
    }
  }

  test('text encoder', async () => {
    const graph = new Graph('text_encoder');
    for (const [name, value] of Object.entries(model.textEncoder(graph, 2).result)) graph.output(name, value);
    await compare(graph);
  });

  test('denoiser', async () => {
    const graph = new Graph('denoiser');
    const inputs = {
      sample: graph.input('sample', 'float32', [2, ...model.latentShape(model.resolution)]),
      timestep: graph.input('timestep', 'int64', [2]),
      condition: model.condition(graph, 2),
    };
    graph.output('prediction', model.denoiser(graph, inputs).result);
    await compare(graph);
  });

  test('autoencoder, both ways', async () => {
    const graph = new Graph('autoencoder');
    const side = model.resolution;
    const moments = model.encoder(graph, graph.input('pixels', 'float32', [1, 3, side, side]));
    for (const [name, value] of Object.entries(moments)) graph.output(name, value);
    const latents = graph.input('latents', 'float32', [1, ...model.latentShape(side)]);
    graph.output('decoded', model.decoder(graph, latents));
    await compare(graph);
  });

  test('training steps of dpg, with the text encoder', async (t) => {
    const settings: StepSettings = {
      objective: { method: 'dpg look-forward', gamma: 0.999, criticLearningRate: 1e-6 },
      priorLossWeight: 1,
      trainable: { lora: { rank: 4, alpha: 4, textEncoder: true } },
      instances: 1,
      priors: 1,
      resolution: model.resolution,
      gradientAccumulationSteps: 1,
      gradientCheckpointing: false,
      maxGradNorm: 1,
      ema: true,
      optimizer: adamw(),
    };
    const { micro } = buildStep(model, settings);
    const parameters = model
      .variables(settings.trainable)
      .map(({ input, shape }) => ({ name: input, shape }));
    const start = new Map<string, Tensor>([
      // Both factors away from zero, so that all gradients are.
      ...parameters.map(({ name, shape }) => [name, scaled(normal(shape, name), 0.05)] as const),
      ...parameters.map(({ name, shape }) => [emaName(name), scaled(normal(shape, name), 0.05)] as const),
      ...Critic.initial([1, ...model.latentShape(model.resolution)], new Random(3, 'critic')),
      ...settings.optimizer.init(parameters),
    ]);
    const profile = join(await temporaryFolder(t), 'profile');
    const run = async (engine: Engine, profilePrefix?: string) => {
      const program = await engine.compile(micro, profilePrefix === undefined ? {} : { profilePrefix });
      const state = await engine.state(start);
      const losses: Tensor[] = [];
      for (let step = 1; step <= 3; step++) {
        const rates = { ...settings.optimizer.feeds(step, 1e-4), ...criticOptimizer.feeds(step, 1e-6) };
        const rest = feedsFor(micro, new Set([...start.keys(), ...Object.keys(rates)]));
        const decay = Object.fromEntries(
          Object.keys(rest)
            .filter((name) => name.startsWith('ema'))
            .map((name) => [name, float32([], [0.9])]),
        );
        losses.push((await program.run({ ...rest, ...rates, ...decay }, state)).loss!);
      }
      const end = await state.read();
      return { losses, end, file: await program.release() };
    };
    const expected = await run(processor);
    const found = await run(tested, profile);
    for (const [i, loss] of expected.losses.entries()) {
      const apart = difference(loss, found.losses[i]!);
      assert.ok(apart <= TOLERANCE, `loss of step ${i + 1}: ${apart}`);
    }
    for (const { name } of parameters) {
      const apart = difference(expected.end.get(name)!, found.end.get(name)!);
      assert.ok(apart <= TOLERANCE, `${name}: ${apart}`);
    }

    await assertOnDevice(found.file!, provider);
  });

  test('attention over many tokens, forwards and backwards', async (t) => {
    const graphOf = (type: ComputeType): Graph => {
      const graph = new Graph('attention');
      const inputs = ['q', 'k', 'v'].map((name) => graph.input(name, 'float32', [1, 1024, 80]));
      const [q, k, v] = inputs.map((x) => cast(x, type));
      const y = cast(fusedAttention(q!, k!, v!, 2), 'float32');
      graph.output('y', y);
      const loss = sum(mul(y, graph.input('upstream', 'float32', y.shape)));
      gradients(loss, inputs).forEach((g, i) => {
        graph.output(`gradient ${i}`, g);
      });
      return graph;
    };
    await compare(graphOf('float32'));
    if (!(await halfModel(t))) return;
    const feeds = feedsFor(graphOf('float32'));
    const expected = await (await processor.compile(graphOf('float32'))).run(feeds);
    const found = await (await tested.compile(graphOf('float16'))).run(feeds);
    for (const [name, value] of Object.entries(expected)) {
      const apart = relativeL2([value], [found[name]!]);
      assert.ok(apart <= HALF_TOLERANCE, `${name}: ${apart}`);
    }
  });

  test('text encoder and denoiser in half precision', async (t) => {
    const half = await halfModel(t);
    if (!half) return;
    const graphOf = (m: StableDiffusion): Graph => {
      const graph = new Graph('half');
      for (const [name, value] of Object.entries(m.textEncoder(graph, 2).result)) graph.output(name, value);
      const inputs = {
        sample: graph.input('sample', 'float32', [2, ...m.latentShape(m.resolution)]),
        timestep: graph.input('timestep', 'int64', [2]),
        condition: m.condition(graph, 2),
      };
      graph.output('prediction', m.denoiser(graph, inputs).result);
      return graph;
    };
    const feeds = feedsFor(graphOf(model));
    const expected = await (await processor.compile(graphOf(model))).run(feeds);
    const found = await (await tested.compile(graphOf(half))).run(feeds);
    for (const [name, value] of Object.entries(expected)) {
      const apart = relativeL2([value], [found[name]!]);
      assert.ok(apart > 0 && apart <= HALF_TOLERANCE, `${name}: ${apart}`);
    }
  });

  const objectives: readonly { name: string; objective: ObjectiveSettings; textEncoder: boolean }[] = [
    { name: 'dreambooth, with the text encoder', objective: { method: 'dreambooth' }, textEncoder: true },
    {
      name: 'dpg',
      objective: { method: 'dpg look-forward', gamma: 0.9986, criticLearningRate: 0 },
      textEncoder: false,
    },
  ];
  for (const { name, objective, textEncoder } of objectives) {
    // A trained network: WebGPU's convolutions add up in halves too, which the gradients of a random one magnify.
    test(`loss and gradients of a training step in half precision: ${name}`, (t) =>
      compareHalfStep(t, objective, textEncoder));
  }

  async function compareHalfStep(
    t: TestContext,
    objective: ObjectiveSettings,
    textEncoder: boolean,
  ): Promise<void> {
    const half = await halfModel(t, shippedModelPath());
    if (!half) return;
    const full = await StableDiffusion.open(shippedModelPath());
    const optimizer = sgd();
    const settings: StepSettings = {
      objective,
      priorLossWeight: 1,
      trainable: { lora: { rank: 4, alpha: 4, textEncoder } },
      instances: 1,
      priors: 1,
      resolution: full.resolution,
      gradientAccumulationSteps: 1,
      gradientCheckpointing: false,
      maxGradNorm: 1e9,
      ema: false,
      optimizer,
    };
    const parameters = full.variables(settings.trainable).map(({ input, shape }) => ({ name: input, shape }));
    const start = new Map<string, Tensor>([
      ...parameters.map(({ name, shape }) => [name, scaled(normal(shape, name), 0.05)] as const),
      ...Critic.initial([1, ...full.latentShape(full.resolution)], new Random(3, 'critic')),
    ]);
    const profile = join(await temporaryFolder(t), 'profile');
    // A step of plain descent at rate 1 moves each factor by its gradient.
    const run = async (engine: Engine, m: StableDiffusion) => {
      const { micro } = buildStep(m, settings);
      const program = await engine.compile(micro, { profilePrefix: profile });
      const state = await engine.state(start);
      const given = {
        ...optimizer.feeds(1, 1),
        ...criticOptimizer.feeds(1, 0),
        ...LossScaler.start().feeds(),
      };
      const rest = feedsFor(micro, new Set([...start.keys(), ...Object.keys(given)]));
      const results = await program.run({ ...rest, ...given }, state);
      const end = await state.read();
      const gradients = parameters.map(({ name }) => {
        const before = start.get(name)!.data as Float32Array;
        const after = end.get(name)!.data as Float32Array;
        return float32(
          [before.length],
          before.map((v, i) => v - after[i]!),
        );
      });
      return { results, gradients, file: await program.release() };
    };
    const expected = await run(processor, full);
    const found = await run(tested, half);
    assert.equal(found.results.overflowed!.data[0], 0);
    const loss = relativeL2([expected.results.loss!], [found.results.loss!]);
    assert.ok(loss <= HALF_TOLERANCE, `loss: ${loss}`);
    const gradient = relativeL2(expected.gradients, found.gradients);
    assert.ok(gradient > 0 && gradient <= HALF_TOLERANCE, `gradients: ${gradient}`);
    t.diagnostic(
      `relative L2 error of the loss ${loss.toExponential(1)}, of the gradients ${gradient.toExponential(1)}`,
    );
    await assertOnDevice(found.file!, provider);
  }
}

/** Not the processor in the device's name. */
async function assertOnDevice(profile: string, provider: string): Promise<void> {
  const ran = await providers(profile);
  const share = (ran.get(provider) ?? 0) / [...ran.values()].reduce((sum, n) => sum + n, 0);
  assert.ok(
    share > 0.9,
    `the device ran ${(100 * share).toFixed()} % of the nodes: ${JSON.stringify([...ran])}`,
  );
}

function scaled(t: Tensor, factor: number): Tensor {
  return float32(
    t.shape,
    Array.from(t.data as Float32Array, (value) => value * factor),
  );
}

/** How many nodes each execution provider has run, by the engine's profile. */
async function providers(profile: string): Promise<Map<string, number>> {
  const events = JSON.parse(await readFile(profile, 'utf8')) as { args?: { provider?: string } }[];
  const counts = new Map<string, number>();
  for (const { args } of events) {
    if (args?.provider) counts.set(args.provider, (counts.get(args.provider) ?? 0) + 1);
  }
  return counts;
}
