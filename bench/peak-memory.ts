import { readFileSync } from 'node:fs';

/** The most memory that this process has held at once, in bytes. */
export function peakMemory(): number {
  if (process.platform === 'linux') {
    // getrusage's figure survives exec and may be the parent's; the kernel's high-water mark is this program's own.
    const mark = /^VmHWM:\s+(\d+) kB$/m.exec(readFileSync('/proc/self/status', 'utf8'));
    if (mark) return Number(mark[1]) * 1024;
  }
  return process.resourceUsage().maxRSS * 1024;
}
