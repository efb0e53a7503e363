import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, readdir, readFile, symlink, writeFile } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join, relative } from 'node:path';
import { test } from 'node:test';
import { RunError } from '../../src/errors.js';
import { removeStaleTemporaries } from '../../src/formats/atomic-file.js';
import { RunLock } from '../../src/training/run-lock.js';
import { temporaryFolder } from '../temporary-folder.js';

const busyHere = (error: unknown) =>
  error instanceof RunError && error.message.includes(`process ${process.pid} is writing`);

/** A lock whose process cannot be alive: of this process's number, but of an earlier boot. */
const deadLock = (nonce: string) =>
  `${JSON.stringify({ pid: process.pid, host: hostname(), started: 'an-earlier-boot/12', nonce })}\n`;

async function settled(acquiring: Promise<RunLock>[]): Promise<{ won: RunLock[]; lost: unknown[] }> {
  const results = await Promise.allSettled(acquiring);
  return {
    won: results.flatMap((r) => (r.status === 'fulfilled' ? [r.value] : [])),
    lost: results.flatMap((r) => (r.status === 'rejected' ? [r.reason] : [])),
  };
}

test('of many who ask at once within one process, one gets the folder, whatever they call it', async (t) => {
  const folder = join(await temporaryFolder(t), 'run');
  const names = [folder, `${folder}/`, join(folder, '..', 'run'), relative(process.cwd(), folder)];
  for (let round = 0; round < 5; round++) {
    const { won, lost } = await settled([...names, ...names].map((name) => RunLock.acquire(name)));
    assert.equal(won.length, 1);
    for (const error of lost) assert.ok(busyHere(error), String(error));
    await won[0]!.release();
    assert.deepEqual(await readdir(folder), []);
  }
});

test('where the start of a process cannot be read, its own lock is still not taken for a dead one', async (t) => {
  const folder = join(await temporaryFolder(t), 'run');
  const lock = await RunLock.acquire(folder);
  const path = join(folder, 'run.lock');
  const holder = JSON.parse(await readFile(path, 'utf8')) as object;
  await writeFile(path, JSON.stringify({ ...holder, started: '' }));
  await symlink(folder, `${folder}-alias`, 'junction');
  await assert.rejects(RunLock.acquire(folder), busyHere);
  await assert.rejects(RunLock.acquire(`${folder}-alias`), busyHere);
  await lock.release();
  await (await RunLock.acquire(`${folder}-alias`)).release();
  assert.deepEqual(await readdir(folder), []);
});

test("only one's own lock is released", async (t) => {
  const folder = join(await temporaryFolder(t), 'run');
  const lock = await RunLock.acquire(folder);
  const path = join(folder, 'run.lock');
  const other = JSON.stringify({ pid: 1, host: 'another-machine', started: '', nonce: 'theirs' });
  await writeFile(path, other);
  await lock.release();
  await lock.release();
  assert.equal(await readFile(path, 'utf8'), other);
  await assert.rejects(RunLock.acquire(folder), /process 1 on another-machine/);
});

test('of many takeovers of a dead lock through different paths, one passes', async (t) => {
  const root = await temporaryFolder(t);
  const folder = join(root, 'run');
  await mkdir(folder);
  const aliases = [0, 1, 2, 3, 4, 5].map((i) => join(root, `alias-${i}`));
  for (const alias of aliases) await symlink(folder, alias, 'junction');
  for (let round = 0; round < 20; round++) {
    await writeFile(join(folder, 'run.lock'), deadLock(`dead-${round}`));
    const { won, lost } = await settled(aliases.map((alias) => RunLock.acquire(alias)));
    assert.equal(won.length, 1, `round ${round}: ${won.length} hold the folder`);
    for (const error of lost) assert.ok(busyHere(error), String(error));
    await removeStaleTemporaries(folder);
    assert.deepEqual(await readdir(folder), ['run.lock']);
    await won[0]!.release();
    assert.deepEqual(await readdir(folder), []);
  }
});

test('of processes that take a dead lock over at once, one passes', async (t) => {
  const root = await temporaryFolder(t);
  const module = new URL('../../src/training/run-lock.js', import.meta.url).href;
  const program = `
    import { RunLock } from ${JSON.stringify(module)};
    let lock;
    process.on('message', async (folder) => {
      if (folder === 'release') { await lock?.release(); lock = undefined; process.send('released'); }
      else process.send(await RunLock.acquire(folder).then((l) => { lock = l; return 'won'; }, (e) => e.name));
    });
    process.send('ready');`;
  const children: ChildProcess[] = [0, 1, 2].map(() =>
    spawn(process.execPath, ['--input-type=module', '-e', program], {
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
    }),
  );
  t.after(() => {
    for (const child of children) child.kill('SIGKILL');
  });
  const answers = () =>
    Promise.all(children.map(async (child) => (await once(child, 'message'))[0] as string));
  await answers();
  for (let round = 0; round < 30; round++) {
    const folder = join(root, `run-${round}`);
    await mkdir(folder);
    await writeFile(join(folder, 'run.lock'), deadLock(`dead-${round}`));
    const outcomes = answers();
    for (const child of children) child.send(folder);
    assert.deepEqual((await outcomes).sort(), ['RunError', 'RunError', 'won']);
    const released = answers();
    for (const child of children) child.send('release');
    await released;
  }
});

test('a takeover that was itself killed is taken over, and nothing of it stays', async (t) => {
  const folder = join(await temporaryFolder(t), 'run');
  const module = new URL('../../src/training/run-lock.js', import.meta.url).href;
  // Dies where the claim is made and the lock not yet replaced: the rename is what it never comes to.
  const program = `
    import fs from 'node:fs/promises';
    import { syncBuiltinESMExports } from 'node:module';
    fs.rename = () => { process.kill(process.pid, 'SIGKILL'); return new Promise(() => {}); };
    syncBuiltinESMExports();
    const { RunLock } = await import(${JSON.stringify(module)});
    setInterval(() => {}, 1000);
    await RunLock.acquire(process.argv[1]);`;
  await mkdir(folder);
  for (const text of [deadLock('dead'), '']) {
    await writeFile(join(folder, 'run.lock'), text);
    const child = spawn(process.execPath, ['--input-type=module', '-e', program, folder], {
      stdio: 'inherit',
    });
    assert.deepEqual(await once(child, 'exit'), [null, 'SIGKILL']);
    assert.equal((await readdir(folder)).length, 2);
    const lock = await RunLock.acquire(folder);
    assert.deepEqual(await readdir(folder), ['run.lock']);
    await lock.release();
    assert.deepEqual(await readdir(folder), []);
  }
});
