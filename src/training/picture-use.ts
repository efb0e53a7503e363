import { type PictureSize, sizeName } from '../data/aspect-buckets.js';
import type { Random } from '../tensor/random.js';

export interface PictureUseOptions {
  /** Cut another part out of each picture every time it is used. */
  readonly randomCrop: boolean;
  /** Mirror a picture half of the times it is used. */
  readonly randomFlip: boolean;
}

/** How one use of a picture sees it. */
export interface PictureUse {
  readonly flip: boolean;
  /** The middle, or a stream that says which part. */
  readonly crop: 'center' | Random;
}

/** The same random stream gives the same view, whoever asks. */
export function pictureUse({ randomCrop, randomFlip }: PictureUseOptions, random: Random): PictureUse {
  const flip = randomFlip && random.derive('flip').uniform() < 0.5;
  return { flip, crop: randomCrop ? random.derive('crop') : 'center' };
}

/** What uses of picture `index`, brought to this size, that see the same have in common; undefined for a random crop, which no other use has. */
export const viewName = (index: number, size: PictureSize, { flip, crop }: PictureUse): string | undefined =>
  crop === 'center' ? `${index}:${sizeName(size)}:${flip}` : undefined;
