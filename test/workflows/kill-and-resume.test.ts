import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { readdir, readFile } from 'node:fs/promises';
import { join, relative } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { Random } from '../../src/tensor/random.js';
import { temporaryFolder } from '../temporary-folder.js';
import { writePictures } from './tiny-run.js';

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

/** Every file of a run that must not depend on when it was made, with its bytes. Times are in timings.jsonl and on the report. */
async function contents(folder: string): Promise<Map<string, string>> {
  const found = new Map<string, string>();
  for (const entry of await readdir(folder, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile()) continue;
    const path = join(entry.parentPath, entry.name);
    const name = relative(folder, path);
    if (name === 'timings.jsonl' || name === 'report.html') continue;
    found.set(name, (await readFile(path)).toString('base64'));
  }
  return found;
}

test(`a run killed at ${KILLS} random moments and resumed ends in the same bytes as one that was not`, async (t) => {
  const folder = await temporaryFolder(t);
  const images = await writePictures(join(folder, 'images'));
  const reference = join(folder, 'reference');
  const before = performance.now();
  assert.equal(await runProcess(images, reference), false);
  const duration = performance.now() - before;
  const expected = await contents(reference);
  assert.ok(expected.has('checkpoints/step-000009/state.safetensors'));

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
