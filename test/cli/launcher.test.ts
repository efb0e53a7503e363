import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { cp, mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { allocatorSettings } from '../../src/engine/allocator.js';
import { temporaryFolder } from '../temporary-folder.js';

const launcher = fileURLToPath(new URL('../../../bin/portrayal.js', import.meta.url));

const built = (file: string): string => fileURLToPath(new URL(`../../src/${file}`, import.meta.url));

/** A package that has the launcher and this command line, if any. */
async function installed(t: TestContext, main?: string): Promise<string> {
  const folder = await temporaryFolder(t);
  await cp(launcher, join(folder, 'bin', 'portrayal.js'));
  await writeFile(join(folder, 'package.json'), '{ "type": "module" }');
  if (main !== undefined) {
    await mkdir(join(folder, 'dist', 'src', 'cli'), { recursive: true });
    await writeFile(join(folder, 'dist', 'src', 'cli', 'main.js'), main);
    for (const file of ['cli/restart.js', 'engine/allocator.js'])
      await cp(built(file), join(folder, 'dist', 'src', file));
  }
  return join(folder, 'bin', 'portrayal.js');
}

function start(script: string, ...args: string[]) {
  return startWith({}, script, ...args);
}

/** Without the allocator's settings in the environment, but for these. */
function startWith(env: Record<string, string>, ...args: string[]) {
  const given = Object.entries(process.env).filter(
    ([name]) => !(name in allocatorSettings) && name !== 'GLIBC_TUNABLES',
  );
  const { status, stdout, stderr } = spawnSync(process.execPath, args, {
    encoding: 'utf8',
    env: { ...Object.fromEntries(given), ...env },
  });
  return { status, stdout, stderr };
}

/** Runs before the launcher. */
const before = (code: string): string[] => ['--import', `data:text/javascript,${encodeURIComponent(code)}`];

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
  const older = before(`Object.defineProperty(process.versions, 'node', { value: '18.20.0' });`);
  const { status, stderr } = startWith({}, ...older, script);
  assert.equal(status, 1);
  assert.equal(stderr, 'portrayal needs Node 20.9 or newer; this is Node 18.20.0.\n');
});

const settingsAsSeen = `JSON.stringify(['MALLOC_ARENA_MAX', 'MALLOC_MMAP_THRESHOLD_', 'MALLOC_TRIM_THRESHOLD_'].map((name) => process.env[name]))`;

test('on Linux the launcher starts itself again with the settings of the allocator, and only once', async (t) => {
  const script = await installed(
    t,
    `export async function main(args) { process.stdout.write(args.join() + ${settingsAsSeen}); return 7; }`,
  );
  // A Node without the call gets one that starts another process and ends with it: the rest is the same.
  const call = before(`
    import { spawnSync } from 'node:child_process';
    Object.defineProperty(process, 'platform', { value: 'linux' });
    process.execve ??= (file, args, env) => {
      const { status } = spawnSync(file, args.slice(1), { env, stdio: 'inherit' });
      process.exit(status);
    };`);
  const settings = JSON.stringify(Object.values(allocatorSettings));
  assert.deepEqual(startWith({}, ...call, script, 'train', '--steps'), {
    status: 7,
    stdout: `train,--steps${settings}`,
    stderr: '',
  });
});

test('what the user has set of the allocator stays', async (t) => {
  const script = await installed(
    t,
    `export async function main() { process.stdout.write(${settingsAsSeen}); return 0; }`,
  );
  const never = before(`process.execve = () => { throw new Error('started again'); };`);
  assert.deepEqual(startWith({ MALLOC_ARENA_MAX: '4' }, ...never, script), {
    status: 0,
    stdout: '["4",null,null]',
    stderr: '',
  });
  assert.equal(startWith({ GLIBC_TUNABLES: 'glibc.malloc.hugetlb=1' }, ...never, script).status, 0);
});
