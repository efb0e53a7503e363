import type { HeldOutSubject } from '../../src/data/world/held-out.js';
import {
  bootstrapMean,
  type Estimate,
  type PairedDifference,
  pairedBootstrap,
  resample,
} from '../../src/evaluation/bootstrap.js';
import { mean } from '../../src/evaluation/similarity.js';
import { type Marks, truths } from './marks.js';
import { type Job, type Method, methodNamed } from './plan.js';

/** What the judges measure. */
export const similarities = ['dino', 'clipI', 'clipT', 'diversity'] as const;
/** The columns of the tables. */
export const columns = [...similarities, ...truths] as const;
export type Column = (typeof columns)[number];
export type Row = Record<Column, number>;

const RESAMPLES = 10_000;

export function rowOf({ scores, truth }: Marks): Row {
  const { dino = Number.NaN, clipI = Number.NaN, clipT = Number.NaN, diversity = Number.NaN } = scores;
  return { dino, clipI, clipT, diversity, ...truth };
}

export function meanRow(rows: readonly Row[]): Row {
  return Object.fromEntries(columns.map((c) => [c, mean(rows.map((row) => row[c]))])) as Row;
}

/** The scores that settings are chosen by. */
const CHOSEN_BY = ['dino', 'clipI', 'clipT'] as const;
export type Spread = Record<(typeof CHOSEN_BY)[number], number>;

/** The standard deviation of each score over all that was tried, of whatever method: judges spread their cosines unequally wide, and as they are the widest would decide alone. */
export function spreadOf(rows: readonly Row[]): Spread {
  const deviation = (values: readonly number[]): number => {
    const centre = mean(values);
    return Math.sqrt(mean(values.map((value) => (value - centre) ** 2)));
  };
  return Object.fromEntries(CHOSEN_BY.map((c) => [c, deviation(rows.map((row) => row[c]))])) as Spread;
}

/** The sum of the three scores, in standard deviations. */
export const worth = (row: Row, spread: Spread): number =>
  CHOSEN_BY.reduce((sum, c) => sum + row[c] / spread[c], 0);

/** A method's estimates over subjects, and its differences from its baseline on the same subjects. */
export interface MethodResult {
  readonly method: Method;
  readonly estimates: Readonly<Record<Column, Estimate>>;
  readonly differences: Readonly<Record<Column, PairedDifference>> | undefined;
  /** By subject: the mean over seeds. */
  readonly subjects: readonly Row[];
}

/** Estimates of all methods. @param rows by method, subject and seed */
export function compare(
  rows: ReadonlyMap<Method, readonly (readonly Row[])[]>,
  subjects: readonly HeldOutSubject[],
): MethodResult[] {
  const resamples = resample(subjects.length, RESAMPLES, 0);
  const bySubject = new Map([...rows].map(([m, all]) => [m, all.map(meanRow)] as const));
  const each = <T>(of: (column: Column) => T) =>
    Object.fromEntries(columns.map((c) => [c, of(c)])) as Record<Column, T>;
  return [...bySubject].map(([method, own]) => {
    const against = method.baseline === undefined ? undefined : bySubject.get(methodNamed(method.baseline));
    const values = (list: readonly Row[], column: Column) => list.map((row) => row[column]);
    return {
      method,
      estimates: each((c) => bootstrapMean(values(own, c), resamples)),
      differences: against && each((c) => pairedBootstrap(values(own, c), values(against, c), resamples)),
      subjects: own,
    };
  });
}

/** What was tried for a method, and what became of it. */
export interface Choice {
  readonly settings: Job['settings'];
  readonly row: Row;
}

/** The choice of most worth: of those that are no worse than the baseline in any score or, where there are none, of all. */
export function best(choices: readonly Choice[], spread: Spread, baseline?: Choice): Choice {
  const better = choices.filter(({ row }) => baseline && CHOSEN_BY.every((c) => row[c] >= baseline.row[c]));
  return (better.length > 0 ? better : choices).reduce((a, b) =>
    worth(b.row, spread) > worth(a.row, spread) ? b : a,
  );
}
