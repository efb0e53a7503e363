import assert from 'node:assert/strict';
import { after, before, suite, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { chainDivergence } from '../../src/diffusion/divergence.js';
import type { Engine } from '../../src/engine/engine.js';
import { createNodeEngine } from '../../src/engine/node.js';
import { clip } from '../../src/onnx/elementwise.js';
import type { Value } from '../../src/onnx/graph.js';
import { mean } from '../../src/onnx/reduction.js';
import { sgd } from '../../src/optim/sgd.js';
import { StableDiffusion } from '../../src/pretrained/stable-diffusion.js';
import { TextToImage, type VisitedState } from '../../src/pretrained/text-to-image.js';
import type { TrainedWeights } from '../../src/pretrained/trainable.js';
import { lookForwardReward } from '../../src/rewards/look-forward.js';
import { pictureReward } from '../../src/rewards/picture-reward.js';
import type { GraphReward } from '../../src/rewards/reward.js';
import { textAlignmentReward } from '../../src/rewards/similarity.js';
import { float32, int64, type Tensor } from '../../src/tensor/tensor.js';
import { buildStep } from '../../src/training/personalisation-step.js';
import { divergenceFromBase } from '../../src/workflows/run-watch.js';
import { goldenJson, goldenPath, goldenTensors } from '../goldens.js';

/** A batch as scripts/goldens/rollouts.py writes it. */
interface Case {
  readonly name: string;
  /** For each of the subject's rows the picture and step of its state, or null for a noised photograph. */
  readonly visited: readonly (readonly [picture: number, step: number] | null)[];
  readonly rewards: readonly string[];
  readonly combination: 'sum' | 'harmonic';
  readonly pictures: readonly number[];
  readonly timesteps: readonly number[];
  readonly metrics: Readonly<Record<string, number | null>>;
}

const record = goldenJson<{
  steps: number;
  guidance: number;
  seeds: number[];
  prompts: string[];
  timesteps: number[];
  weights: Record<string, number>;
  gammas: Record<string, number>;
  priorWeight: number;
  lambda: number;
  divergence: number;
  updateNorm: number;
  cases: Case[];
}>('rollouts.json');
const golden = goldenTensors('rollouts.safetensors');
const lora = { rank: 4, alpha: 4, textEncoder: false };

const given = (name: string): Tensor<'float32'> => golden.get(name) as Tensor<'float32'>;
const start = (): Map<string, Tensor> =>
  new Map([...golden].flatMap(([k, t]) => (k.startsWith('start/unet') ? [[k.slice(6), t] as const] : [])));

const startWeights = (): TrainedWeights => {
  const factors = start();
  return { names: [...factors.keys()], read: async (name) => factors.get(name)! };
};

/** Rows of a tensor along its first axis. */
function rowsOf(t: Tensor<'float32'>, picked: readonly number[]): Float32Array[] {
  const size = t.data.length / t.shape[0]!;
  return picked.map((r) => t.data.slice(r * size, (r + 1) * size));
}

const joined = (parts: readonly Float32Array[], ...shape: number[]): Tensor<'float32'> =>
  float32(
    [parts.length, ...shape],
    parts.flatMap((p) => [...p]),
  );

/** |a - b| / |b| in the Euclidean norm. */
function distance(a: Float32Array, b: Float32Array): number {
  assert.equal(a.length, b.length);
  const norm = (v: (i: number) => number): number =>
    Math.sqrt(Array.from(b, (_, i) => v(i) ** 2).reduce((x, y) => x + y, 0));
  return norm((i) => a[i]! - b[i]!) / norm((i) => b[i]!);
}

/** The state of a picture at a step, in PyTorch's numbers. */
const stateAt = (picture: number, step: number): Float32Array =>
  rowsOf(given('states'), [picture])[0]!.slice(step * 256, (step + 1) * 256);

/** The made-up direction of each prompt in the space of the means of red, green and blue; the last is the instance prompt's. */
const directions = [
  [1, 2, -1],
  [0.5, -1, 1.5],
  [1, 1, 1],
];
const rewards: Readonly<Record<string, GraphReward>> = {
  'look-forward': lookForwardReward,
  brightness: pictureReward('brightness', (pixels) => mean(clip(pixels, -1, 1), [1, 2, 3])),
  text: textAlignmentReward(
    'text',
    (pixels: Value) => mean(pixels, [2, 3]),
    new Map(directions.map((d, i) => [String(i), float32([1, 3], d)])),
  ),
};

suite('roll-outs, against diffusers and PyTorch', () => {
  let engine: Engine;
  let model: StableDiffusion;
  before(async () => {
    engine = createNodeEngine({ threads: 1 });
    model = await StableDiffusion.open(fileURLToPath(goldenPath('models/sd1-tiny')));
  });
  after(() => engine.close());

  test("the visited states are those of diffusers' pipeline", async () => {
    const drawer = await TextToImage.create(model, engine, { adaptation: { lora } });
    const state = await engine.state(start());
    const requests = record.prompts.map((prompt, i) => ({ prompt, seed: record.seeds[i]! }));
    const options = {
      scheduler: 'ddim',
      steps: record.steps,
      guidanceScale: record.guidance,
      state,
    } as const;
    const visited = await drawer.visit(requests, options);
    assert.equal(visited.length, 2);
    for (const [p, states] of visited.entries()) {
      assert.deepEqual(
        states.map((s) => s.timestep),
        record.timesteps,
      );
      for (const [s, { prompt, sample }] of states.entries()) {
        assert.equal(prompt, record.prompts[p]);
        const error = distance(sample.data, stateAt(p, s));
        assert.ok(error <= 1e-4, `picture ${p}, step ${s}: relative error ${error}`);
      }
    }
    await drawer.release();
    await state.release();
  });

  test('the prediction for single states is the one for a batch of them', async () => {
    const drawer = await TextToImage.create(model, engine, { adaptation: { lora }, batchSize: 1 });
    const state = await engine.state(start());
    const states = [0, 1, 2].map(
      (s): VisitedState => ({
        prompt: record.prompts[s % 2]!,
        sample: float32([4, 8, 8], stateAt(s % 2, s)),
        timestep: record.timesteps[s]!,
      }),
    );
    const together = await drawer.predict(states, state);
    for (const [i, one] of states.entries()) {
      const [alone] = await drawer.predict([one], state);
      assert.ok(distance(together[i]!.data, alone!.data) < 1e-5);
    }
    await drawer.release();
    await state.release();
  });

  test("divergence from the base and size of the update are PyTorch's", async () => {
    const drawer = await TextToImage.create(model, engine, { adaptation: { lora } });
    const policy = await engine.state(start());
    const base = await engine.state(
      new Map([...start()].map(([name, t]) => [name, float32(t.shape, new Float32Array(t.data.length))])),
    );
    const states = record.prompts.flatMap((prompt, p) =>
      record.timesteps.map(
        (timestep, s): VisitedState => ({ prompt, sample: float32([4, 8, 8], stateAt(p, s)), timestep }),
      ),
    );
    const [own, other] = [await drawer.predict(states, policy), await drawer.predict(states, base)];
    const found = chainDivergence(
      model.scheduler.schedule,
      states.map(({ timestep }, i) => ({ timestep, policy: own[i]!.data, base: other[i]!.data })),
    );
    const error = Math.abs(found - record.divergence) / record.divergence;
    assert.ok(error <= 1e-4, `divergence ${found}, PyTorch ${record.divergence}`);

    // The same, with the states that it visits itself.
    const drawing = { prompts: record.prompts, seed: record.seeds[0]!, guidanceScale: record.guidance };
    const whole = await divergenceFromBase(model, drawer, { policy, base }, drawing);
    assert.ok(whole > record.divergence / 2 && whole < record.divergence * 2, `on ten states ${whole}`);
    assert.equal(await divergenceFromBase(model, drawer, { policy: base, base }, drawing), 0);

    const norm = await model.relativeUpdate({ lora }, startWeights());
    assert.ok(Math.abs(norm - record.updateNorm) <= 1e-4 * record.updateNorm, `norm ${norm}`);
    const twice = await model.relativeUpdate({ lora: { ...lora, alpha: 8 } }, startWeights());
    assert.ok(Math.abs(twice - 2 * record.updateNorm) <= 1e-4 * record.updateNorm, 'alpha scales it');
    for (const held of [drawer, policy, base]) await held.release();
  });

  for (const c of record.cases) {
    test(`loss and gradient: ${c.name}`, async () => {
      const instances = c.visited.length;
      const graphs = buildStep(model, {
        objective: {
          method: 'dpg',
          rewards: c.rewards.map((name) => ({
            reward: rewards[name]!,
            weight: record.weights[name]!,
            gamma: record.gammas[name]!,
          })),
          combination: c.combination,
          lambda: record.lambda,
          criticTarget: 'reward',
          criticLearningRate: 1e-3,
        },
        rollouts: true,
        priorLossWeight: record.priorWeight,
        trainable: { lora },
        instances,
        priors: 2,
        resolution: 16,
        gradientAccumulationSteps: 1,
        gradientCheckpointing: false,
        // A step of length one down the gradient itself tells the gradient.
        maxGradNorm: 1e9,
        ema: false,
        optimizer: sgd(),
      });
      const photographic = c.visited.map((v) => v === null);
      const texts = c.visited.map((v) => (v ? given('conditions') : given('text')));
      const nothing = new Float32Array(256);
      const latents = (name: string): Tensor<'float32'> => joined(rowsOf(given(name), c.pictures), 4, 8, 8);
      const state = await engine.state(start());
      const program = await engine.compile(graphs.micro);
      const results = await program.run(
        {
          'latents.mean': latents('mean'),
          'latents.logvar': latents('logvar'),
          'latents.noise': given(`${c.name}/drawn`),
          noise: given(`${c.name}/noise`),
          timesteps: int64([c.timesteps.length], c.timesteps),
          condition: joined(
            [
              ...c.visited.flatMap((v, i) => rowsOf(texts[i]!, [v?.[0] ?? 0])),
              ...rowsOf(given('text'), [1, 1]),
            ],
            ...given('text').shape.slice(1),
          ),
          'states.photograph': float32(
            [instances],
            photographic.map((is) => (is ? 1 : 0)),
          ),
          'states.visited': joined(
            c.visited.map((v) => (v ? stateAt(...v) : nothing)),
            4,
            8,
            8,
          ),
          'reference.text': joined(
            c.visited.map((v) => Float32Array.from(directions[v?.[0] ?? 2]!)),
            3,
          ),
          ...sgd().feeds(1, 1),
        },
        state,
      );
      for (const [name, expected] of Object.entries(c.metrics)) {
        const value = Number(results[name]?.data[0]);
        // Where no row counts, the step does not log it.
        assert.equal(
          expected === null,
          !photographic.includes(true) && graphs.photographMetrics.includes(name),
        );
        if (expected === null) continue;
        const error = Math.abs(value - expected) / Math.abs(expected);
        assert.ok(error <= 1e-4, `${name}: ${value}, PyTorch ${expected}`);
      }
      const end = await state.read();
      const [found, expected]: [number[], number[]] = [[], []];
      for (const [name, before] of start()) {
        const moved = end.get(name)!.data as Float32Array;
        found.push(...(before.data as Float32Array).map((v, i) => v - moved[i]!));
        expected.push(...given(`${c.name}/gradient/${name}`).data);
      }
      const error = distance(Float32Array.from(found), Float32Array.from(expected));
      assert.ok(error <= 1e-4, `gradient: relative error ${error}`);
      await program.release();
      await state.release();
    });
  }
});
