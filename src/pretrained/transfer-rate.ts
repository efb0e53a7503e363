/** How many seconds back the rate looks: long enough to be steady, short enough to follow a connection that changes. */
const WINDOW = 10;

/** The rate of a transfer over its last seconds, and the time that is left at that rate. */
export class TransferRate {
  readonly #samples: { readonly at: number; readonly bytes: number }[] = [];

  /** @param now the time in milliseconds */
  constructor(private readonly now: () => number = () => performance.now()) {}

  /** @param bytes that are here, counting those from before */
  at(bytes: number, totalBytes: number): { bytesPerSecond: number; secondsLeft: number | undefined } {
    const at = this.now() / 1000;
    this.#samples.push({ at, bytes });
    while (this.#samples.length > 2 && this.#samples[1]!.at < at - WINDOW) this.#samples.shift();
    const first = this.#samples[0]!;
    const bytesPerSecond = at > first.at ? Math.max(0, (bytes - first.bytes) / (at - first.at)) : 0;
    const secondsLeft = bytesPerSecond > 0 ? (totalBytes - bytes) / bytesPerSecond : undefined;
    return { bytesPerSecond, secondsLeft };
  }
}
