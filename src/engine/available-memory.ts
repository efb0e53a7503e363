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
  return Math.min(machine, controlGroupMemory() ?? Number.POSITIVE_INFINITY);
}

/** Where a version of Linux control groups says what (the kernel's cgroup-v2.rst and cgroup-v1/memory.rst). */
interface ControlGroups {
  /** The line of the process's own group. */
  readonly group: RegExp;
  readonly mount: string;
  readonly limit: string;
  /** What it and those below it hold beside copies of files, in its memory.stat. */
  readonly used: RegExp;
}

const versions: readonly ControlGroups[] = [
  { group: /^0::(.*)$/m, mount: 'sys/fs/cgroup', limit: 'memory.max', used: /^anon (\d+)$/m },
  {
    group: /^\d+:(?:[^:\n]*,)?memory(?:,[^:\n]*)?:(.*)$/m,
    mount: 'sys/fs/cgroup/memory',
    limit: 'memory.limit_in_bytes',
    used: /^total_rss (\d+)$/m,
  },
];

/** What is left of the limits of a Linux control group and those above it, in bytes; undefined where there are none. @param root of the file system */
export function controlGroupMemory(root = '/'): number | undefined {
  const read = (path: string): string => {
    try {
      return readFileSync(join(root, path), 'utf8');
    } catch {
      return '';
    }
  };
  const groups = read('proc/self/cgroup');
  const left = versions.flatMap(({ group, mount, limit, used }) => {
    const own = group.exec(groups)?.[1];
    if (own === undefined) return [];
    return foldersUpFrom(own).flatMap((folder) => {
      const most = Number(read(join(mount, folder, limit)));
      const now = used.exec(read(join(mount, folder, 'memory.stat')))?.[1];
      return most > 0 && now !== undefined ? [Math.max(0, most - Number(now))] : [];
    });
  });
  return left.length > 0 ? Math.min(...left) : undefined;
}

/** "/a/b", "/a", "/": a container may see its own group as the root of all. */
function foldersUpFrom(group: string): readonly string[] {
  const names = group.split('/').filter((name) => name !== '');
  return Array.from({ length: names.length + 1 }, (_, i) => `/${names.slice(0, names.length - i).join('/')}`);
}
