import assert from 'node:assert/strict';
import { test } from 'node:test';
import { EarlyStopping } from '../../src/training/early-stopping.js';

test('a run is over after so many validations without anything better than the best', () => {
  const stopping = new EarlyStopping(2);
  const course: [step: number, score: number, best: number | undefined, over: boolean][] = [
    [0, 0.9, undefined, false], // before training: it is no result
    [10, 0.3, 10, false],
    [20, 0.5, 20, false],
    [30, 0.4, 20, false],
    [40, 0.6, 40, false],
    [50, 0.6, 40, false], // as good is not better
    [60, 0.1, 40, true],
    [70, 0.7, 70, false],
  ];
  assert.equal(stopping.isOver, false);
  for (const [step, score, best, over] of course) {
    stopping.add(step, score);
    assert.deepEqual([stopping.best?.step, stopping.isOver], [best, over], `after step ${step}`);
  }
});

test('a resumed run takes up the scores of its metrics', () => {
  const records = [
    { step: 0, 'judge.score': 0.9 },
    { step: 1, loss: 2 },
    { step: 10, loss: 1 },
    { step: 10, 'judge.score': 0.5 },
    { step: 20, 'judge.score': 0.4 },
  ];
  const patient = new EarlyStopping(2, records);
  assert.deepEqual([patient.best?.step, patient.isOver], [10, false]);
  assert.equal(new EarlyStopping(1, records).isOver, true);
  assert.deepEqual([new EarlyStopping(1).best, new EarlyStopping(1).isOver], [undefined, false]);
});
