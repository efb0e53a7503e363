import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { cp, mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { temporaryFolder } from '../temporary-folder.js';

const launcher = fileURLToPath(new URL('../../../bin/portrayal.js', import.meta.url));

/** A package that has the launcher and this command line, if any. */
async function installed(t: TestContext, main?: string): Promise<string> {
  const folder = await temporaryFolder(t);
  await cp(launcher, join(folder, 'bin', 'portrayal.js'));
  await writeFile(join(folder, 'package.json'), '{ "type": "module" }');
  if (main !== undefined) {
    await mkdir(join(folder, 'dist', 'src', 'cli'), { recursive: true });
    await writeFile(join(folder, 'dist', 'src', 'cli', 'main.js'), main);
  }
  return join(folder, 'bin', 'portrayal.js');
}

function start(script: string, ...args: string[]) {
  const { status, stdout, stderr } = spawnSync(process.execPath, [script, ...args], { encoding: 'utf8' });
  return { status, stdout, stderr };
}

test('the launcher passes the arguments on and ends with the status', async (t) => {
  const script = await installed(
    t,
    'export async function main(args) { process.stdout.write(args.join()); return 7; }',
  );
  assert.deepEqual(start(script, 'train', '--steps'), { status: 7, stdout: 'train,--steps', stderr: '' });
});

test('before the build, the launcher says what to do', async (t) => {
  const { status, stderr } = start(await installed(t));
  assert.equal(status, 1);
  assert.match(stderr, /^portrayal is not installed or not built here\. Run "npm ci"/);
  assert.equal(start(await installed(t, "import 'a-package-that-is-not-there';")).stderr, stderr);
});

test('an old Node is told which one is needed', async (t) => {
  const script = await installed(t, 'export async function main() { return 0; }');
  const loader = `Object.defineProperty(process.versions, 'node', { value: '18.20.0' });`;
  const { status, stderr } = start('--import', `data:text/javascript,${encodeURIComponent(loader)}`, script);
  assert.equal(status, 1);
  assert.equal(stderr, 'portrayal needs Node 20.9 or newer; this is Node 18.20.0.\n');
});
