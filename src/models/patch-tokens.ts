import { conv2d } from '../onnx/conv.js';
import { add } from '../onnx/elementwise.js';
import type { Value } from '../onnx/graph.js';
import { GraphError } from '../onnx/graph.js';
import { concat, expand, reshape, slice, transpose } from '../onnx/movement.js';
import { cubicKernel, mapPlanes, resamplingMatrix } from '../onnx/resampling.js';

/** The parameters by which a vision transformer turns a picture into tokens; the models name them differently. */
export interface PatchParameters {
  /** [D, 3, P, P] */
  readonly weight: Value;
  /** [D] */
  readonly bias?: Value;
  /** The class token, of D elements. */
  readonly classToken: Value;
  /** One row for the class token and one for each patch of the trained size, 1 + G * G rows of D elements. */
  readonly positions: Value;
}

/**
 * A picture [B, 3, H, W] as tokens [B, 1 + (H/P) (W/P), D]: a class token, then the patches row by row, with their places added (Dosovitskiy et al., arXiv
 * 2010.11929, eq. 1). At another size than the trained one the places are resampled with PyTorch's bicubic kernel, without antialiasing, as transformers does.
 */
export function patchTokens(pixels: Value, patch: number, p: PatchParameters): Value {
  const dim = p.weight.shape[0]!;
  const batch = pixels.shape[0]!;
  if (pixels.shape[2]! % patch !== 0 || pixels.shape[3]! % patch !== 0) {
    throw new GraphError(`${pixels} cannot be cut into patches of ${patch}`);
  }
  const planes = conv2d(pixels, p.weight, p.bias, { stride: patch }); // [B, D, h, w]
  const [, , h, w] = planes.shape as [number, number, number, number];
  const patches = transpose(reshape(planes, [batch, dim, h * w]), [0, 2, 1]); // [B, h w, D]
  const first = expand(reshape(p.classToken, [1, 1, dim]), [batch, 1, dim]);
  const places = resampled(reshape(p.positions, [-1, dim]), h, w); // [1 + h w, D]
  return add(concat([first, patches], 1), places);
}

function resampled(positions: Value, h: number, w: number): Value {
  const [count, dim] = positions.shape as [number, number];
  const side = Math.sqrt(count - 1);
  if (h === side && w === side) return positions;
  const [own, grid] = [slice(positions, 0, 0, 1), slice(positions, 0, 1, count)];
  const options = { kernel: cubicKernel(-0.75), antialias: false };
  const planes = reshape(transpose(grid, [1, 0]), [1, dim, side, side]);
  const moved = mapPlanes(planes, resamplingMatrix(side, h, options), resamplingMatrix(side, w, options));
  return concat([own, transpose(reshape(moved, [dim, h * w]), [1, 0])], 0);
}
