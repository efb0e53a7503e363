import { suite } from 'node:test';
import { averagePool2d, conv2d, convTranspose2d, maxPool2d, resizeNearest } from '../../src/onnx/conv.js';
import { inferenceTests, refusalTests } from './inference.js';

suite('convolution and pooling: types and shapes', () => {
  inferenceTests({
    'no padding': [(x) => conv2d(x([2, 3, 8, 9]), x([4, 3, 3, 3])), 'float32[2, 4, 6, 7]'],
    'padding on all sides, bias': [
      (x) => conv2d(x([2, 3, 8, 9]), x([4, 3, 3, 3]), x([4]), { padding: 1 }),
      'float32[2, 4, 8, 9]',
    ],
    'stride rounds down': [
      (x) => conv2d(x([1, 3, 8, 9]), x([4, 3, 3, 3]), undefined, { stride: 2, padding: 1 }),
      'float32[1, 4, 4, 5]',
    ],
    'padding [top, left, bottom, right]': [
      (x) => conv2d(x([1, 3, 8, 8]), x([4, 3, 3, 3]), undefined, { stride: 2, padding: [0, 0, 1, 1] }),
      'float32[1, 4, 4, 4]',
    ],
    'a stride, a dilation and a padding for each axis': [
      (x) =>
        conv2d(x([1, 2, 9, 12]), x([2, 2, 3, 2]), undefined, {
          stride: [1, 3],
          dilation: [2, 1],
          padding: [1, 0, 1, 0],
        }),
      'float32[1, 2, 7, 4]',
    ],
    groups: [
      (x) => conv2d(x([1, 6, 5, 5]), x([9, 2, 1, 1]), undefined, { groups: 3 }),
      'float32[1, 9, 5, 5]',
    ],
    'transposed, stride 2': [
      (x) => convTranspose2d(x([1, 3, 4, 5]), x([3, 2, 3, 3]), undefined, { stride: 2, padding: 1 }),
      'float32[1, 2, 7, 9]',
    ],
    'transposed, output padding and groups': [
      (x) =>
        convTranspose2d(x([1, 4, 4, 4]), x([4, 3, 3, 3]), x([6]), {
          stride: 2,
          padding: 1,
          outputPadding: 1,
          groups: 2,
        }),
      'float32[1, 6, 8, 8]',
    ],
    'average pool, stride the kernel': [
      (x) => averagePool2d(x([1, 3, 7, 6]), { kernel: 2 }),
      'float32[1, 3, 3, 3]',
    ],
    'max pool with padding': [
      (x) => maxPool2d(x([1, 3, 7, 6]), { kernel: 3, stride: 2, padding: 1 }),
      'float32[1, 3, 4, 3]',
    ],
    'nearest resize': [(x) => resizeNearest(x([1, 3, 4, 5]), 2), 'float32[1, 3, 8, 10]'],
  });

  refusalTests({
    'an image of rank 3': [
      (x) => conv2d(x([3, 8, 8]), x([4, 3, 3, 3])),
      'conv2d takes [N, C, H, W], got %x0: float32[3, 8, 8]',
    ],
    'a kernel for other channels': [
      (x) => conv2d(x([1, 3, 8, 8]), x([4, 2, 3, 3])),
      'conv2d of %x0: float32[1, 3, 8, 8] with %x1: float32[4, 2, 3, 3] in 1 groups',
    ],
    'groups that do not divide the output': [
      (x) => conv2d(x([1, 4, 8, 8]), x([3, 2, 3, 3]), undefined, { groups: 2 }),
      'conv2d of %x0: float32[1, 4, 8, 8] with %x1: float32[3, 2, 3, 3] in 2 groups',
    ],
    'a bias of another length': [
      (x) => conv2d(x([1, 3, 8, 8]), x([4, 3, 3, 3]), x([3])),
      'conv2d of %x0: float32[1, 3, 8, 8] with %x1: float32[4, 3, 3, 3] and %x2: float32[3] in 1 groups',
    ],
    'a kernel larger than the image': [
      (x) => conv2d(x([1, 3, 2, 8]), x([4, 3, 3, 3])),
      'a 3x3 window does not fit into 2x8',
    ],
    'a transposed kernel for other channels': [
      (x) => convTranspose2d(x([1, 3, 8, 8]), x([4, 3, 3, 3])),
      'convTranspose2d of %x0: float32[1, 3, 8, 8] with %x1: float32[4, 3, 3, 3] in 1 groups',
    ],
    'a pool larger than the image': [
      (x) => maxPool2d(x([1, 1, 2, 2]), { kernel: 3 }),
      'a 3x3 window does not fit into 2x2',
    ],
    'a resize by a fraction': [(x) => resizeNearest(x([1, 1, 2, 2]), 1.5), 'resizeNearest by 1.5'],
  });
});
