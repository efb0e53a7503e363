import { stat } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { type TensorStream, tensorStream } from '../formats/safetensors.js';
import { writeTensorStreams } from '../formats/safetensors-file.js';
import type { PredictionType } from './architectures.js';
import { copyModelFolder } from './model-folder-copy.js';
import { writeModelFolder } from './model-folder-writer.js';
import { readSingleFile } from './single-file.js';
import type { StableDiffusion } from './stable-diffusion.js';
import type { TrainedWeights } from './trainable.js';
import { type Weight, weightShape, weightStream } from './weight.js';
import { type WeightSet, weightStem } from './weights.js';

/**
 * Writes a model with some of its weights trained as a diffusers folder, into one that exists. The components that were trained are written in float32, in one file each,
 * as later training and merging need the digits; all else is copied. A model that was a single file becomes a folder. Tensors pass through one by one.
 *
 * @param predictionType what the denoiser predicts, where that was said in place of the model's own word.
 */
export async function writeTrainedFolder(
  target: string,
  model: StableDiffusion,
  trained: TrainedWeights,
  predictionType?: PredictionType,
): Promise<void> {
  const { path } = model.folder;
  const own = new Set(trained.names);
  const changed = model.weightSets.filter(({ component }) =>
    trained.names.some((name) => name.startsWith(`${component}.`)),
  );
  const stream = (component: string, name: string, weight: Weight): TensorStream => {
    const full = `${component}.${name}`;
    if (!own.has(full)) return weightStream(name, weight);
    return tensorStream(name, { dtype: 'float32', shape: weightShape(weight) }, () => trained.read(full));
  };
  if ((await stat(path)).isFile()) {
    return writeModelFolder(target, await readSingleFile(path, predictionType), stream);
  }
  const write = (set: WeightSet) => async (into: string) => {
    const tensors = [...set.weights].map(([name, weight]) => stream(set.component, name, weight));
    const file = join(into, `${weightStem(set.component)}.safetensors`);
    await writeTensorStreams(file, tensors, new Map([['format', 'pt']]));
  };
  await copyModelFolder(path, target, new Map(changed.map((set) => [resolve(set.folder), write(set)])));
}
