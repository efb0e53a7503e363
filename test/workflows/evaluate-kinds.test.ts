import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { RunError } from '../../src/errors.js';
import { type EvaluateOptions, evaluate } from '../../src/workflows/evaluate.js';
import { generate } from '../../src/workflows/generate.js';
import { type PersonaliseOptions, personalise } from '../../src/workflows/personalise.js';
import { goldenPath } from '../goldens.js';
import { temporaryFolder } from '../temporary-folder.js';
import { tinyCustomDiffusion, tinyRun, tinyTextualInversion, writePictures } from './tiny-run.js';

const encoder = (name: string): string => fileURLToPath(goldenPath(`encoders/${name}`));

interface Kind {
  readonly change: Partial<PersonaliseOptions>;
  /** How the run's prompts speak of the subject. */
  readonly named: string;
}

const kinds: Readonly<Record<string, Kind>> = {
  full: { change: { train: 'full' }, named: 'sks backpack' },
  'full, no model kept': { change: { train: 'full', saveModel: false }, named: 'sks backpack' },
  'custom-diffusion': {
    change: tinyCustomDiffusion,
    named: '<new1> backpack',
  },
  'textual-inversion': {
    change: tinyTextualInversion,
    named: '<toy>',
  },
};

const evaluation = (references: string, run: string, output: string): EvaluateOptions => ({
  references,
  methods: [{ name: 'own', runs: run }],
  subjects: { pack: { prompts: ['a {} in the snow'] } },
  dino: encoder('vit-tiny'),
  clip: encoder('clip-tiny'),
  numImages: 1,
  steps: 2,
  seed: 5,
  resamples: 100,
  output,
  threads: 1,
});

for (const [name, { change, named }] of Object.entries(kinds)) {
  test(`a run of the kind ${name} is scored by the pictures that generate draws with it`, async (t) => {
    const folder = await temporaryFolder(t);
    const photographs = await writePictures(join(folder, 'pack'));
    const run = join(folder, 'run');
    await personalise({
      ...tinyRun(photographs, run),
      steps: 2,
      learningRate: 1e-2,
      withPriorPreservation: false,
      ...change,
    });
    const options = evaluation(photographs, run, join(folder, 'evaluation'));
    const { scores } = await evaluate(options);
    const written = JSON.parse(await readFile(scores, 'utf8'));
    const { dino, clipI, clipT } = written.scores.own.pack;
    for (const score of [dino, clipI, clipT]) assert.ok(Number.isFinite(score) && Math.abs(score) <= 1);

    const prompts = [`a ${named} in the snow`];
    const drawing = { prompts, steps: 2, seed: 5, threads: 1 };
    const [own] = await generate({ ...drawing, run, output: join(folder, 'own') });
    const picture = join(options.output, 'pictures/own/pack/01-a-backpack-in-the-snow/0.png');
    const drawn = await readFile(picture);
    assert.deepEqual(drawn, await readFile(own!), 'drawn from the run');
    const texts = [`a backpack in the snow`];
    const base = { ...drawing, prompts: texts, model: tinyRun('', '').model };
    const [plain] = await generate({ ...base, output: join(folder, 'base') });
    assert.notDeepEqual(drawn, await readFile(plain!), 'and not from the base');
  });
}

test('a run of several concepts is refused, with another way', async (t) => {
  const folder = await temporaryFolder(t);
  const concepts = [];
  for (const [i, noun] of ['pack', 'toy'].entries()) {
    concepts.push({
      images: await writePictures(join(folder, noun), 2 + i),
      instancePrompt: `photo of a <new${i + 1}> ${noun}`,
      classPrompt: noun,
    });
  }
  const { images: _i, instancePrompt: _p, classPrompt: _c, validationPrompts: _v, ...rest } = tinyRun('', '');
  const run = join(folder, 'run');
  await personalise({
    ...rest,
    output: run,
    concepts,
    train: 'custom-diffusion',
    modifierToken: ['<new1>', '<new2>'],
    initializerToken: ['a', 'b'],
    withPriorPreservation: false,
    steps: 1,
  });
  await assert.rejects(
    evaluate(evaluation(join(folder, 'pack'), run, join(folder, 'evaluation'))),
    (error) =>
      error instanceof RunError && /several concepts.*portrayal generate.*--pictures/.test(error.message),
  );
});
