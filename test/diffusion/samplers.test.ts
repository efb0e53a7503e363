import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { suite, test } from 'node:test';
import type { SamplingOptions } from '../../src/diffusion/sampler.js';
import { readScheduler, type SchedulerName, schedulerNames } from '../../src/diffusion/scheduler-config.js';
import { ModelError, UsageError } from '../../src/errors.js';
import { parseConfig, parseJson } from '../../src/formats/json-config.js';
import { elementCount, float32, type Tensor } from '../../src/tensor/tensor.js';
import { TorchRandom } from '../../src/tensor/torch-random.js';
import { goldenPath, goldenTensors, relativeError } from '../goldens.js';

interface Case {
  readonly config: Record<string, unknown>;
  readonly scheduler: SchedulerName | null;
  readonly karras: boolean | null;
  readonly steps: number;
  readonly timesteps: number[];
}

const file = 'samplers.json';
// Diffusers writes minus infinity into its configurations, so its JSON is read as theirs is.
const golden = parseJson(readFileSync(goldenPath(file), 'utf8'), file) as unknown as {
  readonly shape: number[];
  readonly seeds: number[];
  readonly cases: Record<string, Case>;
};
const expected = goldenTensors('samplers.safetensors');

/** As diffusers writes a configuration. */
function asPython(value: unknown): string {
  return JSON.stringify(value, (_, v) => (v === Number.NEGATIVE_INFINITY ? '<-inf>' : v)).replaceAll(
    '"<-inf>"',
    '-Infinity',
  );
}

const read = (config: Record<string, unknown>) =>
  readScheduler(parseConfig(asPython(config), 'scheduler_config.json'));

/** Noise as the goldens have it, one generator a sample. */
function noiseOf(seeds: readonly number[], shape: readonly number[]): () => Tensor<'float32'> {
  const randoms = seeds.map((seed) => new TorchRandom(seed));
  const one = [1, ...shape.slice(1)];
  return () => {
    const all = new Float32Array(elementCount(shape));
    randoms.forEach((random, i) => {
      all.set(random.normals(one).data, i * elementCount(one));
    });
    return float32(shape, all);
  };
}

interface Visits {
  readonly options: SamplingOptions;
  readonly timesteps: number[];
  readonly done: number[];
}

function visits(steps: number): Visits {
  const timesteps: number[] = [];
  const done: number[] = [];
  const drawNoise = noiseOf(golden.seeds, golden.shape);
  const options: SamplingOptions = {
    steps,
    noise: drawNoise(),
    drawNoise,
    denoise: async (x, t) => {
      timesteps.push(t);
      return float32(
        x.shape,
        x.data.map((v) => Math.sin(2 * v + t / 100)),
      );
    },
    onStep: (n) => {
      done.push(n);
    },
  };
  return { options, timesteps, done };
}

suite("diffusers' samplers", () => {
  for (const [name, { config, scheduler, karras, steps, timesteps }] of Object.entries(golden.cases)) {
    test(name, async () => {
      const sampler = read(config).sampler({
        ...(scheduler === null ? {} : { scheduler }),
        ...(karras === null ? {} : { useKarrasSigmas: karras }),
      });
      const visited = visits(steps);
      const sample = await sampler(visited.options);
      assert.equal(visited.timesteps.length, timesteps.length);
      const time = (values: number[]) => float32([timesteps.length], values);
      assert.ok(relativeError(time(visited.timesteps), time(timesteps)) < 1e-6, 'timesteps');
      const error = relativeError(sample, expected.get(name)!);
      assert.ok(error < 1e-4, `relative error ${error}`);
      assert.deepEqual(
        visited.done,
        Array.from({ length: steps }, (_, i) => i + 1),
      );
    });
  }
});

const latent = { beta_schedule: 'scaled_linear', beta_start: 0.00085, beta_end: 0.012 };

test('a sampler goes by its short name and by that of its class', async () => {
  const half = schedulerNames.length / 2;
  assert.equal(half, 6);
  for (let i = 0; i < half; i++) {
    const { sampler } = read({ _class_name: 'DDIMScheduler', skip_prk_steps: true, ...latent });
    const [short, long] = [visits(4), visits(4)];
    const drawn = await sampler({ scheduler: schedulerNames[i]! })(short.options);
    assert.deepEqual(await sampler({ scheduler: schedulerNames[half + i]! })(long.options), drawn);
    assert.deepEqual(short.timesteps, long.timesteps);
  }
});

test('settings of a sampler that are not supported are named with their file, key and value', () => {
  const wrong: [SchedulerName, Record<string, unknown>, RegExp][] = [
    ['ddim', { timestep_spacing: 'even' }, /timestep_spacing.*even.*leading/],
    ['ddpm', { variance_type: 'fixed_large_log' }, /variance_type.*fixed_large_log.*fixed_small/],
    ['pndm', { skip_prk_steps: false }, /skip_prk_steps.*false.*true/],
    ['pndm', {}, /skip_prk_steps.*missing.*true/],
    ['euler', { interpolation_type: 'log_linear' }, /interpolation_type.*log_linear.*linear/],
    ['euler', { timestep_type: 'continuous' }, /timestep_type.*continuous.*discrete/],
    ['euler', { use_beta_sigmas: true }, /use_beta_sigmas.*true/],
    ['euler', { final_sigmas_type: 'one' }, /final_sigmas_type.*one.*zero.*sigma_min/],
    ['euler-ancestral', { steps_offset: -1 }, /steps_offset.*-1/],
    ['dpm', { algorithm_type: 'sde-dpmsolver++' }, /algorithm_type.*sde-dpmsolver\+\+.*dpmsolver\+\+/],
    ['dpm', { solver_order: 3 }, /solver_order.*3.*1, 2/],
    ['dpm', { use_exponential_sigmas: true }, /use_exponential_sigmas/],
    ['dpm', { use_lu_lambdas: true }, /use_lu_lambdas/],
    ['dpm', { lambda_min_clipped: 'low' }, /lambda_min_clipped.*low/],
    ['dpm', { use_karras_sigmas: true, beta_schedule: 'squaredcos_cap_v2' }, /use_karras_sigmas.*true/],
  ];
  for (const [scheduler, setting, message] of wrong) {
    const opened = read({ _class_name: 'DDIMScheduler', ...setting });
    assert.throws(
      () => opened.sampler({ scheduler }),
      (error) =>
        error instanceof ModelError && message.test(error.message) && /scheduler_config/.test(error.message),
      JSON.stringify(setting),
    );
  }
});

test('a model whose own sampler is not here opens, and says what to do when it is drawn from without choosing one', () => {
  const { sampler, schedule } = read({ _class_name: 'UniPCMultistepScheduler', ...latent });
  assert.equal(schedule.steps, 1000);
  assert.throws(
    () => sampler(),
    (error) =>
      error instanceof ModelError &&
      /_class_name.*UniPCMultistepScheduler.*"PNDMScheduler".*--scheduler: ddim, pndm/.test(error.message),
  );
  sampler({ scheduler: 'euler' });
});

test('choices that make no sense', () => {
  const { sampler } = read({ _class_name: 'DDIMScheduler', ...latent });
  assert.throws(
    () => sampler({ scheduler: 'heun' as SchedulerName }),
    (error) => error instanceof UsageError && /heun.*ddim.*DPMSolverMultistepScheduler/.test(error.message),
  );
  assert.throws(
    () => sampler({ useKarrasSigmas: true }),
    (error) => error instanceof UsageError && /DDIMScheduler.*EulerDiscreteScheduler/.test(error.message),
  );
});

test('more steps than a sampler can take are refused', async () => {
  const { sampler } = read({ _class_name: 'DDIMScheduler', skip_prk_steps: true, ...latent });
  for (const scheduler of schedulerNames) {
    for (const steps of [0, 1001, 2.5]) {
      await assert.rejects(sampler({ scheduler })(visits(steps).options), UsageError);
    }
  }
  await assert.rejects(sampler({ scheduler: 'dpm' })(visits(1000).options), /1 to 999 steps/);
});
