import { join } from 'node:path';
import type { Json } from '../formats/json-config.js';
import { writeJsonFile } from '../formats/json-config-file.js';
import { makeFolder } from '../formats/make-folder.js';
import { writeSafetensorsFile } from '../formats/safetensors-file.js';
import { fromFloat32, type Tensor } from '../tensor/tensor.js';

/** Side of the pictures that the small encoders see, in pixels. */
export const ENCODER_RESOLUTION = 64;

/** The preprocessing of the small encoders: their size, and values in [-1, 1]. */
export function encoderPreprocessing(processor: 'ViTImageProcessor' | 'CLIPImageProcessor'): Json {
  const size = { height: ENCODER_RESOLUTION, width: ENCODER_RESOLUTION };
  return {
    do_normalize: true,
    do_rescale: true,
    do_resize: true,
    image_mean: [0.5, 0.5, 0.5],
    image_processor_type: processor,
    image_std: [0.5, 0.5, 0.5],
    resample: 3,
    rescale_factor: 1 / 255,
    size,
  };
}

/** Writes an encoder as a Hugging Face folder: its configuration, its preprocessing, and its weights in half precision, which come last. */
export async function writeEncoder(
  folder: string,
  configs: Readonly<Record<string, Json>>,
  weights: ReadonlyMap<string, Tensor<'float32'>>,
): Promise<void> {
  await makeFolder(folder);
  for (const [name, config] of Object.entries(configs)) {
    await writeJsonFile(join(folder, name), config);
  }
  const halves = [...weights].map(([name, t]) => [name, fromFloat32(t, 'float16')] as const);
  await writeSafetensorsFile(join(folder, 'model.safetensors'), new Map(halves), new Map([['format', 'pt']]));
}
