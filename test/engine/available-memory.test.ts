import assert from 'node:assert/strict';
import { mkdir, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { availableMemory, controlGroupMemory } from '../../src/engine/available-memory.js';
import { temporaryFolder } from '../temporary-folder.js';

/** A file system with these files and nothing else. */
async function fileSystem(t: TestContext, files: Readonly<Record<string, string>>): Promise<string> {
  const root = await temporaryFolder(t);
  for (const [path, text] of Object.entries(files)) {
    await mkdir(dirname(join(root, path)), { recursive: true });
    await writeFile(join(root, path), text);
  }
  return root;
}

test('what is left of a control group of version 2: the least of its own limit and of those above it', async (t) => {
  const files = {
    'proc/self/cgroup': '0::/a/b\n',
    'sys/fs/cgroup/a/b/memory.max': 'max\n',
    'sys/fs/cgroup/a/b/memory.stat': 'anon 10\nfile 500\n',
    'sys/fs/cgroup/a/memory.max': '1000\n',
    'sys/fs/cgroup/a/memory.stat': 'anon 300\nfile 650\n',
  };
  assert.equal(controlGroupMemory(await fileSystem(t, files)), 700, 'copies of files are not held');
  const own = { ...files, 'sys/fs/cgroup/a/b/memory.max': '200\n' };
  assert.equal(controlGroupMemory(await fileSystem(t, own)), 190);
});

test('of version 1, also where a container sees its own group as the root', async (t) => {
  const groups = '9:name=systemd:/\n4:cpu,memory:/docker/x\n3:cpuset:/memory\n0::/\n';
  const files = {
    'proc/self/cgroup': groups,
    'sys/fs/cgroup/memory/memory.limit_in_bytes': '9223372036854771712\n',
    'sys/fs/cgroup/memory/memory.stat': 'rss 1\ntotal_cache 900\ntotal_rss 400\n',
    'sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes': '1000\n',
    'sys/fs/cgroup/memory/docker/x/memory.stat': 'rss 1\ntotal_rss 250\n',
  };
  assert.equal(controlGroupMemory(await fileSystem(t, files)), 750);
  const inside = {
    'proc/self/cgroup': groups,
    'sys/fs/cgroup/memory/memory.limit_in_bytes': '2000\n',
    'sys/fs/cgroup/memory/memory.stat': 'total_rss 400\n',
  };
  assert.equal(controlGroupMemory(await fileSystem(t, inside)), 1600);
});

test('no control group, or none with a limit', async (t) => {
  assert.equal(controlGroupMemory(await fileSystem(t, {})), undefined);
  assert.equal(controlGroupMemory(await fileSystem(t, { 'proc/self/cgroup': '0::/\n' })), undefined);
});

test('the machine has some memory', () => {
  const bytes = availableMemory();
  assert.ok(Number.isFinite(bytes) && bytes > 2 ** 20);
});
