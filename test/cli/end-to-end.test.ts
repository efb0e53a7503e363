import assert from 'node:assert/strict';
import { mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { writeSmallCheckpoint } from '../pretrained/small-checkpoints.js';
import { temporaryFolder } from '../temporary-folder.js';
import { callMain } from './terminal.js';

const root = new URL('../../../', import.meta.url);
const model = fileURLToPath(new URL('test/goldens/models/sd1-tiny', root));
const images = fileURLToPath(new URL('examples/teal-zigzag-star-backpack', root));
const PNG = Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);

test('train and generate, from flags to files', async (t) => {
  const folder = await temporaryFolder(t);
  const [run, out] = [join(folder, 'run'), join(folder, 'out')];
  const flags =
    '--method dreambooth --no-with-prior-preservation --steps 2 --sampling-steps 2 --num-validation-images 1 --threads 1';
  const command = [
    ...[
      'train',
      '--model',
      model,
      '--images',
      images,
      '--prompt',
      'a photo of sks backpack',
      '--output',
      run,
    ],
    ...flags.split(' '),
    ...['--validation-prompt', 'a sks backpack'],
  ];
  const trained = await callMain(command);
  assert.equal(trained.status, 0, trained.err);
  assert.match(trained.err, /^dreambooth: 5 pictures, /m);
  assert.match(trained.err, /^step 2\/2 {2}loss \d/m);
  assert.match(trained.err, /^ {2}.*report\.html$/m);
  assert.match(await readFile(join(run, 'report.html'), 'utf8'), /^<!doctype html>/);

  const again = await callMain(command);
  assert.equal(again.status, 6);
  assert.match(again.err, /--resume-from-checkpoint latest/);

  const drawn = await callMain([
    ...['generate', '--run', run, '--prompt', 'a sks backpack', '--output', out],
    ...'--num-images 2 --steps 2 --threads 1'.split(' '),
  ]);
  assert.equal(drawn.status, 0, drawn.err);
  const pictures = drawn.out.trimEnd().split('\n');
  assert.deepEqual(pictures, [join(out, '0000-a-sks-backpack.png'), join(out, '0001-a-sks-backpack.png')]);
  for (const picture of pictures) assert.deepEqual((await readFile(picture)).subarray(0, 8), PNG);
});

test('a checkpoint in a single file trains and draws like a folder', async (t) => {
  const folder = await temporaryFolder(t);
  const single = await writeSmallCheckpoint(folder, 'sd2-small');
  const [run, out] = [join(folder, 'run'), join(folder, 'out')];
  const trained = await callMain([
    ...['train', '--model', single, '--prediction-type', 'epsilon', '--images', images, '--output', run],
    ...['--prompt', 'a photo of sks backpack', '--validation-prompt', 'a sks backpack', '--resolution', '64'],
    ...'--no-with-prior-preservation --steps 1 --sampling-steps 1 --num-validation-images 1 --threads 1'.split(
      ' ',
    ),
  ]);
  assert.equal(trained.status, 0, trained.err);
  const config = JSON.parse(await readFile(join(run, 'config.json'), 'utf8')) as Record<string, unknown>;
  assert.deepEqual([config.model, config.predictionType], [single, 'epsilon']);
  const drawn = await callMain([
    ...['generate', '--run', run, '--prompt', 'a sks backpack', '--output', out],
    ...'--steps 1 --threads 1'.split(' '),
  ]);
  assert.equal(drawn.status, 0, drawn.err);
  assert.deepEqual((await readFile(drawn.out.trimEnd())).subarray(0, 8), PNG);
});

test("the user's mistakes end with one message and their own status", async (t) => {
  const folder = await temporaryFolder(t);
  const empty = join(folder, 'empty');
  await mkdir(empty);
  const train = ['train', '--prompt', 'a photo of sks dog', '--output', join(folder, 'run')];
  const cases: [args: string[], status: number, message: RegExp][] = [
    [[...train, '--images', empty, '--model', model], 3, /empty/],
    [[...train, '--images', images, '--model', empty], 4, /model_index\.json/],
    [[...train, '--images', images, '--model', model, '--resolution', '50'], 2, /--resolution 50/],
    [[...train, '--images', images, '--model', model, '--prompt', 'a photo of dog'], 3, /rare token/],
    [['generate', '--run', empty, '--prompt', 'a dog', '--output', folder], 6, /config\.json/],
  ];
  for (const [args, status, message] of cases) {
    const outcome = await callMain(args);
    assert.equal(outcome.status, status, outcome.err);
    assert.match(outcome.err, message);
    assert.doesNotMatch(outcome.err, /internal|\n {4}at /);
  }
});
