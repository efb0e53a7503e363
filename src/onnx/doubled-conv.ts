import { float32 } from '../tensor/tensor.js';
import { conv2d } from './conv.js';
import type { Value } from './graph.js';
import { gemm } from './linalg.js';
import { type Filtering, filteredConv2d, kronecker, type Matrix } from './minimal-filtering.js';
import { concat, depthToSpace, reshape } from './movement.js';

/**
 * Correlation with a 3x3 kernel, padding 1, of an image of which every pixel is repeated twice in both directions, which is never made. Of an axis, with s the sum of its three taps and
 * d[i] = x[i] - x[i - 1], the results at 2i and 2i + 1 are s x[i] - w[0] d[i] and s x[i] + w[2] d[i + 1]. So nine products of the size of the kernel's [O, C] make four results, a quarter of
 * the multiplications, and the kernel takes the memory that it took.
 *
 * @param x [N, C, H, W]
 * @param weight [O, C, 3, 3]
 * @param bias [O]
 * @returns [N, O, 2H, 2W]
 */
export const doubledConv2d = (x: Value, weight: Value, bias?: Value): Value =>
  filteredConv2d(x, weight, bias, repeatedTwice);

const repeatedTwice: Filtering = {
  input: [
    [0, 1, 0],
    [-1, 1, 0],
    [0, -1, 1],
  ],
  kernel: [
    [1, 1, 1],
    [-1, 0, 0],
    [0, 0, 1],
  ],
  output: [
    [1, 1],
    [1, 0],
    [0, 1],
  ],
  stride: 1,
};

/**
 * The same as a convolution of its own for the even and the odd rows and columns, as two of an axis' three taps fall on the same pixel: four ninths of the multiplications, and
 * no planes to hold but the results. For images so large that moving them is what takes the time.
 */
export function doubledConv2dByPhase(x: Value, weight: Value, bias?: Value): Value {
  const [o, c] = weight.shape as [number, number];
  const kernel = reshape(weight, [-1, 9]);
  const phases = evenAndOdd.flatMap((rows, down) =>
    evenAndOdd.map((columns, right) => {
      const pairs = x.graph.constant(float32([4, 9], kronecker(rows, columns)), 'pairs');
      const own = reshape(gemm(kernel, pairs, { transB: true }), [o, c, 2, 2]);
      return conv2d(x, own, bias, { padding: [1 - down, 1 - right, down, right] });
    }),
  );
  return depthToSpace(concat(phases, 1), 2);
}

/** Which of three taps fall on which of two neighbouring pixels, for results at even and at odd places. */
const evenAndOdd: readonly [even: Matrix, odd: Matrix] = [
  [
    [1, 0, 0],
    [0, 1, 1],
  ],
  [
    [1, 1, 0],
    [0, 0, 1],
  ],
];
