import assert from 'node:assert/strict';
import { cp, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import type { Engine } from '../../src/engine/engine.js';
import { createNodeEngine } from '../../src/engine/node.js';
import { CancelledError, ModelError, OutputError, RunError } from '../../src/errors.js';
import { openSafetensors, writeSafetensorsFile } from '../../src/formats/safetensors-file.js';
import { StableDiffusion } from '../../src/pretrained/stable-diffusion.js';
import { TextToImage } from '../../src/pretrained/text-to-image.js';
import { float32 } from '../../src/tensor/tensor.js';
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
    vaeCropSteps: 2,
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

async function rejectsAsRunError(promise: Promise<unknown>, message: RegExp): Promise<void> {
  await assert.rejects(promise, (error) => {
    assert.ok(error instanceof RunError);
    assert.match(error.message, message);
    return true;
  });
}

test('a pretraining that is stopped again and again ends in the same bytes as one that is not', async () => {
  const [whole, stopped] = [join(root, 'whole'), join(root, 'stopped')];
  await start(whole);

  await startAndStop(stopped, (event) => isStep(event, VAE_STEPS, VAE_STEPS));
  await startAndStop(stopped, (event) => isStep(event, 2, STEPS));
  const { metadata } = await openSafetensors(join(stopped, 'training', 'denoiser.safetensors'));
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
  await mkdir(join(folder, 'training'), { recursive: true });
  // The settings are looked at before the tensors, so any will do.
  const tensors = new Map([['weight', float32([1], [1])]]);
  const files = ['autoencoder', 'denoiser'].map((name) => join('training', `${name}.safetensors`));
  for (const file of files) {
    const { metadata } = await openSafetensors(join(root, 'whole', file));
    await writeSafetensorsFile(join(folder, file), tensors, metadata);
  }
  await rejectsAsRunError(
    start(folder, { seed: 4, vaeBatchSize: 3 }),
    /autoencoder\.safetensors .*seed \(there 3, now 4\), batchSize \(there 2, now 3\)/,
  );
  await rejectsAsRunError(
    start(folder, { learningRate: 2e-3 }),
    /denoiser\.safetensors .*: learningRate \(there 0\.001, now 0\.002\)\./,
  );
  for (const file of files) {
    await writeSafetensorsFile(join(folder, file), tensors, new Map([['step', '1']]));
  }
  // Past that check, the signal ends it at once.
  await assert.rejects(start(folder, { learningRate: 2e-3, signal: AbortSignal.abort() }), CancelledError);
});

test("a folder that holds a model or files of someone else's is refused, and left as it is", async () => {
  const whole = join(root, 'whole');
  const model = join(root, 'model');
  await cp(whole, model, { recursive: true });
  await rm(join(model, 'training'), { recursive: true });
  const notes = join(root, 'notes');
  await mkdir(join(notes, 'training'), { recursive: true });
  await writeFile(join(notes, 'training', 'plan.md'), 'run on Monday');
  for (const [folder, said] of [
    [model, /model: the folder holds a model, which no pretraining made/],
    [notes, /notes: the folder holds training, which/],
  ] as const) {
    const before = await contents(folder);
    await assert.rejects(start(folder), (error) => error instanceof OutputError && said.test(error.message));
    assert.deepEqual(await contents(folder), before);
  }
});

test('two pretrainings cannot write one folder', async () => {
  const folder = join(root, 'whole');
  const lock = await RunLock.acquire(folder);
  try {
    await rejectsAsRunError(start(folder), /is writing this run/);
  } finally {
    await lock.release();
  }
});
