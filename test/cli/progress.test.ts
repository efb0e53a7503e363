import assert from 'node:assert/strict';
import { test } from 'node:test';
import { progressListener } from '../../src/cli/progress.js';
import { formatDuration } from '../../src/training/duration.js';
import type { ProgressEvent } from '../../src/training/events.js';

function recorder(isTTY: boolean, columns = 80) {
  const texts: string[] = [];
  return { texts, isTTY, columns, write: (text: string) => texts.push(text) };
}

function progress(step: number, steps: number): ProgressEvent {
  const rate = { learningRate: 1e-4, secondsPerStep: 0.5, secondsLeft: (steps - step) / 2 };
  return { kind: 'progress', step, steps, loss: 0.123456, reward: -0.5, critic: 2e-5, ...rate };
}

const CLEAR = '\x1b[2K';

/** What a terminal shows after the given output: one string a line. */
function screen(texts: string[]): string[] {
  const shown = [''];
  for (const text of texts
    .join('')
    .replaceAll(CLEAR, '¶')
    .split(/(\r|\n|¶)/)) {
    if (text === '\n') shown.push('');
    else if (text === '¶') shown[shown.length - 1] = '';
    else if (text !== '\r') shown[shown.length - 1] += text;
  }
  return shown;
}

test('in a pipe a plain line comes at the start and about every tenth', () => {
  const stream = recorder(false);
  const listener = progressListener(stream);
  for (let step = 1; step <= 200; step++) listener(progress(step, 200));
  assert.equal(stream.texts.length, 11);
  assert.equal(
    stream.texts[0],
    'step 1/200  loss 0.1235  reward -0.5000  critic 2.00e-5  0.50 s/step  1 min 40 s left\n',
  );
  assert.match(stream.texts[1]!, /^step 20\/200 /);
  assert.match(stream.texts[10]!, /^step 200\/200 .* 0 s left\n$/);
  assert.ok(stream.texts.every((text) => !text.includes('\x1b') && !text.includes('\r')));
});

test('on a terminal one line is rewritten within its width, and messages stay above it', () => {
  const stream = recorder(true, 60);
  let clock = 0;
  const listener = progressListener(stream, () => clock);
  for (let step = 1; step <= 50; step++) {
    clock += 1000;
    listener(progress(step, 50));
    if (step === 25) listener({ kind: 'warning', message: 'a.jpg is small' });
  }
  listener({ kind: 'finished', folder: 'runs/a', steps: 50, seconds: 75, files: ['runs/a/report.html'] });
  const shown = screen(stream.texts);
  assert.deepEqual(
    shown.map((line) => line.trim().split('  ')[0]),
    [
      'note: a.jpg is small',
      `${'━'.repeat(20)} step 50/50`,
      'finished 50 steps in 1 min 15 s',
      'runs/a/report.html',
      '',
    ],
  );
  assert.ok(shown.every((line) => line.length < 60));
});

test('a terminal is not written to more often than the eye can follow, but the end is always shown', () => {
  const stream = recorder(true);
  const listener = progressListener(stream, () => 5);
  for (let done = 0; done <= 1000; done++) listener({ kind: 'stage', name: 'drawing', done, total: 1000 });
  assert.ok(stream.texts.length <= 5);
  assert.deepEqual(screen(stream.texts), [`${'━'.repeat(20)} drawing 1000/1000`, '']);
});

test('starting and resuming say what a person needs to know', () => {
  const stream = recorder(false);
  const listener = progressListener(stream);
  const started = { kind: 'started', folder: 'runs/a', method: 'dpg', steps: 400, images: 5 } as const;
  listener({ ...started, fromStep: 0, trainableParameters: 280_000 });
  listener({ ...started, fromStep: 100, trainableParameters: 1_250_000 });
  // The error that comes with it tells this.
  listener({ kind: 'stopped', folder: 'runs/a', step: 120, steps: 400 });
  assert.deepEqual(stream.texts, [
    'dpg: 5 pictures, 280 k trainable parameters, 400 steps -> runs/a\n',
    'dpg: 5 pictures, 1.3 M trainable parameters, 400 steps, going on from step 100 -> runs/a\n',
  ]);
});

test('durations are written for people', () => {
  assert.deepEqual([0, 0.42, 9.94, 9.97, 59.4, 59.6, 3599.6, 3900, 360000].map(formatDuration), [
    '0 s',
    '0.4 s',
    '9.9 s',
    '10 s',
    '59 s',
    '1 min 00 s',
    '1 h 00 min',
    '1 h 05 min',
    '100 h 00 min',
  ]);
});

test('a download tells how far it is, how fast, and how long it will take', () => {
  const stream = { text: '', write: (text: string) => (stream.text += text) };
  const listener = progressListener(stream);
  for (let done = 0; done <= 1000; done++) {
    listener({
      kind: 'download',
      model: 'someone/model',
      bytes: done * 2.7e6,
      totalBytes: 2.7e9,
      bytesPerSecond: done === 0 ? 0 : 45e6,
      secondsLeft: done === 0 ? undefined : (1000 - done) * 0.06,
    });
  }
  const lines = stream.text.trimEnd().split('\n');
  assert.equal(lines.length, 11);
  assert.equal(lines[0], 'downloading someone/model  0 B of 2.70 GB');
  assert.equal(lines[5], 'downloading someone/model  1.35 GB of 2.70 GB  45.0 MB/s  30 s left');
  assert.equal(lines[10], 'downloading someone/model  2.70 GB of 2.70 GB');
});
