import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { test } from 'node:test';

const processLines = new URL('../../bench/process-lines.js', import.meta.url).href;

test('a benchmark ends although a process of one of its sides lives on and holds the pipes', () => {
  const side = `
    const { pid } = require('node:child_process').spawn(process.execPath, ['-e', 'setTimeout(() => {}, 60000)'], { stdio: 'inherit' });
    console.log(JSON.stringify({ pid }));
    setInterval(() => {}, 1000);`;
  const bench = `
    import { LineProcess } from ${JSON.stringify(processLines)};
    const process = new LineProcess(${JSON.stringify(process.execPath)}, ['-e', ${JSON.stringify(side)}]);
    console.log((await process.read()).pid);
    process.stop();`;
  const { status, stdout, error } = spawnSync(process.execPath, ['--input-type=module', '-e', bench], {
    encoding: 'utf8',
    timeout: 30_000,
  });
  const pid = Number(stdout);
  assert.ok(pid > 0, 'the side has started');
  assert.doesNotThrow(() => process.kill(pid), 'its process was there to the end');
  assert.equal(error, undefined);
  assert.equal(status, 0);
});
