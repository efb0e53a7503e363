import type { Tensor } from '../tensor/tensor.js';

/** Picture i of a batch [B, 3, H, W] in [-1, 1] as bytes, channels last. */
export function pictureBytes(
  batch: Tensor<'float32'>,
  i: number,
): { width: number; height: number; pixels: Uint8Array } {
  const [, channels, height, width] = batch.shape as [number, number, number, number];
  const plane = height * width;
  const pixels = new Uint8Array(channels * plane);
  const from = i * channels * plane;
  for (let p = 0; p < plane; p++) {
    for (let c = 0; c < channels; c++) {
      const value = (batch.data[from + c * plane + p]! / 2 + 0.5) * 255;
      pixels[p * channels + c] = Math.max(0, Math.min(255, Math.round(value)));
    }
  }
  return { width, height, pixels };
}
