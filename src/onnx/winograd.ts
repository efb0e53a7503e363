import { float32, type Tensor } from '../tensor/tensor.js';
import { conv2d, convTranspose2d } from './conv.js';
import { add } from './elementwise.js';
import { GraphError, type Value } from './graph.js';
import { gemm, matmul } from './linalg.js';
import { concat, equalParts, reshape, split, transpose } from './movement.js';

/** Side of the squares of results that are computed together. */
const OUT = 4;
/** Side of the squares of inputs that they are computed from. */
const IN = OUT + 2;
/** Where the polynomials are evaluated, besides infinity. Small numbers and their inverses lose the fewest digits. */
const POINTS = [0, 1, -1, 0.5, -0.5] as const;

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
export function winogradConv2d(x: Value, weight: Value, bias?: Value): Value {
  const [n, c, h, w] = x.shape as [number, number, number, number];
  const [o, c2, kh, kw] = weight.shape;
  if (x.rank !== 4 || c !== c2 || kh !== 3 || kw !== 3 || h % OUT !== 0 || w % OUT !== 0)
    throw new GraphError(`winogradConv2d of ${x} with ${weight}`);
  const { graph } = x;
  const [rows, columns] = [h / OUT, w / OUT];
  const maps = transforms();
  const input = graph.constant(maps.input, 'winograd_input');
  const output = graph.constant(maps.output, 'winograd_output');
  const transformed = gemm(graph.constant(maps.kernel, 'winograd_kernel'), reshape(weight, [-1, 9]), {
    transB: true,
  });
  const u = reshape(transformed, [IN * IN, o!, c]);
  // Image by image: the transformed image is the largest value of a network, and the engine then reads its tiles where they lie.
  const images = split(x, equalParts(n, 1), 0).map((image) => {
    const planes = reshape(image, [c, 1, h, w]);
    const spread = conv2d(planes, input, undefined, {
      stride: OUT,
      padding: 1,
    });
    const v = transpose(reshape(spread, [c, IN * IN, rows * columns]), [1, 0, 2]); // [36, C, tiles]
    const product = transpose(matmul(u, v), [1, 0, 2]); // [O, 36, tiles]
    const tiles = reshape(product, [o!, IN * IN, rows, columns]);
    const y = convTranspose2d(tiles, output, undefined, { stride: OUT });
    return reshape(y, [1, o!, h, w]);
  });
  const joined = concat(images, 0);
  return bias ? add(joined, reshape(bias, [1, o!, 1, 1])) : joined;
}

/** Coefficients of the product of (x - root), lowest power first. */
const polynomial = (roots: readonly number[]): number[] =>
  roots.reduce<number[]>(
    (p, root) => Array.from({ length: p.length + 1 }, (_, i) => (p[i - 1] ?? 0) - root * (p[i] ?? 0)),
    [1],
  );

/** The three linear maps of a tile, as kernels: input [36, 1, 6, 6], kernel [36, 9], output [36, 1, 4, 4]. */
function transforms(): Record<'input' | 'kernel' | 'output', Tensor> {
  const others = (i: number): number[] => POINTS.filter((_, j) => j !== i);
  const scale = (i: number): number => others(i).reduce((f, p) => f * (POINTS[i]! - p), 1);
  const powers = (p: number, count: number): number[] => Array.from({ length: count }, (_, k) => p ** k);
  const atInfinity = (count: number): number[] =>
    Array.from({ length: count }, (_, k) => Number(k === count - 1));
  const b = [...POINTS.map((_, i) => [...polynomial(others(i)), 0]), polynomial(POINTS)]; // [6, 6]
  const g = [...POINTS.map((p, i) => powers(p, 3).map((v) => v / scale(i))), atInfinity(3)]; // [6, 3]
  const a = [...POINTS.map((p) => powers(p, OUT)), atInfinity(OUT)]; // [6, 4]
  return {
    input: float32([IN * IN, 1, IN, IN], squared(b)),
    kernel: float32([IN * IN, 9], squared(g)),
    output: float32([IN * IN, 1, OUT, OUT], squared(a)),
  };
}

/** The Kronecker product of a matrix with itself. */
function squared(m: readonly (readonly number[])[]): Float32Array {
  return Float32Array.from(
    m.flatMap((top) => m.flatMap((left) => top.flatMap((p) => left.map((q) => p * q)))),
  );
}
