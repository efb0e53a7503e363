import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { readdir, readFile } from 'node:fs/promises';
import { join, relative } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { readEvents } from '../../src/formats/tfevents.js';
import { Random } from '../../src/tensor/random.js';
import { runFiles } from '../../src/training/run-folder.js';
import { temporaryFolder } from '../temporary-folder.js';
import { writeExtras, writePictures } from './tiny-run.js';

const KILLS = 20;
const program = fileURLToPath(new URL('./tiny-run-process.js', import.meta.url));

/** Runs the process to its end, or kills it after this many milliseconds. Resolves to whether it was killed. */
function runProcess(images: string, output: string, killAfter?: number): Promise<boolean> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [program, images, output], { stdio: ['ignore', 'ignore', 'pipe'] });
    let errors = '';
    child.stderr.on('data', (chunk: Buffer) => {
      errors += chunk.toString();
    });
    const timer = killAfter === undefined ? undefined : setTimeout(() => child.kill('SIGKILL'), killAfter);
    child.on('exit', (code, signal) => {
      clearTimeout(timer);
      if (signal === 'SIGKILL') resolve(true);
      else if (code === 0) resolve(false);
      else reject(new Error(`the run ended with ${code ?? signal}: ${errors}`));
    });
  });
}

/** An event file without the times of day: each record's data begins with one, and its checksum ends it. */
function withoutTimes(events: Buffer): Buffer {
  let start = 0;
  const kept = [...readEvents(events)].map(({ end }) => {
    const data = events.subarray(start + 12 + 9, end - 4);
    start = end;
    return data;
  });
  assert.equal(start, events.length, 'the last event is whole');
  return Buffer.concat(kept);
}

/** Every file of a run that must not depend on when it was made, with its bytes. Times are in timings.jsonl and on the report. */
async function contents(folder: string): Promise<Map<string, string>> {
  const found = new Map<string, string>();
  for (const entry of await readdir(folder, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile()) continue;
    const path = join(entry.parentPath, entry.name);
    const name = relative(folder, path);
    if (name === 'timings.jsonl' || name === 'report.html') continue;
    const bytes = await readFile(path);
    found.set(name, (name.startsWith('tensorboard') ? withoutTimes(bytes) : bytes).toString('base64'));
  }
  return found;
}

test(`a run killed at ${KILLS} random moments and resumed ends in the same bytes as one that was not`, async (t) => {
  const folder = await temporaryFolder(t);
  const images = await writePictures(join(folder, 'images'));
  await writeExtras(images);
  const reference = join(folder, 'reference');
  const before = performance.now();
  assert.equal(await runProcess(images, reference), false);
  const duration = performance.now() - before;
  const expected = await contents(reference);
  assert.ok(expected.has('checkpoints/step-000007/state.safetensors'));
  assert.ok([...expected.keys()].some((name) => name.startsWith('latents/')));
  for (const name of ['samples/step-000004.png', runFiles.tensorboard])
    assert.ok(expected.has(name), `${name} is missing`);
  const config = JSON.parse(Buffer.from(expected.get('config.json')!, 'base64').toString());
  assert.equal(new Set(config.captions).size, 3, 'every picture has a prompt of its own');

  const random = new Random(Number(process.env.KILL_SEED ?? 11), 'kills');
  let kills = 0;
  for (let run = 0; kills < KILLS; run++) {
    const output = join(folder, `killed-${run}`);
    while (await runProcess(images, output, 50 + random.uniform() * duration)) kills++;
    const found = await contents(output);
    assert.deepEqual([...found.keys()].sort(), [...expected.keys()].sort());
    for (const [name, bytes] of expected) assert.ok(found.get(name) === bytes, `${name} differs after kills`);
  }
  assert.ok(kills >= KILLS);
});
