import { cast, cos, mul, sin } from '../onnx/elementwise.js';
import type { Value } from '../onnx/graph.js';
import { concat, pad, reshape } from '../onnx/movement.js';
import { float32 } from '../tensor/tensor.js';

export interface TimestepEmbeddingOptions {
  readonly dim: number;
  /** Cosines before sines. */
  readonly flipSinToCos: boolean;
  /** Taken from the number of frequencies when their exponents are spread; 1 makes the lowest frequency exactly 1 / 10000. */
  readonly freqShift: number;
}

/**
 * Sinusoidal embedding of timesteps [B] (any number type) to [B, dim], as in Vaswani et al. (arXiv 1706.03762, section 3.5), with all sines before all cosines.
 * An odd `dim` ends in a zero.
 */
export function timestepEmbedding(timesteps: Value, options: TimestepEmbeddingOptions): Value {
  const { dim, flipSinToCos, freqShift } = options;
  const half = Math.floor(dim / 2);
  const step = Math.fround(-Math.log(10000));
  const frequencies = Float32Array.from({ length: half }, (_, i) =>
    Math.exp(Math.fround(Math.fround(step * i) / Math.fround(half - freqShift))),
  );
  const column = reshape(cast(timesteps, 'float32'), [-1, 1]); // [B, 1]
  const angles = mul(column, timesteps.graph.constant(float32([1, half], frequencies))); // [B, half]
  const waves = flipSinToCos ? [cos(angles), sin(angles)] : [sin(angles), cos(angles)];
  const embedded = concat(waves, 1); // [B, 2 * half]
  return dim % 2 === 0
    ? embedded
    : pad(embedded, [
        [0, 0],
        [0, 1],
      ]);
}
