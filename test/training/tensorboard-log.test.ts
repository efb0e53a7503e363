import assert from 'node:assert/strict';
import { appendFile, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { readEvents } from '../../src/formats/tfevents.js';
import { TensorboardLog } from '../../src/training/tensorboard-log.js';
import { temporaryFolder } from '../temporary-folder.js';

const pictures = new Map([['a sks dog', { width: 1, height: 1, png: Uint8Array.of(1, 2, 3) }]]);
const eventsOf = async (path: string) =>
  [...readEvents(await readFile(path))].map(({ step, images }) => ({ step, images }));
const version = { step: 0, images: false };

test('reopened after a step, the log forgets what came later and what was cut short', async (t) => {
  const path = join(await temporaryFolder(t), 'tensorboard', 'events');
  const first = await TensorboardLog.open(path);
  await first.appendPictures(0, pictures);
  for (let step = 1; step <= 4; step++) {
    await first.append({ step, loss: 1 / step, note: 'not a number' });
    if (step % 2 === 0) await first.appendPictures(step, pictures);
  }
  await first.close();
  await appendFile(path, (await readFile(path)).subarray(0, 20));

  const again = await TensorboardLog.open(path, 3);
  assert.deepEqual(
    [0, 2, 4].map((step) => again.hasPictures(step)),
    [true, true, false],
  );
  await again.append({ step: 4, loss: 0.25 });
  await again.close();
  assert.deepEqual(await eventsOf(path), [
    version,
    { step: 0, images: true },
    { step: 1, images: false },
    { step: 2, images: false },
    { step: 2, images: true },
    { step: 3, images: false },
    { step: 4, images: false },
  ]);

  await (await TensorboardLog.open(path)).close();
  assert.deepEqual(await eventsOf(path), [version, { step: 0, images: true }], 'from the start');
});
