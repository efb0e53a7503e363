/** Blocks from this size on come straight from the system and go back to it, in bytes. */
export const largeBlock = 32 * 2 ** 20;

/**
 * How the C library of Linux (glibc) is to keep memory for the engine, as the environment of a process: the engine asks for every value anew and gives it back when it was read
 * for the last time. One arena, so that what one thread gives back another can have; blocks of up to 32 MiB from there, since the system would hand out each large one
 * page by page and zeroed, while the largest, transformed kernels above all, leave no holes behind; and up to 1 GiB of what was given back stays for the next step. Memory
 * is then as flat as the graph is, and a step some hundredths faster (docs/memory.md). It is read when a process starts.
 */
export const allocatorSettings: Readonly<Record<string, string>> = {
  MALLOC_ARENA_MAX: '1',
  MALLOC_MMAP_THRESHOLD_: String(largeBlock),
  MALLOC_TRIM_THRESHOLD_: String(2 ** 30),
};
