import assert from 'node:assert/strict';
import { suite, test } from 'node:test';
import { Graph } from '../../src/onnx/graph.js';
import { argMax, max, mean, min, sum, sumTo } from '../../src/onnx/reduction.js';
import { inferenceTests, refusalTests } from './inference.js';

suite('reductions: types and shapes', () => {
  inferenceTests({
    'over everything': [(x) => sum(x([2, 3])), 'float32[]'],
    'over everything, axes kept': [(x) => sum(x([2, 3]), undefined, { keepDims: true }), 'float32[1, 1]'],
    'over some axes': [(x) => mean(x([2, 3, 4]), [0, -1]), 'float32[3]'],
    'axes kept': [(x) => max(x([2, 3, 4]), [1], { keepDims: true }), 'float32[2, 1, 4]'],
    'of integers': [(x) => min(x([2, 3], 'int64'), [0]), 'int64[3]'],
    'index of the maximum': [(x) => argMax(x([2, 3, 4]), -2), 'int64[2, 4]'],
    'down to a shape that was broadcast': [(x) => sumTo(x([5, 2, 3, 4]), [2, 1, 4]), 'float32[2, 1, 4]'],
    'down to a scalar': [(x) => sumTo(x([2, 3]), []), 'float32[]'],
  });

  refusalTests({
    'an axis that is not there': [(x) => sum(x([2, 3]), [2]), 'axis 2 of a tensor of rank 2'],
    'an axis that is no whole number': [(x) => argMax(x([2, 3]), 0.5), 'axis 0.5 of a tensor of rank 2'],
  });
});

test('a reduction over no axes is the value itself', () => {
  const x = new Graph().input('x', 'float32', [2, 3]);
  assert.equal(sum(x, []), x);
  assert.equal(sumTo(x, [2, 3]), x);
});
