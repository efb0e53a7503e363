import { UsageError } from '../errors.js';
import type { ComputeType } from '../nn/parameters.js';

/** "fp16": the denoiser and the text encoders compute in half precision where it is safe to. */
export type MixedPrecision = 'no' | 'fp16';

const computeTypes: Readonly<Record<MixedPrecision, ComputeType>> = { no: 'float32', fp16: 'float16' };

/** Reads a kind of mixed precision. @throws UsageError for any other word, with the reason where people would expect it. */
export function readMixedPrecision(value: string): MixedPrecision {
  if (value === 'no' || value === 'fp16') return value;
  const reason =
    value === 'bf16'
      ? ' ONNX Runtime has no convolution in bfloat16 on any device, so bf16 would be computed in other types without saying so.'
      : '';
  throw new UsageError(`--mixed-precision ${value}: expected no or fp16.${reason}`);
}

/** What networks compute in. */
export function computeTypeOf(precision: MixedPrecision): ComputeType {
  return computeTypes[readMixedPrecision(precision)];
}

/** What to tell who asks for half precision on the processor; nothing elsewhere. */
export function halfPrecisionWarnings(precision: MixedPrecision, device = 'cpu'): string[] {
  if (precision !== 'fp16' || device !== 'cpu') return [];
  return [
    '--mixed-precision fp16 saves nothing on the processor, which computes in float32 and only rounds to half precision in between: it takes longer than --mixed-precision no. It is for graphics cards (--device).',
  ];
}
