import { float32, type Tensor } from '../tensor/tensor.js';

/**
 * What SDXL's denoiser is told of the picture's making, so that it may learn from small and cut pictures without drawing such ones (Podell et al., arXiv 2307.01952,
 * section 2.2). Sizes are [height, width], the crop is [top, left], all in pixels.
 */
export interface SizeCondition {
  /** Of the photograph, before it was scaled. */
  readonly originalSize: readonly [number, number];
  /** Where the square was cut out of the scaled photograph. */
  readonly cropTopLeft: readonly [number, number];
  /** Of the picture that the model sees. */
  readonly targetSize: readonly [number, number];
}

/** The condition of a whole, uncut picture: what pictures are drawn with. */
export function wholePicture(height: number, width: number): SizeCondition {
  return { originalSize: [height, width], cropTopLeft: [0, 0], targetSize: [height, width] };
}

/** How many numbers `timeIds` gives. */
export const timeIdCount = 6;

/** The condition's numbers in the order that the models were trained with, [1, 6]. */
export function timeIds({ originalSize, cropTopLeft, targetSize }: SizeCondition): Tensor<'float32'> {
  return float32([1, timeIdCount], [...originalSize, ...cropTopLeft, ...targetSize]);
}
