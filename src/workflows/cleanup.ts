/** What has to be given back when work ends, however it ends: in the reverse order, each of them whatever becomes of the others. */
export class Cleanup {
  readonly #tasks: (() => Promise<unknown>)[] = [];

  private constructor() {}

  /** Does work, then everything that was deferred in it. The work's own error comes before those of the cleanup. */
  static async after<T>(work: (cleanup: Cleanup) => Promise<T>): Promise<T> {
    const cleanup = new Cleanup();
    let result: T;
    try {
      result = await work(cleanup);
    } catch (error) {
      await cleanup.#run().catch(() => undefined);
      throw error;
    }
    await cleanup.#run();
    return result;
  }

  defer(task: () => Promise<unknown>): void {
    this.#tasks.push(task);
  }

  /** Releases the resource at the end; returns it. */
  release<R extends { release(): Promise<unknown> }>(resource: R): R {
    this.defer(() => resource.release());
    return resource;
  }

  async #run(): Promise<void> {
    const failures: unknown[] = [];
    for (const task of this.#tasks.reverse()) await task().catch((error: unknown) => failures.push(error));
    if (failures.length > 0) throw failures[0];
  }
}
