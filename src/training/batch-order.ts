import { Random } from '../tensor/random.js';

/** What a micro step trains on: a bucket, and how many micro steps it had before. */
export interface Turn {
  readonly bucket: number;
  readonly use: number;
}

/**
 * Whose turn it is at micro step `index` of a run. In each round of as many micro steps as there are pictures a bucket has one turn for each of its pictures, in a
 * random order, so that all pictures are seen equally often; nothing but the seed and the index decides.
 *
 * @param counts pictures in each bucket
 */
export function turnOf(seed: number, counts: readonly number[], index: number): Turn {
  const round = counts.flatMap((count, bucket) => new Array<number>(count).fill(bucket));
  const [rounds, position] = [Math.floor(index / round.length), index % round.length];
  const order = new Random(seed, 'buckets', rounds).permutation(round.length).map((i) => round[i]!);
  const bucket = order[position]!;
  const before = order.slice(0, position).filter((b) => b === bucket).length;
  return { bucket, use: rounds * counts[bucket]! + before };
}

/** A picture of a batch, and its place in everything that the stream gives out: what is random about it follows from that. */
export interface Pick {
  readonly picture: number;
  readonly position: number;
}

/**
 * The pictures of a bucket's batch number `use`: every picture once in a random order, then again in another one.
 *
 * @param stream names the order: there is one a bucket.
 * @param pictures in the bucket
 */
export function picksOf(
  seed: number,
  stream: readonly (string | number)[],
  pictures: readonly number[],
  batchSize: number,
  use: number,
): Pick[] {
  return Array.from({ length: batchSize }, (_, i) => {
    const position = use * batchSize + i;
    const epoch = Math.floor(position / pictures.length);
    const order = new Random(seed, 'order', ...stream, epoch).permutation(pictures.length);
    return { picture: pictures[order[position % pictures.length]!]!, position };
  });
}
