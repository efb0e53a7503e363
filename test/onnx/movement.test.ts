import assert from 'node:assert/strict';
import { suite, test } from 'node:test';
import { Graph } from '../../src/onnx/graph.js';
import {
  concat,
  expand,
  flip,
  gather,
  matrixTranspose,
  pad,
  reshape,
  slice,
  split,
  squeeze,
  transpose,
  unsqueeze,
} from '../../src/onnx/movement.js';
import { inferenceTests, refusalTests } from './inference.js';

suite('movement: types and shapes', () => {
  inferenceTests({
    'reshape with a free extent': [(x) => reshape(x([2, 3, 4]), [4, -1]), 'float32[4, 6]'],
    'reshape to a scalar': [(x) => reshape(x([1, 1]), []), 'float32[]'],
    squeeze: [(x) => squeeze(x([1, 2, 1]), [0, -1]), 'float32[2]'],
    unsqueeze: [(x) => unsqueeze(x([2, 3]), [0, -1]), 'float32[1, 2, 3, 1]'],
    transpose: [(x) => transpose(x([2, 3, 4]), [2, 0, 1]), 'float32[4, 2, 3]'],
    'exchange of the last two axes': [(x) => matrixTranspose(x([2, 3, 4])), 'float32[2, 4, 3]'],
    concat: [(x) => concat([x([2, 3]), x([2, 1]), x([2, 2])], -1), 'float32[2, 6]'],
    'a piece of a split': [(x) => split(x([2, 6]), [1, 2, 3], 1)[2]!, 'float32[2, 3]'],
    slice: [(x) => slice(x([2, 9]), 1, 1, 8, 3), 'float32[2, 3]'],
    'slice with bounds from the back': [(x) => slice(x([9]), 0, -4, -1), 'float32[3]'],
    'slice past the end': [(x) => slice(x([9]), 0, 5, 100), 'float32[4]'],
    'slice backwards': [(x) => slice(x([9]), 0, 8, -10, -2), 'float32[5]'],
    flip: [(x) => flip(x([2, 3, 1]), [0, 2]), 'float32[2, 3, 1]'],
    pad: [
      (x) =>
        pad(x([2, 3]), [
          [0, 1],
          [2, 0],
        ]),
      'float32[3, 5]',
    ],
    expand: [(x) => expand(x([3, 1]), [2, 3, 4]), 'float32[2, 3, 4]'],
    gather: [(x) => gather(x([5, 7, 2]), x([3, 4], 'int64'), 1), 'float32[5, 3, 4, 2]'],
  });

  refusalTests({
    'reshape to another number of elements': [
      (x) => reshape(x([2, 3]), [4, 2]),
      '%x0: float32[2, 3] cannot take the shape [4, 2]',
    ],
    'a free extent that does not come out whole': [
      (x) => reshape(x([2, 3]), [4, -1]),
      '%x0: float32[2, 3] cannot take the shape [4, -1]',
    ],
    'squeeze of an extent other than 1': [
      (x) => squeeze(x([2, 1]), [0]),
      '%x0: float32[2, 1] cannot lose the axes 0',
    ],
    'an axis that is not there': [(x) => concat([x([2]), x([2])], 1), 'axis 1 of a tensor of rank 1'],
    'a permutation that repeats an axis': [
      (x) => transpose(x([2, 3]), [0, 0]),
      '%x0: float32[2, 3] cannot be permuted by [0, 0]',
    ],
    'concat of unlike extents': [
      (x) => concat([x([2, 3]), x([1, 3])], 1),
      'concat of %x0: float32[2, 3] and %x1: float32[1, 3] along axis 1',
    ],
    'concat of two types': [
      (x) => concat([x([2]), x([2], 'int64')], 0),
      'concat of %x0: float32[2] and %x1: int64[2] along axis 0',
    ],
    'concat of nothing': [() => concat([], 0), 'concat of nothing'],
    'a split that does not add up': [
      (x) => split(x([5]), [2, 2], 0),
      '%x0: float32[5] cannot be split into [2, 2] along axis 0',
    ],
    'an empty slice': [(x) => slice(x([5]), 0, 3, 3), 'slice 3:3:1 of axis 0 of %x0: float32[5]'],
    'a slice that begins past the end': [
      (x) => slice(x([5]), 0, 5, 9),
      'slice 5:9:1 of axis 0 of %x0: float32[5]',
    ],
    'pads of another rank': [(x) => pad(x([5]), []), 'pads of %x0: float32[5]'],
    'negative pads': [(x) => pad(x([5]), [[-1, 0]]), 'pads of %x0: float32[5]'],
    'expand to a smaller shape': [
      (x) => expand(x([3, 4]), [1, 4]),
      '%x0: float32[3, 4] does not expand to [1, 4]',
    ],
    'gather by floats': [(x) => gather(x([5]), x([2]), 0), 'gather takes int64 indices, got %x1: float32[2]'],
  });
});

test('what moves nothing is the value itself', () => {
  const x = new Graph().input('x', 'float32', [1, 3]);
  assert.equal(reshape(x, [-1, 3]), x);
  assert.equal(transpose(x, [0, 1]), x);
  assert.equal(concat([x], 0), x);
  assert.equal(split(x, [3], 1)[0], x);
  assert.equal(slice(x, 1, 0, 3), x);
  assert.equal(flip(x, [0]), x);
  assert.equal(expand(x, [1, 3]), x);
  assert.equal(
    pad(x, [
      [0, 0],
      [0, 0],
    ]),
    x,
  );
});
