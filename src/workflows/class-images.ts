import { mkdir, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { encodePng } from '../data/image-grid.js';
import { type ReferenceImages, readReferenceImages } from '../data/reference-images.js';
import type { State } from '../engine/engine.js';
import { outputError, writeFileAtomic } from '../formats/atomic-file.js';
import type { TextToImage } from '../pretrained/text-to-image.js';
import type { TrainingListener } from '../training/events.js';

export interface ClassImageOptions {
  /** Where they are kept; pictures that are there already are used. */
  readonly folder: string;
  readonly prompt: string;
  readonly count: number;
  readonly seed: number;
  readonly steps: number;
  readonly guidanceScale: number;
  readonly resolution: number;
  /** The base model's factors: all zero. */
  readonly state: State;
  readonly onEvent?: TrainingListener;
  readonly signal?: AbortSignal;
}

const fileName = (index: number): string => `class-${String(index).padStart(4, '0')}.png`;

/**
 * Pictures of the subject's class for prior preservation, drawn by the base model and kept in a folder. Each has a seed of its own, so the missing ones are drawn and
 * nothing else, however often this is stopped.
 */
export async function classImages(drawer: TextToImage, options: ClassImageOptions): Promise<ReferenceImages> {
  const { folder, prompt, count, seed, onEvent } = options;
  await mkdir(folder, { recursive: true }).catch((error: unknown) => {
    throw outputError(folder, error);
  });
  const there = new Set(await readdir(folder));
  const own = Array.from({ length: count }, (_, i) => i);
  const foreign = [...there].filter((name) => !name.startsWith('.') && !/^class-\d+\.png$/.test(name));
  // A folder of the user's own class pictures is used as it is.
  if (foreign.length === 0) {
    const missing = own.filter((i) => !there.has(fileName(i)));
    for (let start = 0; start < missing.length; start += drawer.batch) {
      const batch = missing.slice(start, start + drawer.batch);
      const drawn = await drawer.draw(
        batch.map((i) => ({ prompt, seed: classSeed(seed, i) })),
        options,
      );
      for (const [k, image] of drawn.entries()) {
        await writeFileAtomic(join(folder, fileName(batch[k]!)), await encodePng(image));
      }
      onEvent?.({
        kind: 'stage',
        name: 'drawing class images',
        done: start + batch.length,
        total: missing.length,
      });
    }
  }
  const source = foreign.length === 0 ? own.map((i) => join(folder, fileName(i))) : folder;
  return readReferenceImages(source, { resolution: options.resolution, smallestSide: 1 });
}

/** Seeds of class pictures lie apart from those of the sample pictures. */
const classSeed = (seed: number, index: number): number => seed + 1_000_000 + index;
