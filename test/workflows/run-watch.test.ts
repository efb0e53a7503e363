import assert from 'node:assert/strict';
import { access, cp, readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { ModelError, UsageError } from '../../src/errors.js';
import { readSafetensorsFile } from '../../src/formats/safetensors-file.js';
import { readEvents } from '../../src/formats/tfevents.js';
import { StableDiffusion } from '../../src/pretrained/stable-diffusion.js';
import type { TrainingEvent } from '../../src/training/events.js';
import { type MetricsRecord, readMetrics } from '../../src/training/metrics-log.js';
import { runFiles } from '../../src/training/run-folder.js';
import { readRunRecord, storedLearnt } from '../../src/workflows/learnt.js';
import { type PersonaliseOptions, personalise } from '../../src/workflows/personalise.js';
import { goldenPath } from '../goldens.js';
import { temporaryFolder } from '../temporary-folder.js';
import { tinyModel, tinyRun, writePictures } from './tiny-run.js';

const encoder = (name: string): string => fileURLToPath(goldenPath(`encoders/${name}`));

/** The tiny run under the eyes of two judges. */
function run(images: string, output: string, change: Partial<PersonaliseOptions> = {}): PersonaliseOptions {
  return {
    ...tinyRun(images, output),
    steps: 5,
    withPriorPreservation: false,
    numValidationImages: 2,
    validationSteps: 2,
    judges: [encoder('vit-tiny'), encoder('clip-tiny')],
    ...change,
  };
}

const measured = (records: readonly MetricsRecord[]): MetricsRecord[] =>
  records.filter((r) => 'judge.score' in r);

test('judges and the distance to the base are measured at each validation, logged, told and shown; a run stopped there goes on', async (t) => {
  const folder = await temporaryFolder(t);
  const images = await writePictures(join(folder, 'images'));
  const whole = join(folder, 'whole');
  const events: TrainingEvent[] = [];
  const change = { reportTo: 'tensorboard' } as const;
  await personalise({ ...run(images, whole, change), onEvent: (e) => events.push(e) });
  const records = measured(await readMetrics(join(whole, runFiles.metrics)));
  assert.deepEqual(
    records.map(({ step }) => step),
    [0, 2, 4, 5],
  );
  const names = [
    'judge.dino',
    'judge.dino-diversity',
    'judge.clip',
    'judge.clip-text',
    'judge.clip-diversity',
    'judge.score',
    'updateNorm',
    'klToBase',
  ];
  for (const { step, ...scores } of records) {
    assert.deepEqual(Object.keys(scores), names);
    // The base is no way from itself; what was learnt is some way, and further on further.
    for (const name of ['updateNorm', 'klToBase']) assert.equal(Number(scores[name]) > 0, step > 0, name);
  }
  assert.ok(Number(records[3]!.updateNorm) > Number(records[1]!.updateNorm));
  assert.deepEqual(
    events.flatMap((e) => (e.kind === 'validation' ? [{ step: e.step, ...e.scores }] : [])),
    records,
  );
  const report = await readFile(join(whole, runFiles.report), 'utf8');
  for (const title of [
    'Judge dino: likeness',
    'Judge clip: text',
    'Judges: score',
    'Divergence from the base',
  ]) {
    assert.ok(report.includes(`<h3>${title}</h3>`), title);
  }
  // The judges are of random weights and say something else of every step; whichever was best, the report tells if it was not the last.
  const ofTraining = records.slice(1);
  const best = ofTraining.reduce((x, y) => (Number(y['judge.score']) > Number(x['judge.score']) ? y : x));
  assert.equal(report.includes(`score was best at step ${best.step} (`), best.step !== 5);
  const file = await readFile(join(whole, runFiles.tensorboard));
  assert.ok(file.includes('validation/judge.dino') && file.includes('validation/klToBase'));
  assert.ok([...readEvents(file)].length > 0);

  // Stopped while it draws between steps 2 and 3: what was not measured then is measured when it goes on.
  const output = join(folder, 'stopped');
  const stop = new AbortController();
  const stopped = personalise({
    ...run(images, output, change),
    signal: stop.signal,
    onEvent: (e) => {
      if (e.kind === 'stage' && e.name === 'drawing at step 2') stop.abort();
    },
  });
  await assert.rejects(stopped, /Stopped after step 2/);
  assert.equal(measured(await readMetrics(join(output, runFiles.metrics))).length, 1);
  await personalise({ ...run(images, output, change), resumeFromCheckpoint: 'latest' });
  for (const name of [runFiles.metrics, runFiles.lora, 'samples/step-000005.png']) {
    assert.deepEqual(await readFile(join(output, name)), await readFile(join(whole, name)), name);
  }
});

test('a run is watched from afar without judges too', async (t) => {
  const folder = await temporaryFolder(t);
  const images = await writePictures(join(folder, 'images'));
  const output = join(folder, 'run');
  await personalise(run(images, output, { judges: [], steps: 3 }));
  const records = await readMetrics(join(output, runFiles.metrics));
  assert.deepEqual(
    records.flatMap((r) => ('klToBase' in r ? [[r.step, Object.keys(r).length]] : [])),
    [
      [2, 3],
      [3, 3],
    ],
  );
});

test('early stopping ends a run that gets no better, keeps the best step, and all who ask for the run get that one', async (t) => {
  const folder = await temporaryFolder(t);
  const images = await writePictures(join(folder, 'images'));
  const output = join(folder, 'run');
  const change: Partial<PersonaliseOptions> = {
    method: 'dreambooth',
    steps: 40,
    learningRate: 0.02,
    lrScheduler: 'constant',
    checkpointingSteps: 100,
    checkpointsTotalLimit: 1,
    validationSteps: 1,
    earlyStopping: 3,
    judges: [encoder('vit-tiny')],
  };
  const result = await personalise(run(images, output, change));
  const scores = measured(await readMetrics(join(output, runFiles.metrics))).slice(1);
  const best = scores.reduce((a, b) => (Number(b['judge.score']) > Number(a['judge.score']) ? b : a)).step;
  const done = scores.at(-1)!.step;
  assert.equal(done, best + 3, 'three validations in a row brought nothing better');
  assert.ok(done < 40);
  assert.equal(result.steps, best);
  // The limit on checkpoints spares the best one.
  assert.deepEqual((await readdir(join(output, 'checkpoints'))).sort(), [
    `step-${String(best).padStart(6, '0')}`,
    `step-${String(done).padStart(6, '0')}`,
  ]);
  const kept = await readSafetensorsFile(
    join(output, `checkpoints/step-${String(best).padStart(6, '0')}/state.safetensors`),
  );
  const lora = await readSafetensorsFile(result.files[0]!);
  const learnt = await storedLearnt(await readRunRecord(output), await StableDiffusion.open(tinyModel));
  for (const [name, value] of lora.tensors) {
    const expected = kept.tensors.get(`ema.${name}`);
    assert.ok(expected, name);
    assert.deepEqual(value.data, expected.data, name);
    assert.deepEqual((await learnt.get(name)!.read()).data, expected.data, name);
  }
  const report = await readFile(result.report, 'utf8');
  assert.match(report, new RegExp(`Stopped early, after step ${done} of 40: 3 validations in a row`));
  assert.match(report, new RegExp(`best of ${done}`));

  // Asked again, it stays over; with more patience it goes on.
  const again = { ...run(images, output, change), resumeFromCheckpoint: 'latest' };
  assert.equal((await personalise(again)).steps, best);
  const patient = await personalise({ ...again, earlyStopping: 100, steps: done + 1 });
  const records = await readMetrics(join(output, runFiles.metrics));
  assert.equal(records.at(-1)!.step, done + 1);
  assert.ok([best, done + 1].includes(patient.steps));
});

test('every kind of training visits states by itself and is measured, the words of textual inversion too', async (t) => {
  const folder = await temporaryFolder(t);
  const images = await writePictures(join(folder, 'images'));
  for (const train of ['full', 'custom-diffusion', 'textual-inversion'] as const) {
    const output = join(folder, train);
    const { criticLearningRate: _, ...rest } = run(images, output, { judges: [encoder('vit-tiny')] });
    const word = train === 'full' ? 'sks' : '<new1>';
    await personalise({
      ...rest,
      train,
      ...(train === 'custom-diffusion' ? { modifierToken: [word], initializerToken: ['a'] } : {}),
      ...(train === 'textual-inversion' ? { placeholderToken: word, initializerToken: ['a'] } : {}),
      instancePrompt: `a photo of ${word} backpack`,
      learningRate: 1e-3,
      steps: 3,
      validationPrompts: [`a ${word} backpack`],
      reward: `clip-text:${encoder('clip-tiny')}`,
      rolloutFraction: 0.5,
      rolloutPrompts: [`a ${word} backpack on the beach`],
      rolloutEvery: 2,
      rolloutSteps: 3,
    });
    const records = measured(await readMetrics(join(output, runFiles.metrics)));
    assert.deepEqual(
      records.map(({ step }) => step),
      [0, 2, 3],
      train,
    );
    for (const { step, updateNorm, klToBase } of records.slice(1)) {
      assert.ok(
        Number(updateNorm) > 0 && Number(klToBase) > 0,
        `${train}, step ${step}: ${updateNorm}, ${klToBase}`,
      );
    }
  }
});

test('judges and early stopping that make no sense are refused before anything is written', async (t) => {
  const folder = await temporaryFolder(t);
  const images = await writePictures(join(folder, 'images'));
  const output = join(folder, 'run');
  const copy = join(folder, 'another name');
  await cp(encoder('vit-tiny'), copy, { recursive: true });
  const refused = (
    change: Partial<PersonaliseOptions>,
    kind: new (message: string) => Error,
    message: RegExp,
  ): Promise<void> =>
    assert.rejects(personalise(run(images, output, change)), (error) => {
      assert.ok(error instanceof kind, String(error));
      assert.match(error.message, message);
      return true;
    });
  const reward = `dino:${copy}`;
  await refused({ reward }, UsageError, /these are the weights of the reward dino .*another name/);
  await refused(
    { judges: [copy, encoder('vit-tiny')] },
    UsageError,
    /the weights of the judge .*another name/,
  );
  await refused({ judges: [folder] }, ModelError, /not an image encoder/);
  await refused({ judges: [], earlyStopping: 2 }, UsageError, /--early-stopping needs a judge/);
  await refused(
    { earlyStopping: 2, validationSteps: undefined },
    UsageError,
    /--early-stopping counts validations/,
  );
  await refused({ earlyStopping: 0 }, UsageError, /--early-stopping 0: expected a whole number/);
  await assert.rejects(access(output), 'nothing was written');
});
