import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { createCommand } from '../../src/cli/command.js';
import { CancelledError, InputError } from '../../src/errors.js';
import { callMain, entry } from './terminal.js';

test('without arguments, and when asked, the help lists the commands on the standard output', async () => {
  for (const args of [[], ['--help'], ['-h'], ['help']]) {
    const { status, out, err } = await callMain(args);
    assert.equal(status, 0);
    assert.equal(err, '');
    for (const name of ['demo', 'train', 'generate', 'pretrain']) {
      assert.match(out, new RegExp(`^ {2}${name} +[A-Z]`, 'm'));
    }
    assert.ok(!out.includes('\x1b'), 'no colours where there is no terminal');
  }
});

test('each command has its help', async () => {
  for (const name of ['demo', 'train', 'generate', 'pretrain']) {
    for (const args of [
      [name, '--help'],
      ['help', name],
    ]) {
      const { status, out, err } = await callMain(args);
      assert.deepEqual({ status, err }, { status: 0, err: '' });
      assert.match(out, new RegExp(`^Usage: portrayal ${name} `));
      assert.ok(out.split('\n').every((line) => line.length <= 110));
    }
  }
});

test('the version is that of the package', async () => {
  const { version } = JSON.parse(readFileSync(new URL('../../../package.json', import.meta.url), 'utf8')) as {
    version: string;
  };
  assert.deepEqual(await callMain(['--version']), { status: 0, out: `${version}\n`, err: '' });
});

test('an unknown command or flag ends with 2 and the nearest known one', async () => {
  const cases: [args: string[], message: RegExp][] = [
    [['trian'], /^Unknown command trian\. Did you mean train\?/],
    [
      ['paint'],
      /^Unknown command paint\. The commands are demo, train, generate, evaluate, merge, convert, pretrain\./,
    ],
    [['help', 'trian'], /^Unknown command trian\. Did you mean train\?/],
    [['--verison'], /^Unknown flag --verison\. Did you mean --version\?/],
    [['train', '--learing-rate', '1'], /^Unknown flag --learing-rate\. Did you mean --learning-rate\?/],
    [['train', '--learing_rate=1'], /^Unknown flag --learing-rate\. Did you mean --learning-rate\?/],
    [['train', '--modle', 'x'], /^Unknown flag --modle\. Did you mean --model\?/],
    [['train', '--frobnicate'], /^Unknown flag --frobnicate\. See "portrayal train --help"\.\n$/],
    [['train', '-x'], /^Unknown flag -x\. See/],
  ];
  for (const [args, message] of cases) {
    const { status, out, err } = await callMain(args);
    assert.deepEqual({ status, out }, { status: 2, out: '' });
    assert.match(err, message);
  }
});

test("the user's errors are told by their message alone, ours with the stack", async () => {
  const failing = (error: unknown) => ({
    fail: entry((terminal) =>
      createCommand('fail', terminal).action(async () => {
        throw error;
      }),
    ),
  });
  assert.deepEqual(await callMain(['fail'], failing(new InputError('a.jpg is no picture.'))), {
    status: 3,
    out: '',
    err: 'a.jpg is no picture.\n',
  });
  const cancelled = await callMain(['fail'], failing(new CancelledError('Stopped.')));
  assert.deepEqual(cancelled, { status: 130, out: '', err: 'Stopped.\n' });
  const bug = await callMain(['fail'], failing(new RangeError('index 3 of 3')));
  assert.equal(bug.status, 70);
  assert.match(bug.err, /^internal error: .*please report.*\nRangeError: index 3 of 3\n +at /);
  assert.equal((await callMain(['fail'], failing('thrown text'))).status, 70);
});

test('an error gets a line of its own below a progress bar', async () => {
  const failing = entry((terminal) =>
    createCommand('fail', terminal).action(() => {
      terminal.err.write('step 3 of 5');
      throw new InputError('No.');
    }),
  );
  assert.equal((await callMain(['fail'], { fail: failing })).err, 'step 3 of 5\nNo.\n');
});

test('only the command that is called is loaded', async () => {
  const loaded: string[] = [];
  const lazy = (name: string) => ({
    summary: name,
    load: async () => {
      loaded.push(name);
      return (terminal: Parameters<typeof createCommand>[1]) =>
        createCommand(name, terminal).action(() => undefined);
    },
  });
  const entries = { one: lazy('one'), two: lazy('two') };
  assert.equal((await callMain(['two'], entries)).status, 0);
  await callMain(['--help'], entries);
  assert.deepEqual(loaded, ['two']);
});
