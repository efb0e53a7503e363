import { suite } from 'node:test';
import { gemm, matmul } from '../../src/onnx/linalg.js';
import { inferenceTests, refusalTests } from './inference.js';

suite('matrix products: types and shapes', () => {
  inferenceTests({
    'two matrices': [(x) => matmul(x([2, 3]), x([3, 5])), 'float32[2, 5]'],
    'batches broadcast': [(x) => matmul(x([4, 1, 2, 3]), x([6, 3, 5])), 'float32[4, 6, 2, 5]'],
    'one matrix for a whole batch': [(x) => matmul(x([4, 2, 3]), x([3, 5])), 'float32[4, 2, 5]'],
    gemm: [(x) => gemm(x([2, 3]), x([3, 5])), 'float32[2, 5]'],
    'gemm, both transposed': [
      (x) => gemm(x([3, 2]), x([5, 3]), { transA: true, transB: true }),
      'float32[2, 5]',
    ],
    'gemm with a row to add': [(x) => gemm(x([2, 3]), x([3, 5]), { c: x([5]) }), 'float32[2, 5]'],
    'gemm with a column to add': [(x) => gemm(x([2, 3]), x([3, 5]), { c: x([2, 1]) }), 'float32[2, 5]'],
  });

  refusalTests({
    'matmul whose inner extents differ': [
      (x) => matmul(x([2, 3]), x([2, 3])),
      'matmul of %x0: float32[2, 3] and %x1: float32[2, 3]',
    ],
    'matmul of a vector': [
      (x) => matmul(x([3]), x([3, 2])),
      'matmul of %x0: float32[3] and %x1: float32[3, 2]',
    ],
    'matmul of two types': [
      (x) => matmul(x([2, 3]), x([3, 2], 'float16')),
      'matmul of %x0: float32[2, 3] and %x1: float16[3, 2]',
    ],
    'matmul whose batches do not broadcast': [
      (x) => matmul(x([2, 3, 4]), x([5, 4, 3])),
      'shapes [2] and [5] do not broadcast',
    ],
    'gemm of a batch': [
      (x) => gemm(x([2, 2, 3]), x([3, 2])),
      'gemm of %x0: float32[2, 2, 3] and %x1: float32[3, 2]',
    ],
    'gemm whose inner extents differ': [
      (x) => gemm(x([2, 3]), x([3, 2]), { transB: true }),
      'gemm of %x0: float32[2, 3] and %x1: float32[3, 2]^T',
    ],
    'gemm with an addend that would enlarge the product': [
      (x) => gemm(x([1, 3]), x([3, 2]), { c: x([4, 2]) }),
      'gemm cannot add %x2: float32[4, 2]',
    ],
  });
});
