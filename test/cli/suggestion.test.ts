import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { editDistance, nearestWord } from '../../src/cli/suggestion.js';

test('distances of known pairs', () => {
  const pairs: [string, string, number][] = [
    ['', '', 0],
    ['', 'abc', 3],
    ['kitten', 'sitting', 3],
    ['train', 'trian', 1],
    ['ca', 'abc', 3],
  ];
  for (const [a, b, distance] of pairs) assert.equal(editDistance(a, b), distance, `${a} ${b}`);
});

test('the distance is symmetric, zero only for equal words, and at most the longer length', () => {
  const word = fc.string({ maxLength: 12 });
  fc.assert(
    fc.property(word, word, (a, b) => {
      const distance = editDistance(a, b);
      assert.equal(distance, editDistance(b, a));
      assert.equal(distance === 0, a === b);
      assert.ok(distance <= Math.max(a.length, b.length));
      assert.ok(distance >= Math.abs(a.length - b.length));
    }),
  );
});

test('near words are suggested, far ones are not', () => {
  const known = ['--steps', '--seed', '--learning-rate'];
  assert.equal(nearestWord('--step', known), '--steps');
  assert.equal(nearestWord('--learnign-rate', known), '--learning-rate');
  assert.equal(nearestWord('--frobnicate', known), undefined);
  assert.equal(nearestWord('x', []), undefined);
});
