import { resizeBicubic } from '../data/bicubic-resize.js';
import type { RgbImage } from '../data/image-grid.js';
import { clipStatistics, imagenetStatistics } from '../models/image-preprocessing.js';
import { roundHalfToEven } from '../tensor/rounding.js';
import { float32, type Tensor } from '../tensor/tensor.js';

/** How a picture is made ready for a judge: shorter side resized, middle square cut out, channels normalised. */
export interface PictureTransform {
  /** Length of the shorter side after resizing, in pixels. */
  readonly resize: number;
  /** Side of the square that is kept. */
  readonly crop: number;
  readonly mean: readonly [number, number, number];
  readonly std: readonly [number, number, number];
}

/**
 * The transform that published DINO scores were made with: 256 bicubic, the middle 224, ImageNet's statistics; in the same proportions for encoders of another size.
 * A Hugging Face folder's own preprocessing resizes to 224 without the crop, and gives other scores.
 */
export function dinoTransform(side: number): PictureTransform {
  return { resize: Math.round((side * 256) / 224), crop: side, ...imagenetStatistics };
}

/** CLIP's own transform: the shorter side to the encoder's size, bicubic, the middle square. */
export function clipTransform(side: number): PictureTransform {
  return { resize: side, crop: side, ...clipStatistics };
}

/** "shorter side to 256, bicubic; middle 224" */
export function describeTransform({ resize, crop }: PictureTransform): string {
  return `shorter side to ${resize} pixels (bicubic, antialiased, rounded to bytes), middle ${crop} x ${crop}`;
}

/** One picture as a judge takes it, [1, 3, crop, crop], in the steps and roundings of torchvision on Pillow pictures. */
export function transformPicture(image: RgbImage, t: PictureTransform): Tensor<'float32'> {
  const { width, height } = image;
  const long = Math.trunc((t.resize * Math.max(width, height)) / Math.min(width, height));
  const [w, h] = width <= height ? [t.resize, long] : [long, t.resize];
  const resized = resizeBicubic(image, w, h);
  const [left, top] = [roundHalfToEven((w - t.crop) / 2), roundHalfToEven((h - t.crop) / 2)];
  const plane = t.crop * t.crop;
  const values = new Float32Array(3 * plane);
  for (let y = 0; y < t.crop; y++) {
    for (let x = 0; x < t.crop; x++) {
      const from = 3 * ((top + y) * w + left + x);
      for (let c = 0; c < 3; c++) {
        values[c * plane + y * t.crop + x] = (resized.pixels[from + c]! / 255 - t.mean[c]!) / t.std[c]!;
      }
    }
  }
  return float32([1, 3, t.crop, t.crop], values);
}
