import { setTimeout as sleep } from 'node:timers/promises';
import { HubError } from '../errors.js';

/** How long to go on in the face of failures. */
export interface Patience {
  /** Failures in a row, without a byte in between, after which to give up. */
  readonly attempts: number;
  /** Milliseconds before the second attempt; the pause doubles from then on. */
  readonly pause: number;
}

/** A hub that wants to be left alone for longer than this is not waited for, in seconds. */
const LONGEST_WAIT = 330;

/** Whether trying again later can help. */
export function mayPass(error: unknown): error is HubError {
  return error instanceof HubError && ['rate-limit', 'server', 'network'].includes(error.fault);
}

/** Tries again after what may pass: a connection that broke, a server that failed, too many requests. */
export class Retry {
  #failures = 0;

  /** @param onWarning hears why there is a pause, and how long it is */
  constructor(
    private readonly patience: Patience,
    private readonly onWarning: ((message: string) => void) | undefined,
    private readonly signal: AbortSignal | undefined,
  ) {}

  /** There was progress, so the failures so far do not count. */
  progressed(): void {
    this.#failures = 0;
  }

  /** Waits until the time to try again has come. @throws the error itself when there is no sense in that. */
  async after(error: unknown): Promise<void> {
    if (!mayPass(error)) throw error;
    this.#failures++;
    const { retryAfter } = error;
    if (this.#failures >= this.patience.attempts || (retryAfter ?? 0) > LONGEST_WAIT) throw error;
    const milliseconds = Math.max(this.patience.pause * 2 ** (this.#failures - 1), (retryAfter ?? 0) * 1000);
    this.onWarning?.(
      `${error.message.split(/(?<=[.:]) /)[0]!.replace(/[.:]$/, '')}; trying again in ${Math.ceil(milliseconds / 1000)} s.`,
    );
    await sleep(milliseconds, undefined, this.signal ? { signal: this.signal } : {});
  }

  /** Does what may have to be tried again. */
  async of<T>(ask: () => Promise<T>): Promise<T> {
    for (;;) {
      try {
        return await ask();
      } catch (error) {
        await this.after(error);
      }
    }
  }
}
