import { Random } from '../tensor/random.js';
import { mean } from './similarity.js';

/** Which subjects a resampled set holds, as indices; one row a resample. */
export type Resamples = readonly Uint32Array[];

/** An estimate with its interval. The interval is missing where there are fewer than two subjects. */
export interface Estimate {
  readonly mean: number;
  readonly low?: number;
  readonly high?: number;
}

/** A difference between two methods that were measured on the same subjects. */
export interface PairedDifference extends Estimate {
  /** Two-sided: how often chance alone, of which subjects were drawn, turns the sign; missing where there are fewer than five subjects. */
  readonly p?: number;
}

/** With fewer subjects all differences have the same sign too often by chance, which the bootstrap takes for certainty. */
const LEAST_FOR_P = 5;

/** `count` sets of `subjects` indices each, drawn with replacement; they follow from the seed. */
export function resample(subjects: number, count: number, seed: number): Resamples {
  const random = new Random(seed, 'bootstrap');
  return Array.from({ length: count }, () =>
    Uint32Array.from({ length: subjects }, () => random.int(subjects)),
  );
}

/**
 * The mean over subjects with its percentile bootstrap interval (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, ch. 13).
 *
 * @param level the interval's coverage
 */
export function bootstrapMean(values: readonly number[], resamples: Resamples, level = 0.95): Estimate {
  const estimate = mean(values);
  if (values.length < 2) return { mean: estimate };
  return { mean: estimate, ...percentileInterval(resampledMeans(values, resamples), level) };
}

/**
 * The mean of `a - b` over subjects. Both methods of a resample hold the same subjects, so what makes subjects hard or easy for both cancels out. The
 * p-value inverts the percentile interval: twice the share of resamples on the rarer side of zero, counting the measured one, so it is never 0.
 */
export function pairedBootstrap(
  a: readonly number[],
  b: readonly number[],
  resamples: Resamples,
  level = 0.95,
): PairedDifference {
  if (a.length !== b.length) {
    throw new RangeError(`internal: a paired bootstrap of ${a.length} and ${b.length} subjects`);
  }
  const differences = a.map((v, i) => v - b[i]!);
  const estimate = mean(differences);
  if (differences.length < 2) return { mean: estimate };
  const means = resampledMeans(differences, resamples);
  const interval = percentileInterval(means, level);
  if (differences.length < LEAST_FOR_P) return { mean: estimate, ...interval };
  const share = (side: (d: number) => boolean): number =>
    (1 + means.filter(side).length) / (1 + means.length);
  const p = Math.min(
    1,
    2 *
      Math.min(
        share((d) => d <= 0),
        share((d) => d >= 0),
      ),
  );
  return { mean: estimate, ...interval, p };
}

function resampledMeans(values: readonly number[], resamples: Resamples): number[] {
  return resamples.map((indices) => {
    let sum = 0;
    for (const i of indices) sum += values[i]!;
    return sum / indices.length;
  });
}

function percentileInterval(means: readonly number[], level: number): { low: number; high: number } {
  const sorted = Float64Array.from(means).sort();
  const tail = (1 - level) / 2;
  return { low: quantile(sorted, tail), high: quantile(sorted, 1 - tail) };
}

/** Linear between neighbours, as numpy's default: definition 7 of Hyndman and Fan (The American Statistician 1996). */
function quantile(sorted: Float64Array, q: number): number {
  const at = q * (sorted.length - 1);
  const below = Math.floor(at);
  const [low, high] = [sorted[below]!, sorted[Math.min(below + 1, sorted.length - 1)]!];
  return low + (high - low) * (at - below);
}
