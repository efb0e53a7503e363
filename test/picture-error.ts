/** Peak signal-to-noise ratio in dB of two pictures' bytes; infinite where they are the same. */
export function peakSignalToNoise(a: Uint8Array, b: Uint8Array): number {
  if (a.length !== b.length) return Number.NEGATIVE_INFINITY;
  let squares = 0;
  for (let i = 0; i < a.length; i++) squares += (a[i]! - b[i]!) ** 2;
  return 10 * Math.log10(255 ** 2 / (squares / a.length));
}
