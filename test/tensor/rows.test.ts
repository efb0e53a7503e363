import assert from 'node:assert/strict';
import { test } from 'node:test';
import { batchRows, concatRows } from '../../src/tensor/rows.js';
import { float32, int64 } from '../../src/tensor/tensor.js';

test('rows are joined in order, whatever their type and wherever their bytes lie', () => {
  const buffer = Float32Array.of(9, 1, 2, 3, 4, 9);
  const view = float32([1, 2, 2], buffer.subarray(1, 5));
  const more = float32([2, 2, 2], [5, 6, 7, 8, 9, 10, 11, 12]);
  assert.deepEqual(concatRows([view, more]), float32([3, 2, 2], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]));
  assert.deepEqual(concatRows([int64([1, 1], [7]), int64([1, 1], [-8])]), int64([2, 1], [7, -8]));
});

test('named rows become a batch; rows without names become nothing', () => {
  const rows = [
    { a: float32([1], [1]), b: float32([1, 2], [2, 3]) },
    { a: float32([1], [4]), b: float32([1, 2], [5, 6]) },
  ];
  assert.deepEqual(batchRows(rows), { a: float32([2], [1, 4]), b: float32([2, 2], [2, 3, 5, 6]) });
  assert.deepEqual(batchRows([{}, {}]), {});
});

test('rows of other shapes or types are refused', () => {
  assert.throws(() => concatRows([float32([1, 2], [1, 2]), float32([1, 3], [1, 2, 3])]), /float32 \[1, 3\]/);
  assert.throws(() => concatRows<'float32' | 'int64'>([float32([1], [1]), int64([1], [1])]), /int64 \[1\]/);
});
