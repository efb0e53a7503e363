import {
  bootstrapMean,
  type Estimate,
  type PairedDifference,
  pairedBootstrap,
  resample,
} from './bootstrap.js';
import { type Metric, metrics, type Scores } from './scores.js';

/** A method's scores of each subject, in the order of the subjects. */
export interface MethodScores {
  readonly name: string;
  readonly subjects: readonly Scores[];
}

/** A method's estimates over the subjects. */
export interface MethodEstimates {
  readonly name: string;
  readonly estimates: Partial<Record<Metric, Estimate>>;
}

/** How much a method differs from the baseline. */
export interface MethodDifference {
  readonly name: string;
  readonly baseline: string;
  readonly differences: Partial<Record<Metric, PairedDifference>>;
}

export interface Comparison {
  readonly methods: readonly MethodEstimates[];
  readonly differences: readonly MethodDifference[];
  /** The photographs among themselves. */
  readonly photographs: Partial<Record<Metric, Estimate>>;
}

export interface ComparisonOptions {
  /** Bootstrap resamples. Default 10,000. */
  readonly resamples?: number;
  readonly seed?: number;
  /** The method that the others are compared with. Default: the first. */
  readonly baseline?: string;
}

/** Estimates over subjects for every method, and each method's difference from the baseline on the same subjects. All of them see the same resamples. */
export function compareMethods(
  methods: readonly MethodScores[],
  photographs: readonly Scores[],
  options: ComparisonOptions = {},
): Comparison {
  const { resamples: count = 10_000, seed = 0, baseline = methods[0]?.name } = options;
  const resamples = resample(photographs.length, count, seed);
  const estimates = (subjects: readonly Scores[]): Partial<Record<Metric, Estimate>> =>
    byMetric((metric) => {
      const values = complete(subjects, metric);
      return values && bootstrapMean(values, resamples);
    });
  const reference = methods.find(({ name }) => name === baseline);
  const others = methods.filter(({ name }) => name !== baseline);
  return {
    methods: methods.map(({ name, subjects }) => ({ name, estimates: estimates(subjects) })),
    differences: !reference
      ? []
      : others.map(({ name, subjects }) => ({
          name,
          baseline: reference.name,
          differences: byMetric((metric) => {
            const [a, b] = [complete(subjects, metric), complete(reference.subjects, metric)];
            return a && b && pairedBootstrap(a, b, resamples);
          }),
        })),
    photographs: estimates(photographs),
  };
}

/** The metric's value for every subject; undefined where one has none, since a mean over other subjects is another number. */
function complete(subjects: readonly Scores[], metric: Metric): number[] | undefined {
  const values = subjects.flatMap((scores) => scores[metric] ?? []);
  return values.length > 0 && values.length === subjects.length ? values : undefined;
}

function byMetric<T>(of: (metric: Metric) => T | undefined): Partial<Record<Metric, T>> {
  const entries = metrics.flatMap((metric) => {
    const value = of(metric);
    return value === undefined ? [] : [[metric, value] as const];
  });
  return Object.fromEntries(entries) as Partial<Record<Metric, T>>;
}
