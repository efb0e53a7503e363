/** Prints a line for each check and counts them. */
export class Checks {
  passed = 0;
  failed = 0;

  constructor(private readonly say: (line: string) => void) {}

  /** An error that may be as large as a limit. */
  within(what: string, error: number, limit: number): void {
    this.#count(error <= limit, `${what}: ${error.toExponential(1)}, at most ${limit}`);
  }

  /** A quality that must be as large as a limit, in dB. */
  decibels(what: string, found: number, limit: number): void {
    this.#count(found >= limit, `${what}: ${found.toFixed(1)} dB, at least ${limit}`);
  }

  /** A count of things that are the same. */
  all(what: string, same: number, count: number): void {
    this.#count(same === count && count > 0, `${what}: ${same} of ${count} the same`);
  }

  /** Something that could not be checked. */
  broken(what: string, error: unknown): void {
    this.#count(false, `${what}: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`);
  }

  #count(good: boolean, line: string): void {
    if (good) this.passed++;
    else this.failed++;
    this.say(`${good ? 'ok    ' : 'FAILED'}  ${line}`);
  }
}
