import { readdir, readFile } from 'node:fs/promises';
import { extname, join } from 'node:path';
import { readableExtensions } from '../data/image-format.js';
import { encodePng } from '../data/image-grid.js';
import { type ReferenceImages, readReferenceImages } from '../data/reference-images.js';
import type { SchedulerName } from '../diffusion/scheduler-config.js';
import type { State } from '../engine/engine.js';
import { InputError } from '../errors.js';
import { removeStaleTemporaries, writeFileAtomic } from '../formats/atomic-file.js';
import type { Json } from '../formats/json-config.js';
import { makeFolder } from '../formats/make-folder.js';
import type { TextToImage } from '../pretrained/text-to-image.js';
import type { TrainingListener } from '../training/events.js';
import { CountedStage } from './counted-stage.js';

export interface ClassImageOptions {
  /** Where they are kept; pictures that are there already are used. */
  readonly folder: string;
  /** The model that draws them, by the digests of its weights, and what it draws. */
  readonly model: Json;
  readonly prompt: string;
  readonly count: number;
  readonly seed: number;
  readonly steps: number;
  readonly scheduler: SchedulerName | undefined;
  readonly guidanceScale: number;
  readonly resolution: number;
  /** The base model's factors: all zero. */
  readonly state: State;
  readonly onEvent?: TrainingListener;
  readonly signal?: AbortSignal;
}

const fileName = (index: number): string => `class-${String(index).padStart(4, '0')}.png`;

const DESCRIPTION = 'class-images.json';
const ownName = /^class-\d+\.png$/;

/**
 * Pictures of the subject's class for prior preservation, drawn by the base model and kept in a folder. They are drawn in batches that always hold the same ones, so
 * the missing ones come out the same however often this is stopped. A folder that holds the user's own pictures is used as it is.
 *
 * @throws InputError when the folder holds pictures that were drawn from another prompt, by another model or with other settings.
 */
export async function classImages(drawer: TextToImage, options: ClassImageOptions): Promise<ReferenceImages> {
  const { folder, prompt, count, seed, onEvent, resolution } = options;
  await makeFolder(folder);
  await removeStaleTemporaries(folder);
  const there = new Set(await readdir(folder));
  const isPicture = (name: string): boolean => readableExtensions.has(extname(name).slice(1).toLowerCase());
  if ([...there].some((name) => !name.startsWith('.') && isPicture(name) && !ownName.test(name))) {
    return readReferenceImages(folder, { resolution });
  }
  await describe(options);
  const all = Math.ceil(count / drawer.batch);
  const ofBatch = (b: number): number[] =>
    Array.from({ length: drawer.batch }, (_, i) => b * drawer.batch + i);
  const isWanted = (i: number): boolean => i < count;
  const isMissing = (b: number): boolean => ofBatch(b).some((i) => isWanted(i) && !there.has(fileName(i)));
  const missing = Array.from({ length: all }, (_, b) => b).filter(isMissing);
  const stage = new CountedStage('drawing class images', all, all - missing.length, onEvent);
  const together = drawer.share / drawer.batch;
  for (let start = 0; start < missing.length; start += together) {
    const batches = missing.slice(start, start + together);
    const indices = batches.flatMap(ofBatch);
    const requests = indices.map((i) => ({ prompt, seed: classSeed(seed, i) }));
    const onProgress = (done: number, of: number) => stage.advance(0, (batches.length * done) / of);
    const drawn = await drawer.draw(requests, { ...options, onProgress });
    for (const [place, i] of indices.entries()) {
      if (isWanted(i)) await writeFileAtomic(join(folder, fileName(i)), await encodePng(drawn[place]!));
    }
    stage.advance(batches.length);
  }
  const files = Array.from({ length: count }, (_, i) => join(folder, fileName(i)));
  return readReferenceImages(files, { resolution, smallestSide: 1 });
}

/** Says beside the pictures what they are, and refuses a folder of others. */
async function describe(options: ClassImageOptions): Promise<void> {
  const { folder, model, prompt, seed, steps, scheduler, guidanceScale, resolution } = options;
  const path = join(folder, DESCRIPTION);
  const text = `${JSON.stringify({ model, prompt, seed, steps, scheduler, guidanceScale, resolution }, null, 2)}\n`;
  const before = await readFile(path, 'utf8').catch(() => undefined);
  if (before === text) return;
  if (before !== undefined) {
    throw new InputError(
      `${folder}: these class pictures were drawn from other settings (${path} says which). Choose another --class-data-dir, or remove the pictures to have them drawn again.`,
    );
  }
  await writeFileAtomic(path, text);
}

/** Seeds of class pictures lie apart from those of the sample pictures. */
const classSeed = (seed: number, index: number): number => seed + 1_000_000 + index;
