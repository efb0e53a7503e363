import { type ChildProcess, spawn } from 'node:child_process';
import { createInterface, type Interface } from 'node:readline';

/** A child process that answers each line it is given with one line of JSON. What it says on its standard error is kept for when it fails. */
export class LineProcess {
  readonly #child: ChildProcess;
  readonly #lines: AsyncIterator<string>;
  readonly #reader: Interface;
  #errors = '';

  /** @param env what it finds in its environment besides ours */
  constructor(command: string, args: readonly string[], env: Readonly<Record<string, string>> = {}) {
    this.#child = spawn(command, args, { stdio: ['pipe', 'pipe', 'pipe'], env: { ...process.env, ...env } });
    this.#child.stderr?.on('data', (chunk: Buffer) => {
      this.#errors = (this.#errors + chunk.toString()).slice(-4000);
    });
    this.#child.on('error', (error) => {
      this.#errors += error.message;
    });
    this.#child.stdin?.on('error', () => {
      // The process has ended; reading says so.
    });
    this.#reader = createInterface({ input: this.#child.stdout! });
    this.#lines = this.#reader[Symbol.asyncIterator]();
  }

  /** The next line it says. @throws Error with what it said on its standard error, when it has ended. */
  async read<T>(): Promise<T> {
    const { value, done } = await this.#lines.next();
    if (done) throw new Error(this.#errors.trim() || 'the process ended');
    return JSON.parse(value as string) as T;
  }

  ask<T>(line: string): Promise<T> {
    this.#child.stdin?.write(`${line}\n`);
    return this.read<T>();
  }

  /** Ends it, without waiting for processes of its own that may still hold its ends of the pipes. */
  stop(): void {
    this.#reader.close();
    this.#child.kill();
    for (const stream of this.#child.stdio) stream?.destroy();
    this.#child.unref();
  }
}
