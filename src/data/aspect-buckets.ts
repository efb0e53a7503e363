import { UsageError } from '../errors.js';

/** Sides in pixels. */
export interface PictureSize {
  readonly width: number;
  readonly height: number;
}

export interface BucketSettings {
  /** No bucket has more pixels than a square of this side. */
  readonly resolution: number;
  /** The shortest and the longest side of a bucket. */
  readonly shortest: number;
  readonly longest: number;
  /** Sides are multiples of this. */
  readonly step: number;
}

export const squareOf = (side: number): PictureSize => ({ width: side, height: side });

export const sizeName = ({ width, height }: PictureSize): string => `${width}x${height}`;

/**
 * The shapes that pictures of any aspect are brought to, each with about the pixels of the square: for every width in steps, the largest height that keeps below it
 * (aspect-ratio bucketing, as NovelAI described it in 2022 and sd-scripts does it). Narrow ones first.
 *
 * @throws UsageError when no shape fits between the shortest and the longest side.
 */
export function bucketSizes({ resolution, shortest, longest, step }: BucketSettings): PictureSize[] {
  const area = resolution ** 2;
  const down = (side: number): number => Math.floor(side / step) * step;
  const sizes = new Map<string, PictureSize>();
  const add = (width: number, height: number): void => {
    if (Math.min(width, height) < Math.max(step, shortest) || Math.max(width, height) > longest) return;
    for (const size of [
      { width, height },
      { width: height, height: width },
    ])
      sizes.set(sizeName(size), size);
  };
  add(down(resolution), down(resolution));
  for (let width = Math.ceil(shortest / step) * step; width <= longest; width += step) {
    if (width > 0) add(width, down(Math.min(longest, area / width)));
  }
  if (sizes.size === 0) {
    throw new UsageError(
      `--min-bucket-reso ${shortest} and --max-bucket-reso ${longest} leave no shape of at most ${resolution} x ${resolution} pixels in steps of ${step}. Choose a minimum below --resolution and a maximum above it.`,
    );
  }
  return [...sizes.values()].sort((a, b) => a.width - b.width || a.height - b.height);
}

/** The shape whose aspect is nearest to a picture's, by ratio, so that tall and wide are treated alike; of equally near ones the largest. */
export function nearestBucket(sizes: readonly PictureSize[], picture: PictureSize): PictureSize {
  const aspect = ({ width, height }: PictureSize): number => Math.log(width / height);
  const distance = (size: PictureSize): number => Math.abs(aspect(size) - aspect(picture));
  return sizes.reduce((best, size) => {
    const nearer = distance(size) - distance(best);
    const larger = size.width * size.height > best.width * best.height;
    return nearer < -1e-9 || (nearer < 1e-9 && larger) ? size : best;
  });
}
