import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { type TestContext, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { interruptible } from '../../src/cli/interrupt.js';

const interrupt = new URL('../../src/cli/interrupt.js', import.meta.url).href;

/** A process that works until it is aborted, and then needs `ending` milliseconds to end. */
async function worker(t: TestContext, ending: number) {
  const program = `
    import { setTimeout as sleep } from 'node:timers/promises';
    import { interruptible } from ${JSON.stringify(interrupt)};
    await interruptible(console.log, 'Saving', async (signal) => {
      console.log('working');
      while (!signal.aborted) await sleep(10);
      await sleep(${ending});
      console.log('saved');
    });
    console.log('ended');
  `;
  const child = spawn(process.execPath, ['--input-type=module', '--eval', program], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  t.after(() => child.kill('SIGKILL'));
  let output = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    output += text;
  });
  const told = async (text: string): Promise<void> => {
    while (!output.includes(text)) await once(child.stdout, 'data');
  };
  await told('working');
  return { child, told, output: () => output };
}

async function end(child: ChildProcess): Promise<{ status: number | null; signal: NodeJS.Signals | null }> {
  const [status, signal] = (await once(child, 'close')) as [number | null, NodeJS.Signals | null];
  return { status, signal };
}

const HOURS = 1e7;

for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  test(`the first ${signal} lets the work end in order`, async (t) => {
    const { child, output } = await worker(t, 0);
    child.kill(signal);
    assert.deepEqual(await end(child), { status: 0, signal: null });
    assert.equal(output(), 'working\nSaving … Press Ctrl-C again to stop at once.\nsaved\nended\n');
  });
}

test('a second Ctrl-C stops at once, by the signal', async (t) => {
  const { child, told, output } = await worker(t, HOURS);
  child.kill('SIGINT');
  await told('Saving');
  await sleep(700);
  child.kill('SIGINT');
  assert.deepEqual(await end(child), { status: null, signal: 'SIGINT' });
  assert.match(output(), /again to stop at once\.\nStopped\.\n$/);
});

test('one Ctrl-C that arrives twice, as below npx, is one', async () => {
  const told: string[] = [];
  const aborted = await interruptible(
    (message) => told.push(message),
    'Saving',
    async (signal) => {
      process.emit('SIGINT', 'SIGINT');
      process.emit('SIGINT', 'SIGINT');
      return signal.aborted;
    },
  );
  assert.equal(aborted, true);
  assert.equal(told.length, 1);
  assert.deepEqual([process.listenerCount('SIGINT'), process.listenerCount('SIGTERM')], [0, 0]);
});
