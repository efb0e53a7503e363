import assert from 'node:assert/strict';
import { test } from 'node:test';
import { cosines, top1Accuracy } from '../../src/evaluation/retrieval.js';
import { float32 } from '../../src/tensor/tensor.js';

test('cosines do not depend on lengths, and a zero vector is like nothing', () => {
  const a = float32([2, 2], [3, 0, 1, 1]);
  const b = float32([3, 2], [0.5, 0, -2, 2, 0, 0]);
  const expected = [1, -Math.SQRT1_2, 0, Math.SQRT1_2, 0, 0];
  cosines(a, b).forEach((c, i) => {
    assert.ok(Math.abs(c - expected[i]!) < 1e-12, `${i}: ${c}`);
  });
});

test('the share of queries that find their own row', () => {
  const gallery = float32([3, 2], [1, 0, 0, 1, 1, 1]);
  assert.equal(top1Accuracy(gallery, gallery), 1);
  // The second is nearer to the third's direction, the third to the first's.
  assert.equal(top1Accuracy(float32([3, 2], [5, 1, 1, 1.1, 1, 0.1]), gallery), 1 / 3);
  // Between equal neighbours the earlier counts.
  assert.equal(top1Accuracy(float32([2, 1], [1, 1]), float32([2, 1], [2, 3])), 0.5);
});
