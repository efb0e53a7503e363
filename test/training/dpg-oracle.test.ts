import assert from 'node:assert/strict';
import { after, before, suite, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import type { DpgSettings } from '../../src/algorithms/dpg.js';
import type { Engine } from '../../src/engine/engine.js';
import { createNodeEngine } from '../../src/engine/node.js';
import { clip } from '../../src/onnx/elementwise.js';
import { mean } from '../../src/onnx/reduction.js';
import { adamw } from '../../src/optim/adamw.js';
import { StableDiffusion } from '../../src/pretrained/stable-diffusion.js';
import { lookForwardReward } from '../../src/rewards/look-forward.js';
import { pictureReward } from '../../src/rewards/picture-reward.js';
import type { Reward } from '../../src/rewards/reward.js';
import { float32, int64, type Tensor, tensor } from '../../src/tensor/tensor.js';
import { buildStep } from '../../src/training/personalisation-step.js';
import { returnCriticOptimizer } from '../../src/training/reward-turns.js';
import { goldenJson, goldenPath, goldenTensors, relativeError, withoutPrefix } from '../goldens.js';

/** A run as scripts/goldens/dpg.py writes it. */
interface Case {
  readonly name: string;
  readonly rewards: readonly [name: string, weight: number, gamma: number][];
  readonly combination: 'sum' | 'harmonic';
  readonly policyGradient: 'critic' | 'both' | null;
  readonly criticTarget: 'return' | 'reward';
  readonly lambda: number;
  readonly priorWeight: number;
  readonly criticLearningRate: number;
  readonly steps: readonly {
    readonly instance: number[];
    readonly prior: number[];
    readonly timesteps: number[];
    readonly gradientNorm: number;
    readonly metrics: Readonly<Record<string, number>>;
  }[];
}

const { resolution, cases } = goldenJson<{ resolution: number; cases: Case[] }>('dpg.json');
const golden = goldenTensors('dpg.safetensors');
const LOSS_TOLERANCE = 1e-5;
const PARAMETER_TOLERANCE = 1e-4;
/** A quotient of small differences of running means, which single precision knows to fewer digits; an absolute error. */
const FIT_TOLERANCE = 2e-3;

const outside: Reward = {
  kind: 'black box',
  name: 'outside',
  timeout: undefined,
  score: () => Promise.reject(new Error('the test feeds what it would answer')),
};
const rewards: Readonly<Record<string, Reward>> = {
  'look-forward': lookForwardReward,
  brightness: pictureReward('brightness', (pixels) => mean(clip(pixels, -1, 1), [1, 2, 3])),
  outside,
};

/** Rows of a tensor along its first axis; the same ones where an entry of it is asked for. */
function rows(t: Tensor, picked: readonly number[]): Tensor {
  const size = t.data.length / t.shape[0]!;
  const data = t.data as Float32Array;
  return float32(
    [picked.length, ...t.shape.slice(1)],
    picked.flatMap((r) => [...data.subarray(r * size, (r + 1) * size)]),
  );
}

const named = (prefix: string): Map<string, Tensor> => withoutPrefix(golden, prefix);

suite('deterministic policy gradient on any rewards, against PyTorch', () => {
  let engine: Engine;
  let model: StableDiffusion;
  before(async () => {
    engine = createNodeEngine({ threads: 1 });
    model = await StableDiffusion.open(fileURLToPath(goldenPath('models/sd1-tiny')));
  });
  after(() => engine.close());

  for (const c of cases) {
    test(c.name, async () => {
      const settings: Omit<DpgSettings, 'priorLossWeight'> = {
        rewards: c.rewards.map(([name, weight, gamma]) => ({ reward: rewards[name]!, weight, gamma })),
        combination: c.combination,
        lambda: c.lambda,
        criticTarget: c.criticTarget,
        ...(c.policyGradient === null ? {} : { policyGradient: c.policyGradient }),
      };
      const optimizer = adamw();
      const graphs = buildStep(model, {
        objective: { method: 'dpg', criticLearningRate: c.criticLearningRate, ...settings },
        priorLossWeight: c.priorWeight,
        trainable: { lora: { rank: 4, alpha: 4, textEncoder: false } },
        instances: 2,
        priors: 2,
        resolution,
        gradientAccumulationSteps: 1,
        gradientCheckpointing: false,
        maxGradNorm: 1,
        ema: false,
        optimizer,
      });
      const hasBox = c.rewards.some(([name]) => name === 'outside');
      assert.equal(graphs.critic !== undefined, hasBox);
      const factors = named('world/start/');
      const critic = new Map(
        [...named('world/critic start/'), ...named(`${c.name}/critic start/`)].map(([key, t]) => [
          `critic.${key}`,
          t,
        ]),
      );
      const heads = golden.get(`${c.name}/critic start/heads.bias`)?.shape[0] ?? 0;
      const shapes = (tensors: ReadonlyMap<string, Tensor>) =>
        [...tensors].map(([name, { shape }]) => ({ name, shape }));
      const order = graphs.critic?.graph ?? graphs.micro;
      const inOrder = order.inputs.flatMap(({ name, shape }) => (critic.has(name) ? [{ name, shape }] : []));
      const state = await engine.state(
        new Map<string, Tensor>([
          ...factors,
          ...optimizer.init(
            graphs.micro.inputs.flatMap(({ name, shape }) => (factors.has(name) ? [{ name, shape }] : [])),
          ),
          ...(heads > 0
            ? [
                ...critic,
                ...returnCriticOptimizer.init(inOrder),
                ['critic.moments', float32([heads, 6], new Float32Array(6 * heads))] as const,
              ]
            : []),
        ]),
      );
      assert.equal(shapes(factors).length > 0, true);
      const micro = await engine.compile(graphs.micro);
      const turn = graphs.critic && (await engine.compile(graphs.critic.graph));
      const entry = (key: string, i: number): Tensor => {
        const t = golden.get(`world/${key}`)!;
        const one = rows(t, [i % t.shape[0]!]);
        return tensor('float32', t.shape.slice(1), one.data as Float32Array);
      };
      for (const [i, step] of c.steps.entries()) {
        const pictures = [...step.instance, ...step.prior];
        const criticFeeds = returnCriticOptimizer.feeds(i + 1, c.criticLearningRate);
        const results = await micro.run(
          {
            'latents.mean': rows(golden.get('world/mean')!, pictures),
            'latents.logvar': rows(golden.get('world/logvar')!, pictures),
            'latents.noise': entry('noise', i + 1),
            noise: entry('noise', i),
            timesteps: int64([4], step.timesteps),
            condition: rows(golden.get('world/text')!, [0, 0, 1, 1]),
            ...optimizer.feeds(i + 1, 1e-3),
            ...criticFeeds,
          },
          state,
        );
        const found: Record<string, Tensor> = { ...results };
        if (turn && graphs.critic) {
          const handed = Object.fromEntries(graphs.critic.experience.map((name) => [name, results[name]!]));
          const answer = rows(golden.get(`${c.name}/outside`)!, [i]);
          const told = float32([2], answer.data as Float32Array);
          const learnt = await turn.run({ ...criticFeeds, ...handed, 'reward.outside': told }, state);
          for (const [name, value] of Object.entries(learnt)) found[name.replace(/^metric\./, '')] = value;
        }
        for (const [name, expected] of Object.entries(step.metrics)) {
          const value = Number(found[name]?.data[0]);
          const largest = Math.max(...c.steps.map((s) => Math.abs(s.metrics[name]!)));
          const error = Math.abs(value - expected) / (/Correlation|Variance/.test(name) ? 1 : largest);
          const tolerance = /Correlation|Variance/.test(name) ? FIT_TOLERANCE : LOSS_TOLERANCE;
          // Two rows are no sample yet: with a running deviation of next to nothing, a fit says nothing.
          if (/Correlation|Variance/.test(name) && i < 3) continue;
          assert.ok(
            error <= tolerance,
            `${name} of step ${i + 1}: ${value}, PyTorch ${expected} (error ${error})`,
          );
        }
        const norm = Number(results.gradientNorm!.data[0]);
        const error = Math.abs(norm - step.gradientNorm) / step.gradientNorm;
        assert.ok(error <= PARAMETER_TOLERANCE, `gradient norm of step ${i + 1}: relative error ${error}`);
      }
      const final = await state.read();
      const ends = [
        ...named(`${c.name}/end/`),
        ...[...named(`${c.name}/critic end/`)].map(([key, t]) => [`critic.${key}`, t] as const),
      ];
      assert.ok(ends.length > 0);
      for (const [name, expected] of ends) {
        const error = relativeError(final.get(name)!, expected);
        assert.ok(error <= PARAMETER_TOLERANCE, `${name} after the last step: relative error ${error}`);
      }
      await state.release();
      await micro.release();
      await turn?.release();
    });
  }
});
