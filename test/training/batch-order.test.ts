import assert from 'node:assert/strict';
import { test } from 'node:test';
import { picksOf, turnOf } from '../../src/training/batch-order.js';

test('all pictures are seen equally often, whatever their bucket, and batches are of one bucket', () => {
  const buckets = [[0, 3, 4], [1], [2, 5]];
  const counts = buckets.map((b) => b.length);
  const seen = new Array<number>(6).fill(0);
  const turns: number[] = [];
  for (let index = 0; index < 4 * 6; index++) {
    const { bucket, use } = turnOf(7, counts, index);
    turns.push(bucket);
    for (const { picture } of picksOf(7, ['instance', bucket], buckets[bucket]!, 2, use)) {
      assert.ok(buckets[bucket]!.includes(picture));
      seen[picture]!++;
    }
  }
  assert.deepEqual(seen, new Array(6).fill(8));
  for (let round = 0; round < 4; round++) {
    assert.deepEqual(turns.slice(6 * round, 6 * (round + 1)).sort(), [0, 0, 0, 1, 2, 2]);
  }
  assert.ok(new Set([0, 1, 2, 3].map((r) => turns.slice(6 * r, 6 * r + 6).join())).size > 1, 'rounds differ');
});

test('the order follows from the seed and the index alone', () => {
  const at = (seed: number, index: number) => turnOf(seed, [3, 2, 4], index);
  const forwards = Array.from({ length: 30 }, (_, i) => at(1, i));
  const backwards = Array.from({ length: 30 }, (_, i) => at(1, 29 - i)).reverse();
  assert.deepEqual(forwards, backwards);
  assert.notDeepEqual(
    forwards,
    Array.from({ length: 30 }, (_, i) => at(2, i)),
  );
});

test('with one bucket every turn is its own', () => {
  for (let index = 0; index < 20; index++) assert.deepEqual(turnOf(3, [5], index), { bucket: 0, use: index });
});
