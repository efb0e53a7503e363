import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { suite, test } from 'node:test';
import { type SchedulerName, schedulerNames } from '../../src/diffusion/scheduler-config.js';
import { ModelError, UsageError } from '../../src/errors.js';
import { float32 } from '../../src/tensor/tensor.js';
import { goldenPath, goldenTensors, relativeError } from '../goldens.js';
import { schedulerOf as read, readSamplerCases, sampleCase, visits as visitsOf } from './sampler-cases.js';

const golden = readSamplerCases(readFileSync(goldenPath('samplers.json'), 'utf8'));
const expected = goldenTensors('samplers.safetensors');
const visits = (steps: number) => visitsOf(golden, steps);

suite("diffusers' samplers", () => {
  for (const [name, c] of Object.entries(golden.cases)) {
    test(name, async () => {
      const { sample, timesteps, done } = await sampleCase(golden, c);
      assert.equal(timesteps.length, c.timesteps.length);
      const time = (values: number[]) => float32([timesteps.length], values);
      assert.ok(relativeError(time(timesteps), time(c.timesteps)) < 1e-6, 'timesteps');
      const error = relativeError(sample, expected.get(name)!);
      assert.ok(error < 1e-4, `relative error ${error}`);
      assert.deepEqual(
        done,
        Array.from({ length: c.steps }, (_, i) => i + 1),
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
