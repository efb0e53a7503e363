import assert from 'node:assert/strict';
import { cp, mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import type { Engine } from '../../src/engine/engine.js';
import { createNodeEngine } from '../../src/engine/node.js';
import { CancelledError, ModelError, RunError } from '../../src/errors.js';
import { readSafetensorsFile, writeSafetensorsFile } from '../../src/formats/safetensors-file.js';
import { StableDiffusion } from '../../src/pretrained/stable-diffusion.js';
import { TextToImage } from '../../src/pretrained/text-to-image.js';
import type { TrainingEvent } from '../../src/training/events.js';
import { type PretrainOptions, pretrain } from '../../src/training/pretrain.js';
import { lockName, RunLock } from '../../src/training/run-lock.js';

let root: string;
let engine: Engine;
before(async () => {
  root = await mkdtemp(join(tmpdir(), 'portrayal-pretrain-'));
  engine = createNodeEngine({ threads: 1 });
});
after(async () => {
  await engine.close();
  await rm(root, { recursive: true, force: true });
});

const VAE_STEPS = 2;
const STEPS = 3;

function start(output: string, more: Partial<PretrainOptions> = {}): Promise<void> {
  return pretrain({
    output,
    engine,
    seed: 3,
    examples: 6,
    vaeSteps: VAE_STEPS,
    vaeBatchSize: 2,
    steps: STEPS,
    batchSize: 2,
    learningRate: 1e-3,
    checkpointingSteps: 100,
    ...more,
  });
}

/** Starts, and raises the signal at the first event that this accepts. */
async function startAndStop(
  output: string,
  when: (event: TrainingEvent) => boolean,
  more: Partial<PretrainOptions> = {},
): Promise<void> {
  const stop = new AbortController();
  const onEvent = (event: TrainingEvent) => {
    if (when(event)) stop.abort();
  };
  await assert.rejects(start(output, { ...more, signal: stop.signal, onEvent }), CancelledError);
  assert.ok(!(await readdir(output)).includes(lockName), 'the folder is free again');
  await assert.rejects(StableDiffusion.open(output), ModelError, 'a stopped training is no model yet');
}

const isStep = (event: TrainingEvent, step: number, of: number) =>
  event.kind === 'progress' && event.step === step && event.steps === of;

/** All files with their bytes. */
async function contents(folder: string): Promise<Map<string, string>> {
  const files = new Map<string, string>();
  for (const entry of await readdir(folder, { withFileTypes: true, recursive: true })) {
    if (!entry.isFile()) continue;
    const path = join(entry.parentPath, entry.name);
    files.set(path.slice(folder.length), (await readFile(path)).toString('base64'));
  }
  return new Map([...files].sort());
}

test('a pretraining that is stopped again and again ends in the same bytes as one that is not', async () => {
  const [whole, stopped] = [join(root, 'whole'), join(root, 'stopped')];
  await start(whole);

  await startAndStop(stopped, (event) => isStep(event, 1, VAE_STEPS));
  await startAndStop(stopped, (event) => event.kind === 'stage' && event.name === 'drawing the world');
  await startAndStop(stopped, (event) => isStep(event, 2, STEPS));
  const { metadata } = await readSafetensorsFile(join(stopped, 'training', 'denoiser.safetensors'));
  assert.equal(metadata.get('step'), '2');
  await start(stopped);
  assert.deepEqual(await contents(stopped), await contents(whole));
});

test('the model opens and draws a finite picture', async () => {
  const model = await StableDiffusion.open(join(root, 'whole'));
  const drawer = await TextToImage.create(model, engine, { batchSize: 1 });
  const [image] = await drawer.draw([{ prompt: 'a photo of a dog', seed: 1 }], {
    steps: 2,
    guidanceScale: 2,
  });
  await drawer.release();
  assert.deepEqual([image!.width, image!.height], [64, 64]);
  // What is not a number becomes 0 in bytes, and so one even picture.
  assert.ok(new Set(image!.pixels).size > 16, 'the picture has more than a few values');
});

test('a state of other settings is refused by their names, and one that does not tell is taken', async () => {
  const folder = join(root, 'settings');
  await cp(join(root, 'whole', 'training'), join(folder, 'training'), { recursive: true });
  const before = await contents(folder);
  await assert.rejects(start(folder, { seed: 4, vaeBatchSize: 3 }), (error) => {
    assert.ok(error instanceof RunError);
    assert.match(
      error.message,
      /autoencoder\.safetensors .*seed \(there 3, now 4\), batchSize \(there 2, now 3\)/,
    );
    return true;
  });
  await assert.rejects(start(folder, { learningRate: 2e-3 }), (error) => {
    assert.ok(error instanceof RunError);
    assert.match(error.message, /denoiser\.safetensors .*: learningRate \(there 0\.001, now 0\.002\)\./);
    return true;
  });
  assert.deepEqual(await contents(folder), before);

  for (const name of ['autoencoder', 'denoiser']) {
    const path = join(folder, 'training', `${name}.safetensors`);
    const { tensors, metadata } = await readSafetensorsFile(path);
    await writeSafetensorsFile(path, tensors, new Map([['step', metadata.get('step')!]]));
  }
  // Without settings the signal is what ends it, at once.
  await assert.rejects(start(folder, { learningRate: 2e-3, signal: AbortSignal.abort() }), CancelledError);
});

test('a state with tensors of other shapes or without a number is refused', async () => {
  const folder = join(root, 'shapes');
  await cp(join(root, 'whole', 'training'), join(folder, 'training'), { recursive: true });
  const path = join(folder, 'training', 'autoencoder.safetensors');
  const { tensors, metadata } = await readSafetensorsFile(path);
  const name = 'ema.vae.decoder.conv_in.bias';
  const bias = tensors.get(name)!;
  const damaged: [RegExp, (copy: Map<string, unknown>) => void][] = [
    [/has no tensor ema\.vae\.decoder\.conv_in\.bias/, (copy) => copy.delete(name)],
    [/is float32 \[64, 1\]; expected float32 \[64\]/, (copy) => copy.set(name, { ...bias, shape: [64, 1] })],
    [/has a tensor vae\.more, which this training does not/, (copy) => copy.set('vae.more', bias)],
    [/not finite/, (copy) => copy.set(name, { ...bias, data: new Float32Array(64).fill(Number.NaN) })],
  ];
  for (const [message, damage] of damaged) {
    const copy = new Map(tensors);
    damage(copy);
    await writeSafetensorsFile(path, copy, metadata);
    await assert.rejects(start(folder), (error) => {
      assert.ok(error instanceof RunError);
      assert.match(error.message, message);
      return true;
    });
  }
});

test('a training that diverges says so and keeps what was saved before', async () => {
  const folder = join(root, 'diverged');
  await cp(
    join(root, 'whole', 'training', 'autoencoder.safetensors'),
    join(folder, 'training', 'autoencoder.safetensors'),
  );
  await assert.rejects(start(folder, { learningRate: 1e38 }), {
    name: 'DivergedError',
    message: /not finite|is (NaN|Infinity)/,
  });
  assert.deepEqual((await readdir(join(folder, 'training'))).sort(), [
    'autoencoder.safetensors',
    'tokenizer',
  ]);
});

test('two pretrainings cannot write one folder', async () => {
  const folder = join(root, 'whole');
  const lock = await RunLock.acquire(folder);
  try {
    await assert.rejects(start(folder), RunError);
  } finally {
    await lock.release();
  }
});
