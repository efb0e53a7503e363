import { float32, type Tensor } from '../tensor/tensor.js';
import { GraphError, type Value } from './graph.js';
import { gemm, matmul } from './linalg.js';
import { reshape } from './movement.js';

/** A kernel over distances in source pixels, zero outside [-support, support]. */
export interface ResamplingKernel {
  readonly support: number;
  readonly weight: (distance: number) => number;
}

/** The triangle: linear interpolation. */
export const linearKernel: ResamplingKernel = {
  support: 1,
  weight: (x) => Math.max(0, 1 - Math.abs(x)),
};

/** Keys' cubic kernel (IEEE ASSP 1981) with parameter a: -0.5 is Pillow's, -0.75 PyTorch's and ONNX's without antialiasing. */
export function cubicKernel(a: number): ResamplingKernel {
  return {
    support: 2,
    weight: (distance) => {
      const x = Math.abs(distance);
      if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
      return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
    },
  };
}

export interface ResamplingOptions {
  readonly kernel: ResamplingKernel;
  /** Widen the kernel when shrinking, so that every source pixel counts; the part beyond the border is left out and the rest reweighted, as Pillow does. */
  readonly antialias: boolean;
  /** Source coordinate of the middle of output pixel i, counted in pixel middles. Default: pixel areas line up, (i + 0.5) from / to - 0.5. */
  readonly coordinate?: (i: number) => number;
}

/**
 * Resampling of one axis as a matrix [to, from], each row adding up to 1. Without antialiasing the border pixel is repeated beyond the border.
 */
export function resamplingMatrix(from: number, to: number, options: ResamplingOptions): Tensor<'float32'> {
  const { kernel, antialias, coordinate = (i) => ((i + 0.5) * from) / to - 0.5 } = options;
  const matrix = new Float32Array(to * from);
  const stretch = antialias ? Math.max(1, from / to) : 1;
  const reach = kernel.support * stretch;
  for (let i = 0; i < to; i++) {
    const centre = coordinate(i);
    const taps: [place: number, weight: number][] = [];
    for (let j = Math.ceil(centre - reach); j <= Math.floor(centre + reach); j++) {
      if (antialias && (j < 0 || j >= from)) continue;
      taps.push([Math.min(from - 1, Math.max(0, j)), kernel.weight((j - centre) / stretch)]);
    }
    const total = taps.reduce((sum, [, w]) => sum + w, 0);
    for (const [j, w] of taps) matrix[i * from + j] = matrix[i * from + j]! + w / total;
  }
  return float32([to, from], matrix);
}

/** A linear map of the last two axes, one after the other: [N, C, H, W] with [h, H] and [w, W] to [N, C, h, w]. */
export function mapPlanes(x: Value, rows: Tensor<'float32'>, columns: Tensor<'float32'>): Value {
  const [n, c, height, width] = x.shape as [number, number, number, number];
  const [[h], [w]] = [rows.shape as [number, number], columns.shape as [number, number]];
  if (x.rank !== 4 || rows.shape[1] !== height || columns.shape[1] !== width) {
    throw new GraphError(
      `mapPlanes of ${x} with [${rows.shape.join(', ')}] and [${columns.shape.join(', ')}]`,
    );
  }
  let y = reshape(x, [n * c * height, width]);
  if (!isIdentity(columns)) y = gemm(y, x.graph.constant(columns, 'columns'), { transB: true }); // [N C H, w]
  y = reshape(y, [n * c, height, w]);
  if (!isIdentity(rows)) y = matmul(x.graph.constant(rows, 'rows'), y); // [N C, h, w]
  return reshape(y, [n, c, h, w]);
}

function isIdentity({ shape, data }: Tensor<'float32'>): boolean {
  const [to, from] = shape as [number, number];
  return to === from && data.every((v, i) => v === (i % (from + 1) === 0 ? 1 : 0));
}
