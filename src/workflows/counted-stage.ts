import type { TrainingListener } from '../training/events.js';

/** A long part of some work, told step by step with the time that is left. */
export class CountedStage {
  readonly #start = performance.now();
  #done: number;

  /** @param already done before this process began, which says nothing about the time */
  constructor(
    private readonly name: string,
    private readonly total: number,
    private readonly already: number,
    private readonly onEvent: TrainingListener | undefined,
  ) {
    this.#done = already;
  }

  /** @param ahead what is half done, told but not counted: the end is told only once it is */
  advance(count: number, ahead = 0): void {
    this.#done += count;
    const now = this.#done + ahead;
    const made = now - this.already;
    const seconds = (performance.now() - this.#start) / 1000;
    this.onEvent?.({
      kind: 'stage',
      name: this.name,
      done: Math.floor(ahead > 0 ? Math.min(now, this.total - 1) : now),
      total: this.total,
      ...(made > 0 ? { secondsLeft: (seconds / made) * (this.total - now) } : {}),
    });
  }
}
