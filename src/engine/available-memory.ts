import { readFileSync } from 'node:fs';
import { freemem, totalmem } from 'node:os';
import { join } from 'node:path';

/**
 * Bytes that this process could still take: what the machine has free, or what is left of the limit of the container, if that is less. Memory that holds no more than
 * copies of files counts as free.
 */
export function availableMemory(): number {
  // On macOS what is called free leaves out most of what could be had.
  const machine = process.platform === 'darwin' ? totalmem() : freemem();
  return Math.min(machine, containerMemory() ?? Number.POSITIVE_INFINITY);
}

/** What is left of a Linux control group's limit; undefined where there is none. */
function containerMemory(): number | undefined {
  const read = (path: string): string | undefined => {
    try {
      return readFileSync(path, 'utf8');
    } catch {
      return undefined;
    }
  };
  const group = /^0::(.*)$/m.exec(read('/proc/self/cgroup') ?? '')?.[1];
  if (group === undefined) return undefined;
  let least: number | undefined;
  for (let folder = group; ; folder = join(folder, '..')) {
    const path = join('/sys/fs/cgroup', folder);
    const limit = Number(read(join(path, 'memory.max')));
    const used = /^anon (\d+)$/m.exec(read(join(path, 'memory.stat')) ?? '')?.[1];
    if (limit > 0 && used !== undefined) least = Math.min(least ?? limit, Math.max(0, limit - Number(used)));
    if (folder === '/' || folder === '.') return least;
  }
}
