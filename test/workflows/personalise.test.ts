import assert from 'node:assert/strict';
import { access, mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import type { Engine } from '../../src/engine/engine.js';
import { createNodeEngine } from '../../src/engine/node.js';
import {
  CancelledError,
  DivergedError,
  InputError,
  ModelError,
  OutputError,
  RunError,
  UsageError,
} from '../../src/errors.js';
import { readSafetensorsFile } from '../../src/formats/safetensors-file.js';
import type { TrainingEvent } from '../../src/training/events.js';
import { readMetrics } from '../../src/training/metrics-log.js';
import { generate } from '../../src/workflows/generate.js';
import { personalise } from '../../src/workflows/personalise.js';
import { temporaryFolder } from '../temporary-folder.js';
import { tinyModel, tinyRun, writePictures } from './tiny-run.js';

test('a run writes everything that it promises, and draws with what it learnt', async (t) => {
  const folder = await temporaryFolder(t);
  const images = await writePictures(join(folder, 'images'));
  const events: TrainingEvent[] = [];
  const output = join(folder, 'run');
  const result = await personalise({
    ...tinyRun(images, output),
    useEma: false,
    onEvent: (e) => events.push(e),
  });

  const names = await readdir(output);
  for (const name of [
    'config.json',
    'metrics.jsonl',
    'report.html',
    'samples',
    'checkpoints',
    'class_images',
  ]) {
    assert.ok(names.includes(name), `${name} is missing`);
  }
  const metrics = await readMetrics(join(output, 'metrics.jsonl'));
  assert.deepEqual(
    metrics.map((m) => m.step),
    [1, 2, 3, 4, 5, 6, 7, 8, 9],
  );
  for (const m of metrics) {
    // The parts of the loss add up, as the objective says: gamma^t Q + w * prior.
    assert.ok(
      Math.abs(Number(m.loss) - Number(m.valueLoss) - Number(m.priorLoss)) < 1e-5 * Math.abs(Number(m.loss)),
    );
  }
  const kinds = new Set(events.map((e) => e.kind));
  for (const kind of ['started', 'progress', 'stage', 'checkpoint', 'samples', 'finished'] as const) {
    assert.ok(kinds.has(kind), `no ${kind} event`);
  }

  // The LoRA file holds the last checkpoint's factors: alpha equals the rank, so nothing is folded in.
  const lora = await readSafetensorsFile(result.files[0]!);
  const state = await readSafetensorsFile(join(output, 'checkpoints/step-000009/state.safetensors'));
  let moved = 0;
  for (const [name, value] of lora.tensors) {
    assert.deepEqual(value, state.tensors.get(name), name);
    if (name.endsWith('lora_B.weight') && (value.data as Float32Array).some((v) => v !== 0)) moved++;
  }
  assert.ok(moved > 0 && moved === lora.tensors.size / 2, 'every layer learnt something');

  const learnt = await generate({
    run: output,
    prompts: ['a sks backpack'],
    output: join(folder, 'out'),
    steps: 2,
    threads: 1,
  });
  const base = await generate({
    model: tinyModel,
    prompts: ['a sks backpack'],
    output: join(folder, 'out'),
    steps: 2,
    threads: 1,
  });
  assert.deepEqual(
    [...learnt, ...base].map((p) => p.split('/').at(-1)),
    ['0000-a-sks-backpack.png', '0001-a-sks-backpack.png'],
  );
  assert.notDeepEqual(await readFile(learnt[0]!), await readFile(base[0]!));
});

test('cancelled between steps, a run saves, says how to go on, and ends like one that was not', async (t) => {
  const folder = await temporaryFolder(t);
  const images = await writePictures(join(folder, 'images'));
  const whole = join(folder, 'whole');
  await personalise(tinyRun(images, whole));

  const output = join(folder, 'stopped');
  const controller = new AbortController();
  const events: TrainingEvent[] = [];
  const stopped = personalise({
    ...tinyRun(images, output),
    signal: controller.signal,
    onEvent: (e) => {
      events.push(e);
      if (e.kind === 'progress' && e.step === 5) controller.abort();
    },
  });
  await assert.rejects(
    stopped,
    (error) => error instanceof CancelledError && /resume-from-checkpoint latest/.test(error.message),
  );
  assert.ok(events.some((e) => e.kind === 'stopped' && e.step === 5));
  await access(join(output, 'checkpoints/step-000005'));
  await assert.rejects(personalise(tinyRun(images, output)), RunError);
  await personalise({ ...tinyRun(images, output), resumeFromCheckpoint: 'latest' });
  for (const name of [
    'metrics.jsonl',
    'pytorch_lora_weights.safetensors',
    'checkpoints/step-000009/state.safetensors',
  ]) {
    assert.deepEqual(await readFile(join(output, name)), await readFile(join(whole, name)), name);
  }
});

test('with gradient accumulation, the sums are emptied after each update', async (t) => {
  const folder = await temporaryFolder(t);
  const images = await writePictures(join(folder, 'images'));
  const output = join(folder, 'accumulated');
  await personalise({
    ...tinyRun(images, output),
    method: 'dreambooth',
    gradientAccumulationSteps: 2,
    trainTextEncoder: true,
    steps: 3,
  });
  const { tensors } = await readSafetensorsFile(join(output, 'checkpoints/step-000003/state.safetensors'));
  const sums = [...tensors].filter(([name]) => name.startsWith('accumulated.'));
  assert.ok(
    sums.length > 0 && sums.every(([, v]) => (v.data as Float32Array).every((x) => x === 0)),
    'sums are emptied',
  );
  assert.ok([...tensors.keys()].some((name) => name.startsWith('text_encoder.')));
});

test('a loss that is not finite stops the run and keeps the last good checkpoint', async (t) => {
  const folder = await temporaryFolder(t);
  const images = await writePictures(join(folder, 'images'));
  const output = join(folder, 'run');
  const diverging = personalise({
    ...tinyRun(images, output),
    criticLearningRate: 1e3,
    checkpointingSteps: 1,
  });
  await assert.rejects(
    diverging,
    (error) => error instanceof DivergedError && /step \d+.*critic-learning-rate/s.test(error.message),
  );
  const checkpoints = await readdir(join(output, 'checkpoints'));
  for (const name of checkpoints) {
    const { tensors } = await readSafetensorsFile(join(output, 'checkpoints', name, 'state.safetensors'));
    for (const [key, value] of tensors) {
      if (key.startsWith('unet.'))
        assert.ok((value.data as Float32Array).every(Number.isFinite), `${name}: ${key}`);
    }
  }
});

test('what the user can mend is said before anything is written', async (t) => {
  const folder = await temporaryFolder(t);
  const images = await writePictures(join(folder, 'images'));
  const empty = join(folder, 'empty');
  await mkdir(empty);
  const foreign = join(folder, 'foreign');
  await mkdir(foreign);
  await writeFile(join(foreign, 'thesis.txt'), 'mine');
  const run = (change: object) => personalise({ ...tinyRun(images, join(folder, 'run')), ...change });

  await assert.rejects(run({ images: empty }), InputError);
  await assert.rejects(run({ images: join(folder, 'nowhere') }), InputError);
  await assert.rejects(run({ instancePrompt: 'a photo of backpack' }), InputError);
  await assert.rejects(run({ model: images }), ModelError);
  await assert.rejects(run({ output: foreign }), OutputError);
  await assert.rejects(run({ resolution: 17 }), UsageError);
  await assert.rejects(run({ learningRate: -1 }), /--learning-rate -1: expected a number above 0/);
  await assert.rejects(run({ steps: 2.5 }), /--steps 2.5: expected a whole number/);
  await assert.rejects(access(join(folder, 'run')), 'nothing was written');
  assert.equal(await readFile(join(foreign, 'thesis.txt'), 'utf8'), 'mine');
});

test('class pictures are shared between runs of the same class and refused for another', async (t) => {
  const folder = await temporaryFolder(t);
  const images = await writePictures(join(folder, 'images'));
  const classDataDir = join(folder, 'class');
  const run = (name: string, change: object = {}) =>
    personalise({ ...tinyRun(images, join(folder, name)), classDataDir, steps: 1, ...change });
  await run('first');
  const drawn = await readFile(join(classDataDir, 'class-0001.png'));
  await writeFile(join(classDataDir, '.class-0001.png.0123456789abcdef.partial'), 'cut short');
  await writeFile(join(classDataDir, 'Thumbs.db'), 'not a picture');
  await run('second');
  assert.deepEqual(await readFile(join(classDataDir, 'class-0001.png')), drawn);
  assert.ok(
    !(await readdir(classDataDir)).some((name) => name.endsWith('.partial')),
    'leftovers are removed',
  );
  await assert.rejects(
    run('third', { instancePrompt: 'a photo of sks teapot', classPrompt: 'a photo of teapot' }),
    (error) => error instanceof InputError && /class-data-dir/.test(error.message),
  );
});

test('a resumed run may change its learning rate, but not its class pictures', async (t) => {
  const folder = await temporaryFolder(t);
  const images = await writePictures(join(folder, 'images'));
  const output = join(folder, 'run');
  await personalise({ ...tinyRun(images, output), steps: 2 });
  const again = { ...tinyRun(images, output), steps: 4, learningRate: 1e-5, resumeFromCheckpoint: 'latest' };
  await assert.rejects(personalise({ ...again, rank: 2 }), RunError);
  const result = await personalise(again);
  assert.equal(result.steps, 4);
  const metrics = await readMetrics(join(output, 'metrics.jsonl'));
  assert.deepEqual(
    metrics.map((m) => m.step),
    [1, 2, 3, 4],
  );
  assert.ok(Number(metrics[3]!.learningRate) <= 1e-5);

  await writeFile(
    join(output, 'class_images/class-0000.png'),
    await readFile(join(output, 'class_images/class-0001.png')),
  );
  await assert.rejects(personalise({ ...again, steps: 6 }), /other class pictures/);
});

test('with gradient checkpointing the programs of a run take turns: none that draws or encodes beside another or beside the step', async (t) => {
  const folder = await temporaryFolder(t);
  const run = {
    ...tinyRun(await writePictures(join(folder, 'images')), join(folder, 'run')),
    classDataDir: join(folder, 'classes'),
    numClassImages: 9,
    randomFlip: true,
    gradientCheckpointing: true,
  };
  const { engine, beside, held } = watchedEngine();
  const encoded: number[] = [];
  const drawn: number[] = [];
  const whole = await personalise({
    ...run,
    engine,
    onEvent: (e) => {
      if (e.kind === 'stage' && e.name === 'encoding pictures') encoded.push(e.done / e.total);
      if (e.kind === 'stage' && e.name === 'drawing class images') drawn.push(e.done / e.total);
      if (e.kind === 'started')
        assert.equal(encoded.at(-1), 1, 'what training will see is encoded before it');
    },
  });
  for (const name of ['text_encoder', 'denoiser', 'decoder', 'encoder', 'training_step']) {
    assert.deepEqual([...beside.get(name)!], [], name);
  }
  assert.ok(encoded.length > 3 && drawn.length > 3);
  assert.deepEqual([drawn.at(-1), drawn.indexOf(1)], [1, drawn.length - 1], 'the end is told once');
  assert.equal(held.size, 0);

  // A batch in the middle is missing: it comes back the same, and so does what is learnt, although this run is stopped while it encodes and again while it trains.
  const missing = ['class-0004.png', 'class-0006.png'].map((name) => join(run.classDataDir, name));
  const pictures = await Promise.all(missing.map((path) => readFile(path)));
  for (const path of missing) await rm(path);
  const start = (stopAt: (e: TrainingEvent) => boolean, resumeFromCheckpoint?: string) => {
    const stop = new AbortController();
    return personalise({
      ...run,
      output: join(folder, 'stopped'),
      engine,
      signal: stop.signal,
      onEvent: (e) => {
        if (stopAt(e)) stop.abort();
      },
      ...(resumeFromCheckpoint ? { resumeFromCheckpoint } : {}),
    });
  };
  await assert.rejects(
    start((e) => e.kind === 'stage' && e.name === 'encoding pictures' && e.done === 2),
    (error) => error instanceof CancelledError && /while encoding pictures/.test(error.message),
  );
  assert.equal(held.size, 0, 'nothing of a run that was stopped is left');
  await assert.rejects(
    start((e) => e.kind === 'progress' && e.step === 4, 'latest'),
    CancelledError,
  );
  const resumed = await start(() => false, 'latest');
  assert.deepEqual(await Promise.all(missing.map((path) => readFile(path))), pictures);
  assert.deepEqual(await readFile(resumed.files[0]!), await readFile(whole.files[0]!));
  await engine.close();
});

/** An engine that tells of each kind of graph what else was held whenever one was compiled, and what programs and states are held now. */
function watchedEngine() {
  const own = createNodeEngine({ threads: 1 });
  const held = new Map<object, string>();
  const beside = new Map<string, Set<string>>();
  const engine: Engine = {
    async compile(graph, options) {
      const { name } = graph;
      beside.set(name, new Set([...(beside.get(name) ?? []), ...held.values()].filter((n) => n !== 'state')));
      const program = await own.compile(graph, options);
      held.set(program, name);
      const release = () => {
        held.delete(program);
        return program.release();
      };
      return { ...program, release };
    },
    async state(tensors) {
      const state = await own.state(tensors);
      held.set(state, 'state');
      const { release } = state;
      // The engine knows a state by itself, so that it cannot be wrapped.
      return Object.assign(state, {
        release: () => {
          held.delete(state);
          return release();
        },
      });
    },
    close: () => own.close(),
  };
  return { engine, beside, held };
}
