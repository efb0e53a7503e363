import { spawnSync } from 'node:child_process';
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

/** What this process holds on NVIDIA cards, in bytes, by the driver; undefined where that cannot be asked. Both sides give nothing back while they run, so at the end it is the peak. */
export function deviceMemory(): number | undefined {
  const { stdout } = spawnSync(
    'nvidia-smi',
    ['--query-compute-apps=pid,used_gpu_memory', '--format=csv,noheader,nounits'],
    { encoding: 'utf8' },
  );
  const own = (stdout ?? '')
    .split('\n')
    .map((line) => line.split(',').map(Number))
    .filter(([pid, used]) => pid === process.pid && used! >= 0);
  return own.length === 0 ? undefined : own.reduce((sum, [, used]) => sum + used!, 0) * 2 ** 20;
}
