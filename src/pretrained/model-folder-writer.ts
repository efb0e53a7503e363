import { mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { writeFileAtomic } from '../formats/atomic-file.js';
import { writeJsonFile } from '../formats/json-config-file.js';
import type { TensorStream } from '../formats/safetensors.js';
import { writeTensorStreams } from '../formats/safetensors-file.js';
import { type SingleFile, shippedTokenizerPath } from './single-file.js';
import { type Weight, weightStream } from './weight.js';

const vocabularyFiles = ['vocab.json', 'merges.txt'] as const;

/**
 * Writes a single-file checkpoint as a diffusers folder, into a folder that exists: configurations, tokenizers, and each component's weights in the types they have.
 *
 * @param streamOf what is written for a weight; the weight itself by default.
 */
export async function writeModelFolder(
  folder: string,
  { configurations, weights }: SingleFile,
  streamOf: (component: string, path: string, weight: Weight) => TensorStream = (_, path, weight) =>
    weightStream(path, weight),
): Promise<void> {
  const { model_index: index, ...parts } = configurations;
  await writeJsonFile(join(folder, 'model_index.json'), index);
  for (const [name, values] of Object.entries(parts)) {
    await mkdir(join(folder, name));
    if (name === 'scheduler') await writeJsonFile(join(folder, name, 'scheduler_config.json'), values);
    else if (name.startsWith('tokenizer')) {
      await writeJsonFile(join(folder, name, 'tokenizer_config.json'), values);
      for (const file of vocabularyFiles)
        await writeFileAtomic(join(folder, name, file), await readFile(join(shippedTokenizerPath(), file)));
    } else {
      await writeJsonFile(join(folder, name, 'config.json'), values);
    }
  }
  for (const [name, tensors] of Object.entries(weights)) {
    const file = name.startsWith('text_encoder') ? 'model' : 'diffusion_pytorch_model';
    await writeTensorStreams(
      join(folder, name, `${file}.safetensors`),
      [...tensors].sort(([a], [b]) => (a < b ? -1 : 1)).map(([path, weight]) => streamOf(name, path, weight)),
      new Map([['format', 'pt']]),
    );
  }
}
