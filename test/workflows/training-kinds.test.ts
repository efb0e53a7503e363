import assert from 'node:assert/strict';
import { readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { CancelledError, InputError, type PortrayalError, UsageError } from '../../src/errors.js';
import { openSafetensors } from '../../src/formats/safetensors-file.js';
import { generate } from '../../src/workflows/generate.js';
import { completeSettings } from '../../src/workflows/personalisation-settings.js';
import { type PersonaliseOptions, personalise } from '../../src/workflows/personalise.js';
import { temporaryFolder } from '../temporary-folder.js';
import { tinyCustomDiffusion, tinyRun, tinyTextualInversion, writePictures } from './tiny-run.js';

interface Kind {
  readonly change: Partial<PersonaliseOptions>;
  /** In the run folder. */
  readonly files: readonly string[];
}

const kinds: Readonly<Record<string, Kind>> = {
  'all weights, the text encoder too': {
    change: { train: 'full', trainTextEncoder: true },
    files: ['model/unet/diffusion_pytorch_model.safetensors', 'model/text_encoder/model.safetensors'],
  },
  'Custom Diffusion': {
    change: tinyCustomDiffusion,
    files: ['pytorch_custom_diffusion_weights.safetensors', '<new1>.safetensors'],
  },
  'textual inversion': {
    change: { ...tinyTextualInversion, numVectors: 2, validationPrompts: ['a <toy> on the beach'] },
    files: ['learned_embeds.safetensors'],
  },
};

const optionsOf = (
  images: string,
  output: string,
  change: Partial<PersonaliseOptions>,
): PersonaliseOptions => ({
  ...tinyRun(images, output),
  steps: 4,
  checkpointingSteps: 2,
  learningRate: 1e-2,
  ...change,
});

for (const [name, { change, files }] of Object.entries(kinds)) {
  test(`${name}: stopped and resumed to the same bytes, drawn from checkpoint and files alike`, async (t) => {
    const folder = await temporaryFolder(t);
    const images = await writePictures(join(folder, 'images'));
    const whole = join(folder, 'whole');
    const result = await personalise(optionsOf(images, whole, change));
    const stopped = optionsOf(images, join(folder, 'stopped'), change);
    const stop = new AbortController();
    await assert.rejects(
      personalise({
        ...stopped,
        signal: stop.signal,
        onEvent: (event) => {
          if (event.kind === 'progress' && event.step === 3) stop.abort();
        },
      }),
      CancelledError,
    );
    await personalise({ ...stopped, resumeFromCheckpoint: 'latest' });
    for (const file of [...files, 'config.json', 'checkpoints/step-000004/state.safetensors']) {
      assert.ok((await readFile(join(whole, file))).equals(await readFile(join(stopped.output, file))), file);
    }
    assert.ok(result.files.length > 0);

    const draw = async (run: Partial<Parameters<typeof generate>[0]>, to: string): Promise<Buffer> => {
      const prompts = [...tinyPrompts(change)];
      const [path] = await generate({ ...run, prompts, output: join(folder, to), steps: 2, threads: 1 });
      return readFile(path!);
    };
    const learnt = await draw({ run: whole }, 'from-checkpoint');
    await rm(join(whole, 'checkpoints'), { recursive: true });
    assert.deepEqual(await draw({ run: whole }, 'from-files'), learnt);
    assert.notDeepEqual(await draw({ model: stopped.model }, 'base'), learnt);
    if (change.train === 'full')
      assert.deepEqual(await draw({ model: join(whole, 'model') }, 'model'), learnt);
    const report = await readFile(join(whole, 'report.html'), 'utf8');
    assert.match(report, /load_textual_inversion|from_pretrained/);
  });
}

const tinyPrompts = ({ validationPrompts }: Partial<PersonaliseOptions>): readonly string[] =>
  validationPrompts ?? ['a sks backpack'];

test('two concepts at once: words, pictures and class pictures of their own', async (t) => {
  const folder = await temporaryFolder(t);
  const list = join(folder, 'concepts.json');
  const concepts = [];
  for (const [i, noun] of ['cat', 'toy'].entries()) {
    concepts.push({
      instance_data_dir: await writePictures(join(folder, noun), 2 + i),
      instance_prompt: `photo of a <new${i + 1}> ${noun}`,
      class_prompt: noun,
    });
  }
  await writeFile(list, JSON.stringify(concepts));
  const { images: _i, instancePrompt: _p, classPrompt: _c, validationPrompts: _v, ...rest } = tinyRun('', '');
  const output = join(folder, 'run');
  const { files } = await personalise({
    ...rest,
    method: 'dreambooth',
    output,
    concepts: list,
    train: 'custom-diffusion',
    modifierToken: ['<new1>', '<new2>'],
    initializerToken: ['a', 'b'],
    steps: 2,
  });
  assert.deepEqual((await readdir(join(output, 'class_images'))).sort(), ['1', '2']);
  assert.equal(files.length, 3);
  const second = await openSafetensors(join(output, '<new2>.safetensors'));
  assert.deepEqual(
    [...second.entries.values()].map(({ name, shape }) => [name, shape]),
    [['<new2>', [1, 16]]],
  );
  const config = JSON.parse(await readFile(join(output, 'config.json'), 'utf8'));
  assert.equal(config.concepts.length, 2);
  assert.equal(config.images.length, 5);
});

test('a full run leaves no model where none is asked for, and is drawn from its checkpoint', async (t) => {
  const folder = await temporaryFolder(t);
  const images = await writePictures(join(folder, 'images'));
  const output = join(folder, 'run');
  const { files } = await personalise(optionsOf(images, output, { train: 'full', saveModel: false }));
  assert.deepEqual(files, []);
  assert.ok(!(await readdir(output)).includes('model'));
  const drawn = await generate({
    run: output,
    prompts: ['a sks backpack'],
    output: join(folder, 'out'),
    steps: 2,
  });
  assert.equal(drawn.length, 1);
});

test('what is trained and what is said of it have to go together', () => {
  const refused: [Partial<PersonaliseOptions>, RegExp][] = [
    [{ train: 'full', rank: 4 }, /--rank is about --train lora, and this is --train full/],
    [
      { train: 'textual-inversion', placeholderToken: '<a>', trainTextEncoder: true },
      /--train-text-encoder is about/,
    ],
    [{ train: 'textual-inversion' }, /--placeholder-token/],
    [{ train: 'custom-diffusion' }, /--modifier-token/],
    [
      { modifierToken: ['<a>'] },
      /--modifier-token is about --train custom-diffusion, and this is --train lora/,
    ],
    [
      { train: 'custom-diffusion', modifierToken: ['<a>'], initializerToken: ['b', 'c'] },
      /2 words .* for 1 new one/,
    ],
    [
      { train: 'textual-inversion', placeholderToken: '<a>', withPriorPreservation: true },
      /learns nothing from them/,
    ],
    [{ train: 'textual-inversion', placeholderToken: '<a>', numVectors: 0 }, /--num-vectors 0/],
    [
      { train: 'dora' as 'lora' },
      /--train dora: expected lora or full or custom-diffusion or textual-inversion/,
    ],
  ];
  for (const [settings, message] of refused) {
    assert.throws(
      () => completeSettings(settings),
      (error) => error instanceof UsageError && message.test(error.message),
      String(message),
    );
  }
  assert.equal(completeSettings({}, 'official').train, 'full');
  assert.equal(completeSettings({ train: 'full' }).learningRate, 5e-6);
});

test('concepts that cannot be taught are told before anything is written', async (t) => {
  const folder = await temporaryFolder(t);
  const images = await writePictures(join(folder, 'images'));
  const output = join(folder, 'run');
  const { modifierToken, initializerToken } = { modifierToken: ['<new1>'], initializerToken: ['a'] };
  const custom = { train: 'custom-diffusion', modifierToken, initializerToken } as const;
  const run = optionsOf(images, output, {});
  const { images: _i, instancePrompt: _p, classPrompt: _c, ...bare } = run;
  const refused: [PersonaliseOptions, new (...args: never[]) => PortrayalError, RegExp][] = [
    [{ ...run, ...custom }, InputError, /"<new1>" is in none of the instance prompts/],
    [{ ...bare }, UsageError, /--images and --prompt.*--concepts-list/],
    [{ ...run, concepts: [] }, UsageError, /--concepts-list already says what --images and --prompt/],
    [{ ...bare, concepts: [] }, InputError, /list of concepts is empty/],
    [
      { ...bare, concepts: join(folder, 'none.json') },
      InputError,
      /none\.json: the list of concepts cannot be read/,
    ],
  ];
  for (const [options, type, message] of refused) {
    await assert.rejects(
      personalise(options),
      (error) => error instanceof type && message.test((error as Error).message),
      String(message),
    );
  }
  assert.ok(!(await readdir(folder)).includes('run'));
});
