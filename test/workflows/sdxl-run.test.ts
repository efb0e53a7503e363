import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { CancelledError } from '../../src/errors.js';
import { readSafetensorsFile } from '../../src/formats/safetensors-file.js';
import { generate } from '../../src/workflows/generate.js';
import { type PersonaliseOptions, personalise } from '../../src/workflows/personalise.js';
import { goldenPath } from '../goldens.js';
import { temporaryFolder } from '../temporary-folder.js';
import { tinyRun, writePictures } from './tiny-run.js';

const model = fileURLToPath(goldenPath('models/sdxl-tiny'));

/** DPG on SDXL, both text encoders learning, another crop at each use. */
const sdxlRun = (images: string, output: string): PersonaliseOptions => ({
  ...tinyRun(images, output),
  model,
  trainTextEncoder: true,
  centerCrop: false,
  steps: 3,
  checkpointingSteps: 1,
  validationPrompts: ['a sks backpack'],
  trainBatchSize: 1,
});

test('SDXL trains, stops, goes on to the same bytes, and draws', async (t) => {
  const folder = await temporaryFolder(t);
  const images = await writePictures(join(folder, 'images'));
  const whole = await personalise(sdxlRun(images, join(folder, 'whole')));

  const stop = new AbortController();
  const stopped = sdxlRun(images, join(folder, 'stopped'));
  await assert.rejects(
    personalise({
      ...stopped,
      signal: stop.signal,
      onEvent: (event) => {
        if (event.kind === 'progress' && event.step === 1) stop.abort();
      },
    }),
    CancelledError,
  );
  const resumed = await personalise({ ...stopped, resumeFromCheckpoint: 'latest' });
  assert.equal(whole.files.length, 2);
  for (const [i, file] of whole.files.entries()) {
    assert.ok((await readFile(resumed.files[i]!)).equals(await readFile(file)), file);
  }

  const modules = (names: Iterable<string>): string[] => [
    ...new Set([...names].map((n) => n.split('.')[0]!)),
  ];
  const peft = (await readSafetensorsFile(whole.files[0]!)).tensors;
  assert.deepEqual(modules(peft.keys()).sort(), ['text_encoder', 'text_encoder_2', 'unet']);
  const layers = [...peft.keys()].filter((name) => name.includes('.layers.2.'));
  assert.deepEqual(modules(layers), ['text_encoder_2'], 'the last layer of the first encoder is not read');
  const kohya = await readSafetensorsFile(whole.files[1]!);
  assert.equal(kohya.metadata.get('ss_base_model_version'), 'sdxl_base_v1-0');
  assert.deepEqual(
    [...new Set([...kohya.tensors.keys()].map((n) => /^lora_[a-z0-9]+_/.exec(n)?.[0]))].sort(),
    ['lora_te1_', 'lora_te2_', 'lora_unet_'],
  );

  const draw = (name: string, run?: string) =>
    generate({
      ...(run === undefined ? { model } : { run }),
      prompts: ['a sks backpack'],
      output: join(folder, name),
      steps: 2,
      threads: 1,
    });
  const [learnt] = await draw('learnt', resumed.run);
  const [plain] = await draw('plain');
  assert.ok(!(await readFile(learnt!)).equals(await readFile(plain!)), 'what was learnt changes the picture');
});
