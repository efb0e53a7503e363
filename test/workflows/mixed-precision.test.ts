import assert from 'node:assert/strict';
import { cp, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { CancelledError, DivergedError, ModelError, UsageError } from '../../src/errors.js';
import { readSafetensorsFile, writeSafetensorsFile } from '../../src/formats/safetensors-file.js';
import type { TrainingEvent } from '../../src/training/events.js';
import { readMetrics } from '../../src/training/metrics-log.js';
import { generate } from '../../src/workflows/generate.js';
import { type PersonaliseOptions, personalise } from '../../src/workflows/personalise.js';
import { temporaryFolder } from '../temporary-folder.js';
import { tinyModel, tinyRun, writePictures } from './tiny-run.js';

const halfRun = (images: string, output: string): PersonaliseOptions => ({
  ...tinyRun(images, output),
  method: 'dreambooth',
  mixedPrecision: 'fp16',
  steps: 5,
});

test('a run in half precision logs its loss scale, and stopped and resumed it ends in the same bytes', async (t) => {
  const folder = await temporaryFolder(t);
  const images = await writePictures(join(folder, 'images'));
  const [whole, stopped] = [join(folder, 'whole'), join(folder, 'stopped')];
  const events: TrainingEvent[] = [];
  await personalise({ ...halfRun(images, whole), onEvent: (e) => events.push(e) });
  assert.ok(
    events.some((e) => e.kind === 'warning' && /fp16 saves nothing on the processor/.test(e.message)),
  );
  const metrics = await readMetrics(join(whole, 'metrics.jsonl'));
  assert.deepEqual(
    metrics.map(({ step, lossScale, skippedSteps }) => [step, lossScale, skippedSteps]),
    [1, 2, 3, 4, 5].map((step) => [step, 65536, 0]),
  );
  const stop = new AbortController();
  await assert.rejects(
    personalise({
      ...halfRun(images, stopped),
      onEvent: (e) => e.kind === 'progress' && e.step === 3 && stop.abort(),
      signal: stop.signal,
    }),
    CancelledError,
  );
  const state = JSON.parse(await readFile(join(stopped, 'checkpoints/step-000003/state.json'), 'utf8'));
  assert.deepEqual(state.progress.lossScale, {
    scale: 65536,
    cleanSteps: 3,
    skippedSteps: 0,
    skippedInARow: 0,
  });
  await personalise({ ...halfRun(images, stopped), resumeFromCheckpoint: 'latest' });
  for (const name of [
    'metrics.jsonl',
    'pytorch_lora_weights.safetensors',
    'checkpoints/step-000005/state.safetensors',
    'checkpoints/step-000005/state.json',
  ]) {
    assert.deepEqual(await readFile(join(stopped, name)), await readFile(join(whole, name)), name);
  }
  const drawn = await generate({
    run: whole,
    prompts: ['a sks backpack'],
    steps: 2,
    output: join(folder, 'out'),
    mixedPrecision: 'fp16',
    threads: 1,
  });
  assert.equal(drawn.length, 1);
});

test('a model that overflows half precision draws nothing, and the remedy is said', async (t) => {
  const folder = await temporaryFolder(t);
  const model = join(folder, 'model');
  await cp(tinyModel, model, { recursive: true });
  const file = join(model, 'unet/diffusion_pytorch_model.safetensors');
  const { tensors } = await readSafetensorsFile(file);
  // The normalisation behind it takes the factor away, in float32.
  const scaled = [...tensors].map(([name, tensor]) => {
    if (!name.startsWith('down_blocks.0.resnets.0.conv1.')) return [name, tensor] as const;
    return [name, { ...tensor, data: (tensor.data as Float32Array).map((v) => v * 3e5) }] as const;
  });
  await writeSafetensorsFile(file, new Map(scaled));
  const request = { model, prompts: ['a'], steps: 2, output: join(folder, 'out'), threads: 1 };
  await assert.rejects(generate({ ...request, mixedPrecision: 'fp16' }), (error) => {
    assert.ok(error instanceof ModelError, String(error));
    assert.match(error.message, /overflow half precision, .* use --mixed-precision no/);
    return true;
  });
  assert.equal((await generate(request)).length, 1);
});

test('a run that overflows at every step stops with what to do, after twenty that changed nothing', async (t) => {
  const folder = await temporaryFolder(t);
  const images = await writePictures(join(folder, 'images'));
  const output = join(folder, 'half');
  const run: PersonaliseOptions = {
    ...halfRun(images, output),
    withPriorPreservation: false,
    validationPrompts: ['a'],
    learningRate: 1e7,
    lrScheduler: 'constant',
    lrWarmupSteps: 0,
    steps: 40,
    useEma: false,
  };
  await assert.rejects(personalise(run), (error) => {
    assert.ok(error instanceof DivergedError, String(error));
    assert.match(
      error.message,
      /^Training stopped at step 21: what the model computes overflows half precision, .*The last 20 steps changed nothing\. Start again .*--mixed-precision no/,
    );
    return true;
  });
  const metrics = await readMetrics(join(output, 'metrics.jsonl'));
  const last = metrics.at(-1)!;
  assert.deepEqual([last.step, last.loss, last.skippedSteps, last.lossScale], [20, null, 19, 2 ** -2]);
  const factorsOf = async (step: string) =>
    (await readSafetensorsFile(join(output, `checkpoints/${step}/state.safetensors`))).tensors;
  assert.deepEqual(await factorsOf('step-000020'), await factorsOf('step-000002'));
});

test('a precision that is not there is refused with the reason', async (t) => {
  const folder = await temporaryFolder(t);
  const images = await writePictures(join(folder, 'images'));
  const run = { ...halfRun(images, join(folder, 'run')), mixedPrecision: 'bf16' as 'fp16' };
  await assert.rejects(personalise(run), (error) => {
    assert.ok(error instanceof UsageError);
    assert.match(error.message, /^--mixed-precision bf16: expected no or fp16\. .*bfloat16/);
    return true;
  });
});
