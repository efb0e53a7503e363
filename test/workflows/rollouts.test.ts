import assert from 'node:assert/strict';
import { access, cp, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { shownBy, withoutToken } from '../../src/data/prompts.js';
import type { Engine } from '../../src/engine/engine.js';
import { createNodeEngine } from '../../src/engine/node.js';
import { UsageError } from '../../src/errors.js';
import { readSafetensorsFile } from '../../src/formats/safetensors-file.js';
import type { Tensor } from '../../src/tensor/tensor.js';
import type { TrainingEvent } from '../../src/training/events.js';
import { readMetrics } from '../../src/training/metrics-log.js';
import { isVisited, rolloutRequest } from '../../src/training/rollouts.js';
import { generate } from '../../src/workflows/generate.js';
import { type PersonaliseOptions, personalise } from '../../src/workflows/personalise.js';
import { goldenPath } from '../goldens.js';
import { temporaryFolder } from '../temporary-folder.js';
import { tinyModel, tinyRun, writePictures } from './tiny-run.js';

const clip = fileURLToPath(goldenPath('encoders/clip-tiny'));
const prompts = ['a sks backpack on the beach', 'a sks backpack in the snow', 'two sks backpacks'];

/** The tiny run with roll-outs, three pictures every second step. */
function run(images: string, output: string, change: Partial<PersonaliseOptions> = {}): PersonaliseOptions {
  const { criticLearningRate: _, ...rest } = tinyRun(images, output);
  return {
    ...rest,
    steps: 5,
    validationPrompts: ['a sks backpack'],
    reward: ['look-forward=0.1', `clip-text:${clip}`],
    rolloutFraction: 0.5,
    rolloutPrompts: prompts,
    numRollouts: 3,
    rolloutEvery: 2,
    rolloutSteps: 4,
    ...change,
  };
}

test('a resumed run with roll-outs ends in the same bytes, wherever it was stopped', async (t) => {
  const folder = await temporaryFolder(t);
  const images = await writePictures(join(folder, 'images'));
  const whole = join(folder, 'whole');
  const change = { trainTextEncoder: true, trainBatchSize: 1 };
  await personalise(run(images, whole, change));
  const metrics = await readMetrics(join(whole, 'metrics.jsonl'));
  // With one row a step and half of them visited, every second step has no photograph: nothing is said of it.
  for (const record of metrics) {
    const ofPhotograph = record.step % 2 === 1;
    assert.equal('instanceLoss' in record, ofPhotograph, `step ${record.step}`);
    assert.equal('reward.look-forward' in record, ofPhotograph, `step ${record.step}`);
    assert.ok('reward.clip-text' in record && 'priorLoss' in record);
  }
  const checkpoint = 'checkpoints/step-000005/state.safetensors';
  const { tensors } = await readSafetensorsFile(join(whole, checkpoint));
  assert.deepEqual(tensors.get('rollouts.samples')?.shape, [12, 4, 8, 8]);
  for (const at of [1, 2]) {
    const output = join(folder, `stopped-${at}`);
    const stop = new AbortController();
    const stopped = personalise({
      ...run(images, output, change),
      signal: stop.signal,
      onEvent: (e) => {
        if (e.kind === 'progress' && e.step === at) stop.abort();
      },
    });
    await assert.rejects(stopped, new RegExp(`Stopped after step ${at}`));
    await personalise({ ...run(images, output, change), resumeFromCheckpoint: 'latest' });
    for (const name of ['metrics.jsonl', 'pytorch_lora_weights.safetensors', checkpoint]) {
      assert.deepEqual(await readFile(join(output, name)), await readFile(join(whole, name)), name);
    }
  }
});

/** An engine that keeps what denoisers without gradients are asked about: samples and timesteps. */
function watched(engine: Engine): { engine: Engine; asked: { sample: Tensor; timestep: Tensor }[] } {
  const asked: { sample: Tensor; timestep: Tensor }[] = [];
  return {
    asked,
    engine: {
      ...engine,
      state: (tensors) => engine.state(tensors),
      close: () => engine.close(),
      compile: async (graph, options) => {
        const program = await engine.compile(graph, options);
        return {
          release: () => program.release(),
          run(feeds, state) {
            const { sample, timestep } = feeds;
            if (sample && timestep) asked.push({ sample, timestep });
            return program.run(feeds, state);
          },
        };
      },
    },
  };
}

test('the visited states are those that generate goes through with the same seed, bit for bit', async (t) => {
  const folder = await temporaryFolder(t);
  const images = await writePictures(join(folder, 'images'));
  const output = join(folder, 'run');
  // Three steps: the states of its checkpoint were drawn after the second. Four pictures of one prompt are a batch of `generate` too.
  const prompt = prompts[0]!;
  const change = { steps: 3, useEma: false, rolloutPrompts: [prompt], numRollouts: 4 };
  await personalise(run(images, output, change));
  const { tensors } = await readSafetensorsFile(join(output, 'checkpoints/step-000003/state.safetensors'));
  const [states, timesteps] = [tensors.get('rollouts.samples')!, tensors.get('rollouts.timesteps')!];

  const before = join(folder, 'after two steps');
  await cp(output, before, { recursive: true });
  const again = { ...change, steps: 2 };
  await personalise({ ...run(images, before, again), resumeFromCheckpoint: 'step-000002' });
  const own = createNodeEngine({ threads: 1 });
  t.after(() => own.close());
  const { engine, asked } = watched(own);
  await generate({
    run: before,
    model: tinyModel,
    prompts: [prompt],
    numImages: 4,
    seed: rolloutRequest({ prompts: [prompt] }, 23, 4).seed,
    steps: 4,
    scheduler: 'ddim',
    output: join(folder, 'pictures'),
    engine,
  });
  assert.equal(asked.length, 4);
  const size = 4 * 8 * 8;
  for (const [s, { sample, timestep }] of asked.entries()) {
    for (let i = 0; i < 4; i++) {
      const drawn = (sample.data as Float32Array).slice(i * size, (i + 1) * size);
      const place = i * 4 + s;
      const kept = (states.data as Float32Array).slice(place * size, (place + 1) * size);
      assert.deepEqual(drawn, kept, `picture ${i}, step ${s}`);
      assert.equal(Number(timesteps.data[place]), timestep.data[i]);
    }
  }
});

test('rewards are told what each row shows, and a warning names prompts without the subject', async (t) => {
  const folder = await temporaryFolder(t);
  const images = await writePictures(join(folder, 'images'));
  const told: string[] = [];
  const events: TrainingEvent[] = [];
  await personalise({
    ...run(images, join(folder, 'run'), {
      steps: 3,
      trainBatchSize: 4,
      rolloutPrompts: ['a sks backpack on the beach', 'a red teapot'],
      reward: {
        kind: 'function',
        name: 'mine',
        score: (pictures, context) => {
          told.push(...context.prompts);
          return pictures.map(() => 1);
        },
      },
    }),
    onEvent: (e) => events.push(e),
  });
  assert.equal(told.length, 12);
  assert.equal(told.filter((p) => p === 'a photo of backpack').length, 6, 'half are photographs');
  assert.ok(told.every((p) => /^a photo of backpack|a backpack on the beach|a red teapot$/.test(p)));
  assert.ok(events.some((e) => e.kind === 'warning' && /"a red teapot" does not name "sks"/.test(e.message)));
});

test('rows are visited states in the share that was asked for, spread evenly', () => {
  for (const fraction of [0, 0.1, 1 / 3, 0.5, 0.75, 1]) {
    for (const from of [0, 7, 240]) {
      const rows = Array.from({ length: 60 }, (_, i) => isVisited(fraction, from + i));
      assert.equal(rows.filter(Boolean).length, Math.round(60 * fraction), `${fraction} from ${from}`);
    }
  }
});

test('what a prompt shows is said without the rare token', () => {
  const subject = {
    instancePrompt: 'a photo of sks dog',
    classPrompt: 'a picture of a dog',
    token: 'sks',
    className: 'dog',
  };
  assert.equal(withoutToken('a sks dog on the beach', subject), 'a dog on the beach');
  assert.equal(withoutToken('a sks on the beach', subject), 'a dog on the beach');
  assert.equal(withoutToken('on the beach, SKS, sleeping', subject), 'on the beach, dog, sleeping');
  assert.equal(withoutToken('a red sks dog, sleeping', subject), 'a red dog, sleeping');
  assert.equal(withoutToken('a sks red dog', subject), 'a red dog');
  assert.equal(withoutToken('a cat', subject), 'a cat');
  const vase = { token: '<new1> tall', className: 'clay vase' };
  assert.equal(withoutToken('a tall <new1> clay vase', vase), 'a clay vase');
  assert.equal(withoutToken('a <new1> tall on a table', vase), 'a clay vase on a table');
  assert.equal(shownBy('a photo of sks dog', subject), 'a picture of a dog');
  assert.equal(shownBy('a sks dog in the snow', subject), 'a dog in the snow');
});

test('roll-outs that make no sense are refused before anything is written', async (t) => {
  const folder = await temporaryFolder(t);
  const images = await writePictures(join(folder, 'images'));
  const output = join(folder, 'run');
  const refused = (change: Partial<PersonaliseOptions>, message: RegExp): Promise<void> =>
    assert.rejects(personalise(run(images, output, change)), (error) => {
      assert.ok(error instanceof UsageError, String(error));
      assert.match(error.message, message);
      return true;
    });
  await refused({ rolloutFraction: 1.5 }, /--rollout-fraction 1.5: expected a number from 0/);
  await refused({ rolloutFraction: Number.NaN }, /--rollout-fraction NaN/);
  await refused({ rolloutFraction: 0 }, /--rollout-prompt is about roll-outs, and there are none/);
  await refused({ rolloutPrompts: [] }, /list of roll-out prompts is empty/);
  await refused({ rolloutSteps: 2000 }, /--rollout-steps 2000: this model knows 1000/);
  await refused({ rolloutEvery: 0 }, /--rollout-every 0: expected a whole number/);
  await refused({ method: 'dreambooth' }, /no true noise that --method dreambooth could learn/);
  await refused({ reward: 'look-forward' }, /look-forward alone cannot reward it/);
  await refused({ reward: 'look-forward', objective: 'official' }, /not known to the released code/);
  await refused({ policyGradient: 'critic' }, /no critic can learn look-forward/);
  await refused({ enableBucket: true }, /--enable-bucket gives photographs other shapes/);
  await assert.rejects(access(output), 'nothing was written');
});
