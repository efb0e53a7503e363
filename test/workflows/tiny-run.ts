import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import sharp from 'sharp';
import { Random } from '../../src/tensor/random.js';
import type { PersonaliseOptions } from '../../src/workflows/personalise.js';

/** The smallest checkpoint among the goldens: pictures of 16 pixels, a network of a few thousand weights. */
export const tinyModel = fileURLToPath(new URL('../../../test/goldens/models/sd1-tiny', import.meta.url));

/** Writes a few blotchy pictures, the same ones for the same seed. */
export async function writePictures(folder: string, count = 3, side = 40): Promise<string> {
  await mkdir(folder, { recursive: true });
  for (let i = 0; i < count; i++) {
    const random = new Random(5, 'picture', i);
    const small = Uint8Array.from({ length: 3 * 8 * 8 }, () => random.int(256));
    await sharp(small, { raw: { width: 8, height: 8, channels: 3 } })
      .resize(side, side + 6 * i, { fit: 'fill' })
      .png()
      .toFile(join(folder, `${i}.png`));
  }
  return folder;
}

/** Beside the pictures: a caption of one's own for the first, one in the folder's list for the second; the third is wide. */
export async function writeExtras(folder: string): Promise<void> {
  await writeFile(join(folder, '0.txt'), 'a {} on a blanket');
  await writeFile(
    join(folder, 'metadata.jsonl'),
    `${JSON.stringify({ file_name: '1.png', text: 'sks backpack, seen from behind' })}\n`,
  );
  const random = new Random(5, 'wide picture');
  const small = Uint8Array.from({ length: 3 * 16 * 8 }, () => random.int(256));
  await sharp(small, { raw: { width: 16, height: 8, channels: 3 } })
    .resize(80, 40, { fit: 'fill' })
    .png()
    .toFile(join(folder, '2.png'));
}

/** A run with everything on that has a state of its own to get wrong. */
export function fullTinyRun(images: string, output: string): PersonaliseOptions {
  return {
    ...tinyRun(images, output),
    enableBucket: true,
    noiseOffset: 0.05,
    validationPrompts: ['a sks backpack'],
    steps: 7,
    validationSteps: 4,
    reportTo: 'tensorboard',
  };
}

/** A run on it that takes a second or two. The random network's residuals are far larger than a trained one's, hence the critic's small steps. */
export function tinyRun(images: string, output: string): PersonaliseOptions {
  return {
    model: tinyModel,
    images,
    output,
    instancePrompt: 'a photo of sks backpack',
    classPrompt: 'a photo of backpack',
    steps: 9,
    checkpointingSteps: 2,
    numClassImages: 2,
    trainBatchSize: 2,
    samplingSteps: 2,
    numValidationImages: 1,
    validationPrompts: ['a sks backpack', 'a sks backpack on the beach'],
    criticLearningRate: 1e-7,
    randomFlip: true,
    useEma: true,
    lrScheduler: 'cosine',
    lrWarmupSteps: 2,
    threads: 1,
  };
}

/** What makes it a run of Custom Diffusion. */
export const tinyCustomDiffusion: Partial<PersonaliseOptions> = {
  train: 'custom-diffusion',
  modifierToken: ['<new1>'],
  initializerToken: ['a'],
  instancePrompt: 'a photo of <new1> backpack',
  validationPrompts: ['a <new1> backpack'],
};

/** What makes it a run of textual inversion. */
export const tinyTextualInversion: Partial<PersonaliseOptions> = {
  train: 'textual-inversion',
  placeholderToken: '<toy>',
  initializerToken: ['a'],
  instancePrompt: 'a photo of <toy>',
  validationPrompts: ['a <toy>'],
};
