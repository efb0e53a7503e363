import assert from 'node:assert/strict';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { ModelError, RewardError } from '../../src/errors.js';
import { readSafetensorsFile } from '../../src/formats/safetensors-file.js';
import type { TrainingEvent } from '../../src/training/events.js';
import { readMetrics } from '../../src/training/metrics-log.js';
import { type PersonaliseOptions, personalise } from '../../src/workflows/personalise.js';
import { goldenPath } from '../goldens.js';
import { temporaryFolder } from '../temporary-folder.js';
import { tinyRun, writePictures } from './tiny-run.js';

const golden = (path: string): string => fileURLToPath(goldenPath(path));

/** The tiny run with other rewards, without what takes time. */
function run(images: string, output: string, change: Partial<PersonaliseOptions>): PersonaliseOptions {
  const { criticLearningRate: _, ...rest } = tinyRun(images, output);
  return {
    ...rest,
    steps: 5,
    withPriorPreservation: false,
    validationPrompts: ['a sks backpack'],
    ...change,
  };
}

test('rewards of every kind together: a curve each, in the log and on the report, and the same bytes when resumed', async (t) => {
  const folder = await temporaryFolder(t);
  const images = await writePictures(join(folder, 'images'));
  const change: Partial<PersonaliseOptions> = {
    randomFlip: true,
    reward: [
      'look-forward=0.5',
      `dino:${golden('encoders/vit-tiny')}`,
      `clip-image:${golden('encoders/clip-tiny')}@0.99`,
      `clip-text:${golden('encoders/clip-tiny')}`,
      `onnx:${golden('onnx/convolutional-11.onnx')}=0.1`,
      `embedding:${golden('onnx/vit-17.onnx')}`,
      'jpeg-size=-0.2',
      { kind: 'function', name: 'brightness', score: (pictures) => pictures.map((p) => p.pixels[0]! / 255) },
    ],
    criticTarget: 'return',
    gradientCheckpointing: true,
  };
  const whole = join(folder, 'whole');
  await personalise(run(images, whole, change));
  const metrics = await readMetrics(join(whole, 'metrics.jsonl'));
  assert.equal(metrics.length, 5);
  const names = [
    'look-forward',
    'dino',
    'clip-image',
    'clip-text',
    'onnx',
    'embedding',
    'jpeg-size',
    'brightness',
  ];
  const weights = [0.5, 1, 1, 1, 0.1, 1, -0.2, 1];
  for (const record of metrics) {
    const total = names.reduce((sum, name, i) => sum + weights[i]! * Number(record[`reward.${name}`]), 0);
    assert.ok(Math.abs(total - Number(record.reward)) < 1e-4 * (1 + Math.abs(total)), 'the sum of all');
    for (const name of ['dino', 'clip-image', 'clip-text', 'embedding']) {
      const value = Number(record[`reward.${name}`]);
      assert.ok(value >= -2 && value <= 0, `${name} is minus a distance: ${value}`);
    }
    // The critic learns what has no gradient, and nothing else.
    assert.deepEqual(
      Object.keys(record).filter((key) => key.startsWith('critic.')),
      ['critic.jpeg-size', 'critic.brightness'],
    );
  }
  const report = await readFile(join(whole, 'report.html'), 'utf8');
  for (const name of names) assert.match(report, new RegExp(`Reward: ${name}<`));
  assert.match(report, /Critic&#39;s fit: jpeg-size|Critic's fit: jpeg-size/);
  assert.match(report, /DPG with the look-forward, dino, .* and brightness rewards/);

  const output = join(folder, 'stopped');
  const stop = new AbortController();
  const stopped = personalise({
    ...run(images, output, change),
    signal: stop.signal,
    onEvent: (e) => {
      if (e.kind === 'progress' && e.step === 3) stop.abort();
    },
  });
  await assert.rejects(stopped, /Stopped after step 3/);
  await personalise({ ...run(images, output, change), resumeFromCheckpoint: 'latest' });
  for (const name of [
    'metrics.jsonl',
    'pytorch_lora_weights.safetensors',
    'checkpoints/step-000005/state.safetensors',
  ]) {
    assert.deepEqual(await readFile(join(output, name)), await readFile(join(whole, name)), name);
  }
});

test('a reward that fails stops the run with everything saved, and it goes on once it is mended', async (t) => {
  const folder = await temporaryFolder(t);
  const images = await writePictures(join(folder, 'images'));
  const output = join(folder, 'run');
  const failing = (from: number): Partial<PersonaliseOptions> => ({
    checkpointingSteps: 100,
    reward: {
      kind: 'function',
      name: 'mine',
      score: (pictures, { step }) => {
        if (step >= from) throw new Error('out of disk');
        return pictures.map(() => step);
      },
    },
  });
  await assert.rejects(personalise(run(images, output, failing(3))), (error) => {
    assert.ok(error instanceof RewardError);
    assert.match(
      error.message,
      /reward mine failed: out of disk\nStopped after step 3 of 5. Everything is saved/,
    );
    return true;
  });
  assert.deepEqual(await readdir(join(output, 'checkpoints')), ['step-000003']);
  const { tensors } = await readSafetensorsFile(join(output, 'checkpoints/step-000003/state.safetensors'));
  assert.ok([...tensors.values()].every((v) => (v.data as Float32Array).every(Number.isFinite)));
  const result = await personalise({ ...run(images, output, failing(9)), resumeFromCheckpoint: 'latest' });
  assert.equal(result.steps, 5);
  const metrics = await readMetrics(join(output, 'metrics.jsonl'));
  assert.deepEqual(
    metrics.map((m) => [m.step, m['reward.mine']]),
    [
      [1, 1],
      [2, 2],
      [3, undefined],
      [4, 4],
      [5, 5],
    ],
  );
});

test('a batch without rewards may be skipped, and is reported', async (t) => {
  const folder = await temporaryFolder(t);
  const images = await writePictures(join(folder, 'images'));
  const events: TrainingEvent[] = [];
  await personalise({
    ...run(images, join(folder, 'run'), {
      onRewardFailure: 'skip',
      reward: {
        kind: 'function',
        name: 'mine',
        score: (pictures, { step }) => pictures.map(() => (step === 2 ? Number.NaN : 1)),
      },
    }),
    onEvent: (e) => events.push(e),
  });
  const warnings = events.flatMap((e) => (e.kind === 'warning' ? [e.message] : []));
  assert.ok(
    warnings.some((w) =>
      /mine answered NaN for picture 1 of 2.*The critic misses the batch of step 2/.test(w),
    ),
  );
});

test('what cannot be a reward is said before the first step', async (t) => {
  const folder = await temporaryFolder(t);
  const images = await writePictures(join(folder, 'images'));
  const refused = (reward: string, kind: new (message: string) => Error, message: RegExp): Promise<void> =>
    assert.rejects(personalise(run(images, join(folder, 'run'), { reward })), (error) => {
      assert.ok(error instanceof kind, String(error));
      assert.match(error.message, message);
      return true;
    });
  await refused(`dino:${folder}/nowhere`, ModelError, /no such folder/);
  await refused(`clip-text:${golden('encoders/vit-tiny')}`, ModelError, /knows no text/);
  await refused(`onnx:${golden('onnx/unsupported.onnx')}`, ModelError, /NonMaxSuppression, Det \(2 times\)/);
  await refused(`embedding:${golden('onnx/convolutional-17.onnx')}`, ModelError, /expected an embedding/);
});
