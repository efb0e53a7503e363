import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { after, before, suite, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import type { Device } from '../../src/engine/device.js';
import type { Engine } from '../../src/engine/engine.js';
import { createNodeEngine } from '../../src/engine/node.js';
import type { ComputeType } from '../../src/nn/parameters.js';
import { adamw } from '../../src/optim/adamw.js';
import { StableDiffusion } from '../../src/pretrained/stable-diffusion.js';
import type { LoraSettings } from '../../src/pretrained/trainable.js';
import { float32, int64, type Tensor, tensor, zeros } from '../../src/tensor/tensor.js';
import { LossScaler } from '../../src/training/loss-scaler.js';
import {
  accumulatorState,
  buildStep,
  criticOptimizer,
  type ObjectiveSettings,
  type StepSettings,
} from '../../src/training/personalisation-step.js';
import { goldenJson, goldenPath, goldenTensors, relativeError, withoutPrefix } from '../goldens.js';

/** What PyTorch reports of one forward pass: losses by our metric names, and which pictures were in it. */
interface MicroStep {
  readonly instance: number[];
  readonly prior: number[];
  readonly values?: number[];
  readonly [metric: string]: number | number[] | undefined;
}

/** A training run, as scripts/goldens/training.py writes it. */
interface Case {
  readonly name: string;
  readonly world: string;
  readonly method: 'dreambooth' | 'dpg';
  readonly priorWeight: number | null;
  readonly snrGamma: number | null;
  readonly noiseOffset: number;
  readonly rank: number;
  readonly alpha: number;
  readonly textEncoderLora: boolean;
  readonly gradientAccumulation: number;
  readonly learningRate: number;
  readonly maxGradNorm: number;
  readonly gamma?: number;
  readonly criticLearningRate?: number;
  readonly steps: { readonly microSteps: MicroStep[]; readonly gradientNorm: number }[];
}

interface World {
  readonly folder: string;
  readonly sha256: string;
  readonly resolution: number;
  /** Height and width of the pictures. */
  readonly sides: readonly [number, number];
  readonly timesteps: number[][];
}

const { worlds, cases } = goldenJson<{ worlds: Record<string, World>; cases: Case[] }>('training.json');
const golden = goldenTensors('training.safetensors');

/** Of losses, and of gradient norms and factors. In half precision a step of Adam follows signs that rounding may turn where a gradient is near zero. */
const tolerances = {
  float32: { loss: 1e-5, norm: 1e-4, parameter: 1e-4 },
  float16: { loss: 1e-2, norm: 3e-2, parameter: 5e-2 },
} as const;
/** Where PyTorch gives no number under one of our names. */
const unchecked = new Set(['criticValue', 'gradientNorm', 'overflowed']);

const named = (prefix: string): Map<string, Tensor> => withoutPrefix(golden, prefix);

/** Rows of a tensor along its first axis. */
function rows(t: Tensor, picked: readonly number[]): Tensor {
  const size = t.data.length / t.shape[0]!;
  const shape = [picked.length, ...t.shape.slice(1)];
  if (t.dtype === 'int64') {
    const data = t.data as BigInt64Array;
    return tensor(
      'int64',
      shape,
      BigInt64Array.from(picked.flatMap((r) => [...data.subarray(r * size, (r + 1) * size)])),
    );
  }
  const data = t.data as Float32Array;
  return float32(
    shape,
    picked.flatMap((r) => [...data.subarray(r * size, (r + 1) * size)]),
  );
}

/** One entry of the first axis, which is dropped. */
function entry(t: Tensor, i: number, count: number): Tensor {
  const [, ...rest] = t.shape;
  const one = rows(t, [i]);
  return rows(
    { ...one, shape: rest } as Tensor,
    Array.from({ length: count }, (_, r) => r),
  );
}

/** The first value of each channel: [B, C, 1, 1]. */
function corners(t: Tensor): Tensor {
  const [b, c, h, w] = t.shape;
  const values = Array.from({ length: b! * c! }, (_, i) => (t.data as Float32Array)[i * h! * w!]!);
  return float32([b!, c!, 1, 1], values);
}

function objectiveOf(c: Case): ObjectiveSettings {
  if (c.method === 'dpg')
    return { method: 'dpg look-forward', gamma: c.gamma!, criticLearningRate: c.criticLearningRate! };
  return { method: 'dreambooth', ...(c.snrGamma === null ? {} : { snrGamma: c.snrGamma }) };
}

/** A metric's largest magnitude in a run. The critic's loss is a small difference of large values, so its error is measured against its own beginnings. */
function largest(c: Case, metric: string): number {
  return Math.max(...c.steps.flatMap((s) => s.microSteps.map((m) => Math.abs(m[metric] as number))));
}

const scalarOf = (t: Tensor): number => (t.data as Float32Array)[0]!;
const relative = (a: number, b: number): number => Math.abs(a - b) / Math.abs(b);

suite('training against PyTorch', () => {
  let engine: Engine;
  const models = new Map<string, StableDiffusion>();
  before(async () => {
    engine = createNodeEngine({ threads: 1 });
    for (const { folder } of Object.values(worlds)) {
      for (const computeType of ['float32', 'float16'] as const) {
        const model = await StableDiffusion.open(fileURLToPath(goldenPath(folder)), { computeType });
        models.set(`${folder} ${computeType}`, model);
      }
    }
  });
  after(() => engine.close());

  test('the checkpoints are the ones that the goldens were made with', () => {
    for (const { folder, sha256 } of Object.values(worlds)) {
      const hash = createHash('sha256');
      for (const part of ['unet', 'text_encoder']) {
        const at = path.join(fileURLToPath(goldenPath(folder)), part);
        const files = readdirSync(at).filter((f) => f.endsWith('.safetensors'));
        for (const file of files.sort()) hash.update(readFileSync(path.join(at, file)));
      }
      assert.equal(
        hash.digest('hex'),
        sha256,
        `${folder} has changed: run scripts/goldens/training.py again`,
      );
    }
  });

  async function check(
    c: Case,
    gradientCheckpointing: boolean,
    computeType: ComputeType = 'float32',
    inTurn?: boolean,
  ): Promise<void> {
    const world = worlds[c.world]!;
    const model = models.get(`${world.folder} ${computeType}`)!;
    const tolerance = tolerances[computeType];
    const given = (key: string): Tensor => golden.get(`${c.world}/${key}`)!;
    const lora: LoraSettings = { rank: c.rank, alpha: c.alpha, textEncoder: c.textEncoderLora };
    const optimizer = adamw();
    const [height, width] = world.sides;
    const settings: StepSettings = {
      objective: objectiveOf(c),
      priorLossWeight: c.priorWeight ?? 1,
      trainable: { lora },
      instances: 2,
      priors: c.priorWeight === null ? 0 : 2,
      resolution: world.resolution,
      gradientAccumulationSteps: c.gradientAccumulation,
      gradientCheckpointing,
      ...(inTurn === undefined ? {} : { inTurn }),
      maxGradNorm: c.maxGradNorm,
      ema: false,
      optimizer,
      noiseOffset: c.noiseOffset,
    };
    const { micro, apply } = buildStep(model, settings, { width, height });
    const start = named(`${c.world}/start/`);
    const factors = new Map(model.variables({ lora }).map(({ input }) => [input, start.get(input)!]));
    const end = named(`${c.name}/end/`);
    assert.deepEqual([...factors.keys()].sort(), [...end.keys()].sort());
    const critic = [...named(`${c.name}/critic start/`)].map(([key, t]) => [`critic.${key}`, t] as const);
    const parameters = [...factors].map(([name, { shape }]) => ({ name, shape }));
    const state = await engine.state(
      new Map([
        ...factors,
        ...critic,
        ...optimizer.init(parameters),
        ...accumulatorState(parameters, c.gradientAccumulation),
      ]),
    );
    const programs = { micro: await engine.compile(micro), apply: apply && (await engine.compile(apply)) };

    let pass = 0;
    for (const [i, step] of c.steps.entries()) {
      const updateFeeds = { ...optimizer.feeds(i + 1, c.learningRate), ...LossScaler.start().feeds() };
      let norm: Tensor | undefined;
      for (const expected of step.microSteps) {
        const pictures = [...expected.instance, ...expected.prior];
        const count = pictures.length;
        const captions = pictures.map((_, r) => (r < expected.instance.length ? 0 : 1));
        const results = await programs.micro.run(
          {
            'latents.mean': rows(given('mean'), pictures),
            'latents.logvar': rows(given('logvar'), pictures),
            'latents.noise': entry(given('noise'), (pass + 1) % world.timesteps.length, count),
            noise: entry(given('noise'), pass, count),
            ...(c.noiseOffset > 0
              ? { 'noise.offset': corners(entry(given('noise'), (pass + 2) % world.timesteps.length, count)) }
              : {}),
            timesteps: int64([count], world.timesteps[pass]!.slice(0, count)),
            ...(c.textEncoderLora
              ? { tokens: rows(given('tokens'), captions) }
              : { condition: rows(given('text'), captions) }),
            ...LossScaler.start().feeds(),
            ...(apply ? {} : updateFeeds),
            ...(c.method === 'dpg' ? criticOptimizer.feeds(i + 1, c.criticLearningRate!) : {}),
          },
          state,
        );
        norm = results.gradientNorm;
        for (const [metric, value] of Object.entries(results)) {
          if (metric === 'overflowed') assert.equal(scalarOf(value), 0, 'an overflow');
          if (unchecked.has(metric)) continue;
          const theirs = expected[metric];
          assert.equal(typeof theirs, 'number', `PyTorch reports no ${metric}`);
          const error = Math.abs(scalarOf(value) - (theirs as number)) / largest(c, metric);
          assert.ok(error <= tolerance.loss, `${metric} of pass ${pass + 1}: relative error ${error}`);
        }
        assert.ok('loss' in results);
        pass++;
      }
      if (programs.apply) norm = (await programs.apply.run(updateFeeds, state)).gradientNorm;
      const error = relative(scalarOf(norm!), step.gradientNorm);
      assert.ok(error <= tolerance.norm, `gradient norm of step ${i + 1}: relative error ${error}`);
    }

    const final = await state.read();
    const expectedCritic = [...named(`${c.name}/critic end/`)].map(
      ([key, t]) => [`critic.${key}`, t] as const,
    );
    for (const [name, expected] of [...end, ...expectedCritic]) {
      const error = relativeError(final.get(name)!, expected);
      assert.ok(error <= tolerance.parameter, `${name} after the last step: relative error ${error}`);
    }
    for (const [name, sum] of accumulatorState(parameters, c.gradientAccumulation)) {
      assert.deepEqual(final.get(name), zeros(sum.shape), 'sums of gradients start again at zero');
    }
    await state.release();
    for (const program of [programs.micro, programs.apply]) await program?.release();
  }

  for (const c of cases) {
    test(c.name, () => check(c, false));
    test(`${c.name}, in half precision`, () => check(c, false, 'float16'));
  }
  for (const c of cases.filter(({ priorWeight }) => priorWeight !== null)) {
    test(`${c.name}, the class's rows after the subject's`, () => check(c, false, 'float32', true));
  }
  for (const c of cases.filter(({ name }) => name === 'dpg look-forward, text encoder')) {
    test(`${c.name}, with gradient checkpointing`, () => check(c, true));
    test(`${c.name}, with gradient checkpointing, in half precision`, () => check(c, true, 'float16'));
  }
});

test('the class’s rows go after the subject’s on a processor, where they are large, and with them on a card', async () => {
  const { folder } = Object.values(worlds)[0]!;
  const passes = async (device: Device, side: number): Promise<number> => {
    const model = await StableDiffusion.open(fileURLToPath(goldenPath(folder)), { device });
    const { micro } = buildStep(model, {
      objective: { method: 'dreambooth' },
      priorLossWeight: 1,
      trainable: { lora: { rank: 2, alpha: 2, textEncoder: false } },
      instances: 1,
      priors: 1,
      resolution: side * model.downscale,
      gradientAccumulationSteps: 1,
      gradientCheckpointing: false,
      maxGradNorm: 1,
      ema: false,
      optimizer: adamw(),
    });
    // Every pass has one.
    return micro.liveNodes().filter(({ operator }) => operator === 'Cos').length;
  };
  assert.equal(await passes('cpu', 64), 2);
  assert.equal(await passes('cpu', 32), 1);
  assert.equal(await passes('cuda', 64), 1);
  assert.equal(await passes('webgpu', 64), 1);
});
