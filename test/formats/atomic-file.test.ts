import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdir, open, readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { OutputError } from '../../src/errors.js';
import { outputError, removeStaleTemporaries, writeFileAtomic } from '../../src/formats/atomic-file.js';
import { temporaryFolder } from '../temporary-folder.js';

const module = new URL('../../src/formats/atomic-file.js', import.meta.url).href;
const importAtomicFile = `import { writeFileAtomic } from ${JSON.stringify(module)};`;

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);

test('text, bytes, and pieces from either kind of iterable arrive whole, and nothing else stays', async (t) => {
  const folder = await temporaryFolder(t);
  const path = join(folder, 'file');
  async function* later(): AsyncGenerator<Uint8Array> {
    yield bytes('four-');
    await Promise.resolve();
    yield bytes('five');
  }
  for (const [contents, expected] of [
    ['one', 'one'],
    [bytes('two'), 'two'],
    [[bytes('thr'), new Uint8Array(0), bytes('ee')], 'three'],
    [later(), 'four-five'],
    [[], ''],
  ] as const) {
    await writeFileAtomic(path, contents);
    assert.equal(await readFile(path, 'utf8'), expected);
  }
  assert.deepEqual(await readdir(folder), ['file']);
});

test('a source that fails midway leaves the old file and no temporary', async (t) => {
  const folder = await temporaryFolder(t);
  const path = join(folder, 'file');
  await writeFileAtomic(path, 'old');
  const failing = function* (): Generator<Uint8Array> {
    yield new Uint8Array(100_000);
    throw new Error('the source broke');
  };
  await assert.rejects(writeFileAtomic(path, failing()), /^Error: the source broke$/);
  assert.equal(await readFile(path, 'utf8'), 'old');
  assert.deepEqual(await readdir(folder), ['file']);
});

test('a handle opened before keeps the old contents', async (t) => {
  const folder = await temporaryFolder(t);
  const path = join(folder, 'file');
  await writeFileAtomic(path, 'old');
  const handle = await open(path);
  await writeFileAtomic(path, 'new');
  assert.equal(await handle.readFile('utf8'), 'old');
  await handle.close();
  assert.equal(await readFile(path, 'utf8'), 'new');
});

test('refusals of the operating system say what to do', async (t) => {
  const folder = await temporaryFolder(t);
  await mkdir(join(folder, 'inner'));
  await mkdir(join(folder, 'inner', 'full'));
  await writeFile(join(folder, 'file'), '');
  const cases: [string, RegExp][] = [
    [join(folder, 'absent', 'x'), /Cannot write .*x: its folder does not exist; create the folder first\./],
    [join(folder, 'file', 'x'), /a part of its path is a file, not a folder/],
    [join(folder, 'inner'), /a folder of that name is in the way/],
    [join(folder, 'x'.repeat(300)), /its name is too long/],
  ];
  for (const [path, message] of cases) {
    await assert.rejects(writeFileAtomic(path, 'x'), (error) => {
      assert.ok(error instanceof OutputError);
      assert.match(error.message, message);
      return true;
    });
  }
  assert.deepEqual((await readdir(folder)).sort(), ['file', 'inner']);
  const full = Object.assign(new Error('ENOSPC: no space left on device, write'), { code: 'ENOSPC' });
  assert.match(String(outputError('run/x', full)), /Cannot write run\/x: the disk is full; free some space/);
  const blocked = await mkdir(join(folder, 'file')).catch((error: unknown) => error);
  assert.match(
    String(outputError('run/x', blocked)),
    /Cannot write run\/x: a file of that name is in the way/,
  );
  const bug = new TypeError('x is undefined');
  assert.equal(outputError('run/x', bug), bug);
});

test('a disk that takes no more midway: the old file stays, the new one leaves nothing', async (t) => {
  const folder = await temporaryFolder(t);
  const path = join(folder, 'file');
  await writeFileAtomic(path, 'old');
  // A limit on the size of files is the refusal that any user can set for a process; a full disk takes the same way out.
  const program = `${importAtomicFile}
    const piece = new Uint8Array(100_000);
    await writeFileAtomic(${JSON.stringify(path)}, [piece, piece]).catch((e) => console.log(e.name + ': ' + e.message));`;
  const limited = `trap '' XFSZ; ulimit -f 100; exec "$0" --input-type=module -e "$1"`;
  const { stdout } = await promisify(execFile)('sh', ['-c', limited, process.execPath, program]);
  assert.match(stdout, /^OutputError: Cannot write .*file: the file system does not take files this large/);
  assert.equal(await readFile(path, 'utf8'), 'old');
  assert.deepEqual(await readdir(folder), ['file']);
});

test('a writer killed midway leaves the old file, and its temporary is found and removed', async (t) => {
  const folder = await temporaryFolder(t);
  const path = join(folder, 'weights.safetensors');
  await writeFileAtomic(path, 'old');
  const program = `${importAtomicFile}
    function* pieces() { yield new Uint8Array(1000); process.kill(process.pid, 'SIGKILL'); yield new Uint8Array(1000); }
    await writeFileAtomic(${JSON.stringify(path)}, pieces());`;
  const signal = await new Promise<string | null | undefined>((resolve) => {
    execFile(process.execPath, ['--input-type=module', '-e', program], (error) => resolve(error?.signal));
  });
  assert.equal(signal, 'SIGKILL');
  assert.equal(await readFile(path, 'utf8'), 'old');
  const left = (await readdir(folder)).filter((name) => name !== 'weights.safetensors');
  assert.equal(left.length, 1);
  await writeFile(join(folder, '.hidden'), 'of the user');
  await writeFile(join(folder, 'a.partial'), 'of the user');
  assert.deepEqual(await removeStaleTemporaries(folder), left);
  assert.deepEqual((await readdir(folder)).sort(), ['.hidden', 'a.partial', 'weights.safetensors']);
  assert.deepEqual(await removeStaleTemporaries(join(folder, 'absent')), []);
});
