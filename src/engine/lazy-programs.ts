import type { Graph } from '../onnx/graph.js';
import type { Engine, Program } from './engine.js';

/** One kind of graph in several sizes (a shape, or a number of rows), each compiled when it is first asked for. */
export class LazyPrograms<Size extends number | readonly number[]> {
  readonly #programs = new Map<string, Promise<Program>>();

  constructor(
    private readonly engine: Engine,
    private readonly build: (size: Size) => Graph,
  ) {}

  of(size: Size): Promise<Program> {
    const key = String(size);
    let program = this.#programs.get(key);
    if (!program) {
      program = this.engine.compile(this.build(size));
      this.#programs.set(key, program);
    }
    return program;
  }

  /** Frees the memory of those that were compiled, but for one. */
  async release(kept?: Size): Promise<void> {
    for (const [key, program] of [...this.#programs]) {
      if (kept !== undefined && key === String(kept)) continue;
      this.#programs.delete(key);
      // Whoever asked for one that cannot be compiled was told.
      const compiled = await program.catch(() => undefined);
      await compiled?.release();
    }
  }
}
