import { join } from 'node:path';
import { type Json, parseConfig } from '../formats/json-config.js';
import { writeJsonFile } from '../formats/json-config-file.js';
import { makeFolder } from '../formats/make-folder.js';
import { writeSafetensorsFile } from '../formats/safetensors-file.js';
import {
  clipStatistics,
  imagenetStatistics,
  preprocess,
  readImagePreprocessing,
} from '../models/image-preprocessing.js';
import type { Value } from '../onnx/graph.js';
import { fromFloat32, type Tensor } from '../tensor/tensor.js';

/** Side of the pictures that the small encoders see, in pixels. */
export const ENCODER_RESOLUTION = 64;

/** The preprocessing of the small encoders: their size, and the mean and deviation that benchmarks give DINO and CLIP. */
export function encoderPreprocessing(kind: 'dino' | 'clip'): Json {
  const size = { height: ENCODER_RESOLUTION, width: ENCODER_RESOLUTION };
  const { mean, std } = kind === 'dino' ? imagenetStatistics : clipStatistics;
  return {
    do_normalize: true,
    do_rescale: true,
    do_resize: true,
    image_mean: mean,
    image_processor_type: kind === 'dino' ? 'ViTImageProcessor' : 'CLIPImageProcessor',
    image_std: std,
    resample: 3,
    rescale_factor: 1 / 255,
    size,
  };
}

/** Pictures [B, 3, R, R] in [-1, 1] as an encoder with this preprocessing takes them. */
export function preparedPictures(preprocessing: Json, pixels: Value): Value {
  return preprocess(
    readImagePreprocessing(parseConfig(JSON.stringify(preprocessing), 'preprocessor_config.json')),
    pixels,
  );
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
