import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import { writeSafetensorsFile } from '../../src/formats/safetensors-file.js';
import { encodeHalf } from '../../src/tensor/half.js';
import { elementCount, type Shape, type Tensor, tensor } from '../../src/tensor/tensor.js';
import { goldenPath } from '../goldens.js';

/** What diffusers' scripts say of a model's single file, and the configurations of its folder. */
export interface NamedCheckpoint {
  readonly tensors: Readonly<Record<string, number[]>>;
  /** Those of its tensors that hold int64. */
  readonly integers: readonly string[];
  readonly configs: Readonly<Record<string, Record<string, unknown>>>;
}

export const namedCheckpoints = JSON.parse(
  gunzipSync(readFileSync(goldenPath('single-file/names.json.gz'))).toString('utf8'),
) as Record<'sd1-small' | 'sd2-small' | 'sdxl-small' | 'sd1' | 'sd2' | 'sdxl', NamedCheckpoint>;

/** The numbers that scripts/goldens/single_file.py gives a tensor of this name. */
export function pattern(name: string, shape: Shape): Float32Array {
  let seed = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(name)) seed = Math.imul(seed ^ byte, 0x01000193);
  const fanIn = shape.slice(1).reduce((n, d) => n * d, 1);
  const scale = name.includes('embedding') ? 1 : 2 ** -Math.floor(Math.log2(fanIn) / 2 - 0.5);
  const centre = name.endsWith('weight') ? 1 : 0;
  return Float32Array.from({ length: elementCount(shape) }, (_, i) => {
    let h = (Math.imul(i, 0x9e3779b1) + seed) | 0;
    h ^= h >>> 16;
    h = Math.imul(h, 0x85ebca6b);
    h ^= h >>> 13;
    h = Math.imul(h, 0xc2b2ae35);
    h ^= h >>> 16;
    const v = (h >>> 24) / 128 - 1;
    return shape.length < 2 ? v / 4 + centre : v * scale;
  });
}

const made = new Map<string, Tensor>();

function patternTensor(key: string, shape: readonly number[], integer: boolean): Tensor {
  const label = `${key} ${shape.join()}`;
  let value = made.get(label);
  if (value === undefined) {
    value = integer
      ? tensor(
          'int64',
          shape,
          BigInt64Array.from({ length: elementCount(shape) }, (_, i) => BigInt(i)),
        )
      : tensor('float16', shape, encodeHalf(pattern(key, shape)));
    made.set(label, value);
  }
  return value;
}

/** Writes the single file that diffusers read for the goldens, in half precision; returns its path. */
export async function writeSmallCheckpoint(
  folder: string,
  name: 'sd1-small' | 'sd2-small' | 'sdxl-small',
  changes: {
    readonly metadata?: ReadonlyMap<string, string>;
    readonly more?: ReadonlyMap<string, Tensor>;
    readonly keep?: (name: string) => boolean;
  } = {},
): Promise<string> {
  const { tensors, integers } = namedCheckpoints[name];
  const kept = new Map<string, Tensor>();
  for (const [key, shape] of Object.entries(tensors)) {
    if (changes.keep?.(key) !== false) kept.set(key, patternTensor(key, shape, integers.includes(key)));
  }
  for (const [key, value] of changes.more ?? []) kept.set(key, value);
  const path = join(folder, `${name}.safetensors`);
  await writeSafetensorsFile(path, kept, changes.metadata);
  return path;
}
