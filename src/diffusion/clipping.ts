import type { Config } from '../formats/json-config.js';

/** Reads `clip_sample` and `clip_sample_range`: predicted clean samples are clipped to [-range, range]; infinity where they are not. */
export function readClipRange(config: Config): number {
  const range = config.number('clip_sample_range', 1);
  return config.boolean('clip_sample', true) ? range : Number.POSITIVE_INFINITY;
}

export function clipped(x: number, range: number): number {
  return Math.max(-range, Math.min(range, x));
}
