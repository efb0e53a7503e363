import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { cp, mkdir, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { temporaryFolder } from './temporary-folder.js';

const runner = fileURLToPath(new URL('./run.js', import.meta.url));

const passing = "import { test, describe } from 'node:test'; describe('d', () => test('good', () => {}));";
const failing = "import { test } from 'node:test'; test('bad', () => { throw new Error('no'); });";
const skipping = "import { test } from 'node:test'; test('later', { skip: true }, () => {});";

/** Runs the runner in a package with these compiled tests, of which `stale` has no source any more. */
async function runTests(
  t: TestContext,
  tests: Readonly<Record<string, string>>,
  { stale = '', words = [] as string[] } = {},
): Promise<{ status: number | null; last: string; output: string }> {
  const folder = await temporaryFolder(t);
  await mkdir(join(folder, 'test'));
  await cp(runner, join(folder, 'dist', 'test', 'run.js'));
  await writeFile(join(folder, 'package.json'), '{ "type": "module" }');
  for (const [name, code] of Object.entries(tests)) {
    const [source, compiled] = [
      join(folder, 'test', `${name}.ts`),
      join(folder, 'dist', 'test', `${name}.js`),
    ];
    for (const file of [source, compiled]) await mkdir(dirname(file), { recursive: true });
    await writeFile(compiled, code);
    if (name !== stale) await writeFile(source, '');
  }
  // Below a test runner, another one would not run anything.
  const { NODE_TEST_CONTEXT: _, ...env } = process.env;
  const script = join(folder, 'dist', 'test', 'run.js');
  const { status, stdout } = spawnSync(process.execPath, [script, ...words], { encoding: 'utf8', env });
  return { status, last: stdout.trimEnd().split('\n').at(-1)!, output: stdout };
}

test('passed and failed tests are counted on the last line, one each', async (t) => {
  const { status, last, output } = await runTests(t, {
    'a.test': passing,
    'deep/b.test': failing,
    'c.test': skipping,
    'not-a-test': failing,
  });
  assert.equal(last, '1 passed, 1 failed, 1 skipped');
  assert.equal(status, 1);
  assert.equal(output.match(/passed, /g)?.length, 1);
  assert.match(output, /✔ good/);
});

test('compiled files without a source are not run', async (t) => {
  const { status, last } = await runTests(t, { 'a.test': passing, 'b.test': failing }, { stale: 'b.test' });
  assert.deepEqual({ status, last }, { status: 0, last: '1 passed, 0 failed' });
});

test('words choose tests by their path', async (t) => {
  const tests = { 'one/a.test': passing, 'two/b.test': failing };
  assert.equal((await runTests(t, tests, { words: ['one'] })).last, '1 passed, 0 failed');
  assert.equal((await runTests(t, tests, { words: ['two/b'] })).last, '0 passed, 1 failed');
});

test('a file that does not load, and no test at all, are failures', async (t) => {
  const broken = await runTests(t, { 'a.test': "import './gone.js';" });
  assert.deepEqual({ status: broken.status, last: broken.last }, { status: 1, last: '0 passed, 1 failed' });
  const none = await runTests(t, {});
  assert.deepEqual({ status: none.status, last: none.last }, { status: 1, last: '0 passed, 0 failed' });
});
