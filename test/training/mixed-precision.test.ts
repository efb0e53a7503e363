import assert from 'node:assert/strict';
import { after, before, suite, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { Critic } from '../../src/algorithms/critic.js';
import type { Engine } from '../../src/engine/engine.js';
import { createNodeEngine } from '../../src/engine/node.js';
import { RunError } from '../../src/errors.js';
import { Graph, type Value } from '../../src/onnx/graph.js';
import { adamw } from '../../src/optim/adamw.js';
import { emaName } from '../../src/optim/ema.js';
import { scalarFeed } from '../../src/optim/optimizer.js';
import { StableDiffusion } from '../../src/pretrained/stable-diffusion.js';
import { Random } from '../../src/tensor/random.js';
import { float32, int64, type Tensor, zeros } from '../../src/tensor/tensor.js';
import { LossScaler } from '../../src/training/loss-scaler.js';
import {
  accumulatorState,
  buildStep,
  criticOptimizer,
  type StepSettings,
} from '../../src/training/personalisation-step.js';
import { goldenPath } from '../goldens.js';

const open = (computeType: 'float32' | 'float16', name = 'sd1-tiny') =>
  StableDiffusion.open(fileURLToPath(goldenPath(`models/${name}`)), { computeType });

const settingsOf = (model: StableDiffusion, parts: number): StepSettings => ({
  objective: { method: 'dpg look-forward', gamma: 0.999, criticLearningRate: 1e-6 },
  priorLossWeight: 1,
  trainable: { lora: { rank: 4, alpha: 4, textEncoder: true } },
  instances: 1,
  priors: 1,
  resolution: model.resolution,
  gradientAccumulationSteps: parts,
  gradientCheckpointing: false,
  maxGradNorm: 1,
  ema: true,
  optimizer: adamw(),
});

suite('a training step in half precision', () => {
  let engine: Engine;
  before(() => {
    engine = createNodeEngine({ threads: 1 });
  });
  after(() => engine.close());

  for (const parts of [1, 2]) {
    test(`an overflow leaves factors, moments and averages as they were, ${parts} batches a step`, async () => {
      const model = await open('float16');
      const settings = settingsOf(model, parts);
      const { micro, apply } = buildStep(model, settings);
      const parameters = model
        .variables(settings.trainable)
        .map(({ input, shape }) => ({ name: input, shape }));
      const random = new Random(3, 'start');
      const factors = new Map<string, Tensor>(
        parameters.map(({ name, shape }) => [name, random.derive(name).uniforms(shape, -0.1, 0.1)]),
      );
      const latents = model.latentShape(model.resolution);
      const state = await engine.state(
        new Map<string, Tensor>([
          ...factors,
          ...[...factors].map(([name, t]) => [emaName(name), t] as const),
          ...settings.optimizer.init(parameters),
          ...Critic.initial([1, ...latents], new Random(3, 'critic')),
          ...accumulatorState(parameters, parts),
        ]),
      );
      const programs = { micro: await engine.compile(micro), apply: apply && (await engine.compile(apply)) };
      const shape = [2, ...latents];
      const step = async (scale: number, noise = 1): Promise<Record<string, Tensor>> => {
        const feeds = {
          loss_scale: scalarFeed(scale),
          'ema.decay': scalarFeed(0.9),
          ...settings.optimizer.feeds(1, 1e-3),
        };
        let results: Record<string, Tensor> = {};
        for (let part = 0; part < parts; part++) {
          results = await programs.micro.run(
            {
              'latents.mean': random.derive('mean').normals(shape),
              'latents.logvar': zeros(shape),
              'latents.noise': random.derive('drawn').normals(shape),
              noise: float32(
                shape,
                random
                  .derive('noise')
                  .normals(shape)
                  .data.map((v) => v * noise),
              ),
              timesteps: int64([2], [500, 20]),
              tokens: int64([2, model.promptLength], new Array(2 * model.promptLength).fill(7)),
              ...criticOptimizer.feeds(1, 1e-6),
              ...feeds,
            },
            state,
          );
        }
        return programs.apply ? { ...results, ...(await programs.apply.run(feeds, state)) } : results;
      };
      const isCritic = (name: string): boolean => name.startsWith('critic.');
      const before = await state.read();

      const scaled = await step(2 ** 60);
      assert.equal(scaled.overflowed!.data[0], 1);
      assert.ok(Number.isFinite(scaled.loss!.data[0]), 'the loss itself is finite');
      const skipped = await state.read();
      for (const [name, t] of skipped) if (!isCritic(name)) assert.deepEqual(t, before.get(name), name);
      // Its own gradients are not scaled and did not overflow.
      assert.ok([...skipped].some(([name, t]) => isCritic(name) && !sameBytes(t, before.get(name)!)));

      const forwards = await step(1, 1e6);
      assert.equal(forwards.overflowed!.data[0], 1);
      assert.ok(!Number.isFinite(forwards.loss!.data[0]), 'activations overflow');
      assert.deepEqual(await state.read(), skipped);

      const { overflowed, loss, gradientNorm } = await step(2 ** 10);
      assert.equal(overflowed!.data[0], 0);
      assert.ok(Number.isFinite(loss!.data[0]) && Number.isFinite(gradientNorm!.data[0]));
      const moved = await state.read();
      for (const name of factors.keys()) assert.ok(!sameBytes(moved.get(name)!, before.get(name)!), name);
    });
  }

  test('halves in a file are read as they are, and float32 networks have none', async () => {
    const graphOf = async (computeType: 'float32' | 'float16', name: string): Promise<Graph> => {
      const model = await open(computeType, name);
      const graph = new Graph('denoiser');
      const [c, h, w] = model.latentShape(model.resolution);
      const inputs = {
        sample: graph.input('sample', 'float32', [1, c, h, w]),
        timestep: graph.input('timestep', 'int64', [1]),
        condition: model.condition(graph, 1),
      };
      graph.output('prediction', model.denoiser(graph, inputs).result);
      return graph;
    };
    const products = (graph: Graph): (Value | undefined)[] =>
      graph
        .liveNodes()
        .filter(({ operator }) => operator === 'Gemm' || operator === 'Conv')
        .map(({ inputs }) => inputs[1]);
    const half = products(await graphOf('float16', 'half-tiny'));
    assert.ok(half.length > 20);
    for (const weight of half) {
      assert.equal(weight?.dtype, 'float16');
      assert.equal(weight?.origin.kind, 'external', `${weight} is computed`);
    }
    const norms = (await graphOf('float16', 'sd1-tiny'))
      .liveNodes()
      .filter(({ operator }) => operator === 'LayerNormalization' || operator === 'Softmax');
    assert.ok(norms.length > 20);
    for (const { inputs } of norms) assert.equal(inputs[0]!.dtype, 'float32');
    const full = await graphOf('float32', 'sd1-tiny');
    for (const { outputs } of full.liveNodes()) assert.notEqual(outputs[0]!.dtype, 'float16');
  });
});

test('the loss scale of a checkpoint is taken over, and one without is refused', () => {
  const scaler = LossScaler.start();
  for (const overflowed of [true, true, false, false]) scaler.settle(overflowed);
  const restored = LossScaler.restore(scaler.progress, 'here');
  assert.deepEqual(restored.progress, { scale: 2 ** 14, cleanSteps: 2, skippedSteps: 2, skippedInARow: 0 });
  for (const progress of [undefined, {}, { scale: 0, cleanSteps: 0, skippedSteps: 0, skippedInARow: 0 }]) {
    assert.throws(() => LossScaler.restore(progress, 'here'), RunError);
  }
});

test('a run is stuck after twenty skipped steps in a row', () => {
  const scaler = LossScaler.start();
  for (let i = 0; i < 19; i++) scaler.settle(true);
  assert.equal(scaler.isStuck, false);
  scaler.settle(false);
  for (let i = 0; i < 20; i++) scaler.settle(true);
  assert.equal(scaler.isStuck, true);
});

function sameBytes(a: Tensor, b: Tensor): boolean {
  return (a.data as Float32Array).every((v, i) => Object.is(v, b.data[i]));
}
