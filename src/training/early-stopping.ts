import type { MetricsRecord } from './metrics-log.js';

/** The field of a metrics line under which a validation's score is kept. */
export const SCORE = 'judge.score';

/** A validation of a run in training. */
export interface Validation {
  readonly step: number;
  readonly score: number;
}

/**
 * Early stopping on a score of validations, more being better: a run is over when so many of them in a row have brought nothing better, and what is kept is what was best.
 * Step 0, before training, does not count. All of it follows from the scores so far, and those are in the run's metrics.
 */
export class EarlyStopping {
  readonly #scores: Validation[] = [];

  /**
   * @param patience validations without anything better after which to stop; infinite, and a run goes on to its end
   * @param records of a run so far
   */
  constructor(
    private readonly patience: number,
    records: readonly MetricsRecord[] = [],
  ) {
    for (const record of records) {
      const score = record[SCORE];
      if (typeof score === 'number') this.add(record.step, score);
    }
  }

  /** Steps have to come in their order. */
  add(step: number, score: number): void {
    if (step > 0) this.#scores.push({ step, score });
  }

  /** The best validation so far, the first among equals; undefined before there is one. */
  get best(): Validation | undefined {
    return this.#scores[this.#bestIndex()];
  }

  /** The last validation. */
  get last(): Validation | undefined {
    return this.#scores.at(-1);
  }

  /** Whether the last validation ends the run. */
  get isOver(): boolean {
    return this.#scores.length - 1 - this.#bestIndex() >= this.patience;
  }

  #bestIndex(): number {
    return this.#scores.reduce((best, { score }, i, all) => (score > all[best]!.score ? i : best), 0);
  }
}
