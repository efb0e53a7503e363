import { suite } from 'node:test';
import { attention, groupNorm, layerNorm, softmax } from '../../src/onnx/norm.js';
import { inferenceTests, refusalTests } from './inference.js';

suite('norms and attention: types and shapes', () => {
  inferenceTests({
    softmax: [(x) => softmax(x([2, 3])), 'float32[2, 3]'],
    'layer norm': [(x) => layerNorm(x([2, 3, 4]), x([4]), x([4]), 1e-5), 'float32[2, 3, 4]'],
    'layer norm without scale and bias': [
      (x) => layerNorm(x([3, 4]), undefined, undefined, 1e-5),
      'float32[3, 4]',
    ],
    'group norm': [(x) => groupNorm(x([2, 6, 3, 3]), 3, x([6]), x([6]), 1e-5), 'float32[2, 6, 3, 3]'],
    'group norm of a sequence': [(x) => groupNorm(x([2, 6, 5]), 2, x([6]), x([6]), 1e-5), 'float32[2, 6, 5]'],
    attention: [(x) => attention(x([2, 4, 5, 8]), x([2, 4, 7, 8]), x([2, 4, 7, 3])), 'float32[2, 4, 5, 3]'],
    'attention with a mask': [
      (x) => attention(x([2, 5, 8]), x([2, 5, 8]), x([2, 5, 8]), { mask: x([5, 5]) }),
      'float32[2, 5, 8]',
    ],
  });

  refusalTests({
    'layer norm of a scalar': [(x) => layerNorm(x([]), undefined, undefined, 1e-5), 'layerNorm of a scalar'],
    'a scale of another length': [
      (x) => layerNorm(x([3, 4]), x([3]), undefined, 1e-5),
      'layerNorm of %x0: float32[3, 4] with %x1: float32[3]',
    ],
    'groups that do not divide the channels': [
      (x) => groupNorm(x([1, 6, 2, 2]), 4, x([6]), x([6]), 1e-5),
      'groupNorm of %x0: float32[1, 6, 2, 2] in 4 groups',
    ],
    'keys of another width than queries': [
      (x) => attention(x([2, 5, 8]), x([2, 7, 4]), x([2, 7, 4])),
      'matmul of %mul: float32[2, 5, 8] and %transpose: float32[2, 4, 7]',
    ],
  });
});
