import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';
import {
  coefficients,
  lookForward,
  lookForwardResidual,
  noisySample,
  predictedNoise,
  predictionTarget,
} from '../../src/diffusion/look-forward.js';
import { readScheduler } from '../../src/diffusion/scheduler-config.js';
import { readTimestepSpacing, wholeTimesteps } from '../../src/diffusion/timestep-spacing.js';
import { createNodeEngine } from '../../src/engine/node.js';
import { ModelError, UsageError } from '../../src/errors.js';
import { parseConfig } from '../../src/formats/json-config.js';
import { Graph } from '../../src/onnx/graph.js';
import { float32, type Tensor } from '../../src/tensor/tensor.js';
import { goldenJson, goldenTensors, relativeError } from '../goldens.js';

interface Case {
  readonly config: Record<string, unknown>;
  readonly timesteps: Record<string, number[]>;
  readonly steps: number;
}

const cases = goldenJson<Record<string, Case>>('schedules.json');
const golden = goldenTensors('schedules.safetensors');
const engine = createNodeEngine({ threads: 1 });
after(() => engine.close());

const configOf = (config: Record<string, unknown>) =>
  parseConfig(JSON.stringify(config), 'scheduler_config.json');
const read = (config: Record<string, unknown>) => readScheduler(configOf(config));
const spacingOf = (config: Record<string, unknown>) => readTimestepSpacing(configOf(config), 'leading');

for (const [name, { config, timesteps, steps }] of Object.entries(cases)) {
  describe(name, () => {
    const { schedule, sampler } = read(config);
    const floats = (key: string) => golden.get(`${name}: ${key}`) as Tensor<'float32'>;

    test('cumulative alphas', () => {
      const expected = floats('alphas_cumprod').data;
      if (!config.rescale_betas_zero_snr) assert.deepEqual(schedule.alphasCumprod, expected);
      // The rescaled betas are near 1 at the end, where the last bit of a square root is all of 1 - beta.
      else
        assert.ok(
          relativeError(float32([expected.length], schedule.alphasCumprod), floats('alphas_cumprod')) < 1e-6,
        );
    });

    test('timesteps', () => {
      for (const [count, expected] of Object.entries(timesteps)) {
        assert.deepEqual(wholeTimesteps(schedule.steps, spacingOf(config), Number(count)), expected);
      }
    });

    test('sampling', async () => {
      const noise = golden.get('noise') as Tensor<'float32'>;
      const sample = await sampler()({
        steps,
        noise,
        drawNoise: () => assert.fail('DDIM draws no noise'),
        denoise: async (x, t) =>
          float32(
            x.shape,
            x.data.map((v) => Math.sin(3 * v + t / 100)),
          ),
      });
      assert.ok(relativeError(sample, floats('sample')) < 1e-4);
    });

    test('noise and velocity, one sample at a time', () => {
      const [clean, eps, noisy] = [floats('clean'), floats('eps'), floats('noisy')];
      const size = clean.data.length / 3;
      Array.from(golden.get(`${name}: times`)!.data, Number).forEach((t, i) => {
        const part = (x: Tensor<'float32'>) => float32([size], x.data.slice(i * size, (i + 1) * size));
        assert.ok(relativeError(schedule.addNoise(part(clean), part(eps), t), part(noisy)) < 1e-6);
      });
    });

    test('forward process and its inverses in a graph', async () => {
      const feeds = {
        clean: floats('clean'),
        eps: floats('eps'),
        times: golden.get(`${name}: times`)!,
      };
      const graph = new Graph();
      const clean = graph.input('clean', 'float32', feeds.clean.shape);
      const eps = graph.input('eps', 'float32', feeds.eps.shape);
      const c = coefficients(graph, schedule, graph.input('times', 'int64', [3]));
      const noisy = noisySample(clean, eps, c);
      const target = predictionTarget(schedule.predictionType, clean, eps, c);
      graph.output('noisy', noisy);
      graph.output('velocity', predictionTarget('v_prediction', clean, eps, c));
      const recovered = lookForward(schedule.predictionType, noisy, target, c);
      graph.output('clean_again', recovered);
      graph.output('eps_again', predictedNoise(schedule.predictionType, noisy, target, c));
      graph.output('rho', lookForwardResidual(recovered, noisy));
      const program = await engine.compile(graph);
      const results = await program.run(feeds);
      assert.ok(relativeError(results.noisy!, floats('noisy')) < 1e-6);
      assert.ok(relativeError(results.velocity!, floats('velocity')) < 1e-6);
      assert.ok(relativeError(results.eps_again!, feeds.eps) < 1e-5);
      const ratio = Math.sqrt(schedule.snr(schedule.steps - 1));
      const digits = schedule.predictionType === 'epsilon' ? 1e-6 / Math.min(1, ratio) : 1e-5;
      assert.ok(relativeError(results.clean_again!, feeds.clean) < digits);
      const rho = (results.clean_again as Tensor<'float32'>).data.map(
        (x, i) => (x - (results.noisy as Tensor<'float32'>).data[i]!) ** 2,
      );
      assert.ok(relativeError(results.rho!, float32(feeds.clean.shape, rho)) < 1e-5);
    });
  });
}

test('a look-forward residual is the timestep-weighted error of the prediction', async () => {
  // mean(rho) = mean((1 - abar) / abar * (a - eps)^2), for a prediction a that is off by a known amount.
  const { schedule } = read(cases['scaled linear']!.config);
  const graph = new Graph();
  const shape = [1, 1, 2, 2];
  const [clean, eps, action] = ['clean', 'eps', 'action'].map((n) => graph.input(n, 'float32', shape));
  const c = coefficients(graph, schedule, graph.input('t', 'int64', [1]));
  const noisy = noisySample(clean!, eps!, c);
  graph.output('rho', lookForwardResidual(lookForward('epsilon', noisy, action!, c), clean!));
  const program = await engine.compile(graph);
  const { rho } = await program.run({
    clean: float32(shape, [1, -0.5, 0.25, 2]),
    eps: float32(shape, [0.3, 1.1, -0.7, 0]),
    action: float32(shape, [0.4, 1.3, -1, 0.5]),
    t: { dtype: 'int64', shape: [1], data: BigInt64Array.of(600n) },
  });
  const weight = 1 / schedule.snr(600);
  const expected = [0.1, 0.2, 0.3, 0.5].map((d) => weight * d * d);
  assert.ok(relativeError(rho!, float32(shape, expected)) < 1e-5);
});

test('settings that are not supported are named with their file, key and value', () => {
  const wrong: [Record<string, unknown>, RegExp][] = [
    [{ _class_name: 'FlowMatchEulerDiscreteScheduler' }, /_class_name.*FlowMatchEuler/],
    [{ prediction_type: 'sample' }, /prediction_type.*sample.*epsilon.*v_prediction/],
    [{ beta_schedule: 'sigmoid' }, /beta_schedule.*sigmoid.*scaled_linear/],
    [{ thresholding: true }, /thresholding.*true/],
    [{ variance_type: 'learned_range' }, /variance_type.*learned_range/],
    [{ rescale_betas_zero_snr: true }, /rescale_betas_zero_snr.*v_prediction/],
    [{ beta_end: 1.5 }, /beta_end.*1\.5/],
    [{ trained_betas: [0.1, 0.2] }, /trained_betas/],
    [{ shift: 3 }, /shift.*3/],
  ];
  for (const [setting, message] of wrong) {
    assert.throws(
      () => read({ _class_name: 'DDIMScheduler', ...setting }),
      (error) =>
        error instanceof ModelError && message.test(error.message) && /scheduler_config/.test(error.message),
      JSON.stringify(setting),
    );
  }
});

test('more steps than timesteps are refused', () => {
  const spacing = spacingOf(cases.few!.config);
  for (const steps of [0, 38, 2.5]) assert.throws(() => wholeTimesteps(37, spacing, steps), UsageError);
  const shifted = { timestepSpacing: 'leading', stepsOffset: 1 } as const;
  assert.throws(() => wholeTimesteps(37, shifted, 37), /would visit timestep 37.*ends at 36/);
});
