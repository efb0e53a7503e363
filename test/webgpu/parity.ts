import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, suite, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { Critic } from '../../src/algorithms/critic.js';
import type { Engine } from '../../src/engine/engine.js';
import { createNodeEngine } from '../../src/engine/node.js';
import { Graph } from '../../src/onnx/graph.js';
import { adamw } from '../../src/optim/adamw.js';
import { emaName } from '../../src/optim/ema.js';
import { StableDiffusion } from '../../src/pretrained/stable-diffusion.js';
import { Random } from '../../src/tensor/random.js';
import { elementCount, float32, int64, type Shape, type Tensor } from '../../src/tensor/tensor.js';
import { buildStep, criticOptimizer, type StepSettings } from '../../src/training/personalisation-step.js';
import { goldenPath } from '../goldens.js';
import { temporaryFolder } from '../temporary-folder.js';

/** Of the largest value: both compute in 32-bit floats, in another order. */
const TOLERANCE = 1e-3;

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

suite('WebGPU against the processor', () => {
  let model: StableDiffusion;
  let processor: Engine;
  let webgpu: Engine;
  before(async () => {
    model = await StableDiffusion.open(fileURLToPath(goldenPath('models/sd1-tiny')));
    processor = createNodeEngine({ threads: 1 });
    webgpu = createNodeEngine({ threads: 1, device: 'webgpu' });
  });
  after(async () => {
    await processor.close();
    await webgpu.close();
  });

  async function compare(graph: Graph): Promise<void> {
    const feeds = feedsFor(graph);
    const expected = await (await processor.compile(graph)).run(feeds);
    const found = await (await webgpu.compile(graph)).run(feeds);
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
    const found = await run(webgpu, profile);
    for (const [i, loss] of expected.losses.entries()) {
      const apart = difference(loss, found.losses[i]!);
      assert.ok(apart <= TOLERANCE, `loss of step ${i + 1}: ${apart}`);
    }
    for (const { name } of parameters) {
      const apart = difference(expected.end.get(name)!, found.end.get(name)!);
      assert.ok(apart <= TOLERANCE, `${name}: ${apart}`);
    }

    // Not the processor in the device's name.
    const ran = await providers(found.file!);
    const share =
      (ran.get('WebGpuExecutionProvider') ?? 0) / [...ran.values()].reduce((sum, n) => sum + n, 0);
    assert.ok(
      share > 0.9,
      `the device ran ${(100 * share).toFixed()} % of the nodes: ${JSON.stringify([...ran])}`,
    );
  });
});

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
