import { float32, type Tensor } from '../tensor/tensor.js';
import { conv2d, convTranspose2d } from './conv.js';
import { add } from './elementwise.js';
import { GraphError, type Value } from './graph.js';
import { gemm, matmul } from './linalg.js';
import { concat, equalParts, reshape, split, transpose } from './movement.js';

/** A matrix by its rows. */
export type Matrix = readonly (readonly number[])[];

/** Correlation of one axis with three taps by few multiplications; a row of each matrix is one of them. */
export interface Filtering {
  /** What each multiplies of the input: of a window of it that begins one place before the first result. */
  readonly input: Matrix;
  /** What each multiplies of the three taps. */
  readonly kernel: Matrix;
  /** What each product adds to a window's results. */
  readonly output: Matrix;
  /** From window to window of the input. */
  readonly stride: number;
}

/**
 * Correlation with a 3x3 kernel, padding 1, by Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray, "Fast algorithms for convolutional neural networks", arXiv
 * 1509.09308, section 4): a quarter of the multiplications, for which the kernel takes four times its memory. Worth it for many channels at many places; accurate
 * to a few units of 1e-6 of the largest result.
 *
 * @param x [N, C, H, W], H and W multiples of 4
 * @param weight [O, C, 3, 3]
 * @param bias [O]
 * @returns [N, O, H, W]; the backward pass is as fast and reads the same transformed kernel
 */
export const winogradConv2d = (x: Value, weight: Value, bias?: Value): Value =>
  filteredConv2d(x, weight, bias, winograd(4, [0, 1, -1, 0.5, -0.5]));

/**
 * Correlation with a 3x3 kernel, padding 1, both axes by the same minimal filtering of T products: T^2 of the size of the kernel's [O, C] for every window of the image.
 *
 * @param x [N, C, H, W], H and W multiples of the filtering's stride
 * @param weight [O, C, 3, 3]
 * @param bias [O]
 * @returns [N, O, H', W'], a window's results for every window
 */
export function filteredConv2d(
  x: Value,
  weight: Value,
  bias: Value | undefined,
  { input, kernel, output, stride }: Filtering,
): Value {
  const [n, c, h, w] = x.shape as [number, number, number, number];
  const [o, c2, kh, kw] = weight.shape;
  if (x.rank !== 4 || c !== c2 || kh !== 3 || kw !== 3 || h % stride !== 0 || w % stride !== 0)
    throw new GraphError(`minimal filtering of ${x} with ${weight}`);
  const { graph } = x;
  const products = kernel.length ** 2;
  const results = output[0]!.length;
  const [rows, columns] = [h / stride, w / stride];
  const [into, out] = [
    graph.constant(planeKernels(input), 'filtering_input'),
    graph.constant(planeKernels(output), 'filtering_output'),
  ];
  const taps = graph.constant(float32([products, 9], kronecker(kernel, kernel)), 'filtering_kernel');
  const transformed = gemm(taps, reshape(weight, [-1, 9]), { transB: true });
  const u = reshape(transformed, [products, o!, c]);
  // Image by image: the transformed image is the largest value of a network, and the engine then reads its tiles where they lie.
  const images = split(x, equalParts(n, 1), 0).map((image) => {
    const spread = conv2d(reshape(image, [c, 1, h, w]), into, undefined, { stride, padding: 1 });
    const v = transpose(reshape(spread, [c, products, rows * columns]), [1, 0, 2]); // [T^2, C, windows]
    const mixed = transpose(matmul(u, v), [1, 0, 2]); // [O, T^2, windows]
    const windows = reshape(mixed, [o!, products, rows, columns]);
    const y = convTranspose2d(windows, out, undefined, { stride: results });
    return reshape(y, [1, o!, rows * results, columns * results]);
  });
  const joined = concat(images, 0);
  return bias ? add(joined, reshape(bias, [1, o!, 1, 1])) : joined;
}

/** A linear map of both axes of a window as a kernel for each result: [T^2, 1, k, k]. */
function planeKernels(m: Matrix): Tensor<'float32'> {
  const side = m[0]!.length;
  return float32([m.length ** 2, 1, side, side], kronecker(m, m));
}

/** The Kronecker product. */
export const kronecker = (a: Matrix, b: Matrix): Float32Array =>
  Float32Array.from(a.flatMap((top) => b.flatMap((left) => top.flatMap((p) => left.map((q) => p * q)))));

/** Coefficients of the product of (x - root), lowest power first. */
const polynomial = (roots: readonly number[]): number[] =>
  roots.reduce<number[]>(
    (p, root) => Array.from({ length: p.length + 1 }, (_, i) => (p[i - 1] ?? 0) - root * (p[i] ?? 0)),
    [1],
  );

/**
 * F(m, 3), by polynomials that are evaluated at these points and at infinity.
 *
 * @param m a window's results
 * @param points m + 1 of them. Small numbers and their inverses lose the fewest digits.
 */
function winograd(m: number, points: readonly number[]): Filtering {
  const others = (i: number): number[] => points.filter((_, j) => j !== i);
  const scale = (i: number): number => others(i).reduce((f, p) => f * (points[i]! - p), 1);
  const powers = (p: number, count: number): number[] => Array.from({ length: count }, (_, k) => p ** k);
  const atInfinity = (count: number): number[] =>
    Array.from({ length: count }, (_, k) => Number(k === count - 1));
  return {
    input: [...points.map((_, i) => [...polynomial(others(i)), 0]), polynomial(points)],
    kernel: [...points.map((p, i) => powers(p, 3).map((v) => v / scale(i))), atInfinity(3)],
    output: [...points.map((p) => powers(p, m)), atInfinity(m)],
    stride: m,
  };
}
