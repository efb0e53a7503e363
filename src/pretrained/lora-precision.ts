import { ModelError } from '../errors.js';
import type { SafetensorsContents } from '../formats/safetensors.js';
import { fromFloat32, type Tensor, toFloat32 } from '../tensor/tensor.js';
import { readLoraKey } from './lora-keys.js';

/** The types that factors are saved in, in the words of kohya's scripts. */
export type SavePrecision = 'float' | 'fp16' | 'bf16';

export const savePrecisions: readonly SavePrecision[] = ['float', 'fp16', 'bf16'];

type FloatType = 'float32' | 'float16' | 'bfloat16';

const typeOf: Readonly<Record<SavePrecision, FloatType>> = {
  float: 'float32',
  fp16: 'float16',
  bf16: 'bfloat16',
};

/** What float32 arithmetic may have changed in a number that a narrower type held. */
const ROUNDING = 2 ** -22;

/**
 * The contents of a LoRA file with its factors in a type of 16 bits. Alphas stay as they are.
 *
 * @throws ModelError for a value that the type cannot hold.
 */
export function inPrecision(
  { tensors, metadata }: SafetensorsContents,
  precision: SavePrecision,
  file: string,
): SafetensorsContents {
  return {
    metadata,
    tensors: changedFactors(tensors, (value, key) => {
      const found = fromFloat32(value, typeOf[precision]);
      if (toFloat32(found).data.every(Number.isFinite)) return found;
      throw new ModelError(
        `${file}: as ${JSON.stringify(key)}, the update has values that ${precision} cannot hold. Take --save-precision float or bf16.`,
      );
    }),
  };
}

/**
 * The contents of a LoRA file with its factors in the types that the file had which they were read from. A factor that its type no longer holds, since alpha / rank was
 * multiplied into it, stays in float32, so that nothing is lost.
 */
export function inSourcePrecision(
  { tensors, metadata }: SafetensorsContents,
  source: ReadonlyMap<string, Tensor>,
): SafetensorsContents {
  const types = moduleTypes(source);
  return {
    metadata,
    tensors: changedFactors(tensors, (value, key) => {
      const narrow = fromFloat32(value, types.get(readLoraKey(key)!.module) ?? 'float32');
      const held = toFloat32(narrow).data;
      return value.data.every((v, i) => Math.abs(v - held[i]!) <= ROUNDING * Math.abs(v)) ? narrow : value;
    }),
  };
}

function changedFactors(
  tensors: ReadonlyMap<string, Tensor>,
  change: (value: Tensor<'float32'>, key: string) => Tensor,
): Map<string, Tensor> {
  return new Map(
    [...tensors].map(([key, value]) => [
      key,
      readLoraKey(key)?.part === 'alpha' ? value : change(toFloat32(value), key),
    ]),
  );
}

/** The narrowest type among the factors of each module: one of them may have been too fine for it. */
function moduleTypes(source: ReadonlyMap<string, Tensor>): Map<string, FloatType> {
  const types = new Map<string, FloatType>();
  for (const [key, { dtype }] of source) {
    const found = readLoraKey(key);
    if (found === undefined || found.part === 'alpha') continue;
    if (dtype === 'float16' || dtype === 'bfloat16') types.set(found.module, dtype);
  }
  return types;
}
