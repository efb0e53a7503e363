import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createEvaluateCommand } from '../../src/cli/evaluate.js';
import type { EvaluateOptions } from '../../src/workflows/evaluate.js';
import { callMain, entry } from './terminal.js';

test('evaluate makes methods and subjects of its flags, and writes the paths of its files', async () => {
  let asked: EvaluateOptions | undefined;
  const evaluate = entry((terminal) =>
    createEvaluateCommand(terminal, {
      evaluate: async ({ onEvent, signal: _, ...options }) => {
        onEvent?.({ kind: 'stage', name: 'drawing pictures', done: 1, total: 4, secondsLeft: 90 });
        asked = options;
        return {
          table: 'e/t.md',
          csv: 'e/t.csv',
          subjectsCsv: 'e/s.csv',
          scores: 'e/s.json',
          page: 'e/i.html',
        };
      },
      readSubjects: async (path) => ({ [path]: { class: 'hen' } }),
    }),
  );
  const flags = [
    ...'--references photos/dog --run runs/dog/ --output e --dino d --clip c --class dog --prompts p.txt'.split(
      ' ',
    ),
    ...['--method', 'A = b=runs/a', '--pictures', 'Theirs=pics', '--subjects', 'other', '--baseline', 'dog'],
    ...'--num-images 2 --seed 1 --steps 3 --guidance-scale 4 --resolution 64 --resamples 500 --model m'.split(
      ' ',
    ),
    ...'--protocol customconcept101 --text-with-token --threads 1'.split(' '),
  ];
  const { status, out, err } = await callMain(['evaluate', ...flags], { evaluate });
  assert.equal(status, 0, err);
  assert.deepEqual(asked, {
    references: 'photos/dog',
    methods: [
      { name: 'A', runs: 'b=runs/a' },
      { name: 'dog', runs: 'runs/dog/' },
      { name: 'Theirs', pictures: 'pics' },
    ],
    subjects: { other: { class: 'hen' }, dog: { class: 'dog', prompts: 'p.txt' } },
    output: 'e',
    dino: 'd',
    clip: 'c',
    baseline: 'dog',
    numImages: 2,
    seed: 1,
    steps: 3,
    guidanceScale: 4,
    resolution: 64,
    resamples: 500,
    model: 'm',
    protocol: 'customconcept101',
    textWithToken: true,
    threads: 1,
  });
  assert.equal(out, 'e/t.md\ne/t.csv\ne/s.csv\ne/s.json\ne/i.html\n');
  assert.match(err, /^drawing pictures 1\/4 {2}1 min 30 s left\n$/);

  const odd = await callMain(['evaluate', '--references', 'r', '--output', 'e', '--method', 'runs/a'], {
    evaluate,
  });
  assert.equal(odd.status, 2);
  assert.match(odd.err, /^--method runs\/a: expected a name and a folder, such as DPG=runs\/dpg\./);
  const missing = await callMain(['evaluate', '--run', 'r'], { evaluate });
  assert.match(missing.err, /^portrayal evaluate needs --references and --output\./);
});
