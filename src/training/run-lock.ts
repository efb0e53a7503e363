import { mkdir, open, readFile, rm } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { RunError } from '../errors.js';
import { outputError } from '../formats/atomic-file.js';

/** Who writes into a run folder: a process, told from a later one of the same number by the time it was started. */
interface Holder {
  readonly pid: number;
  readonly host: string;
  /** The kernel's start time of the process and its boot, where they can be read (Linux); otherwise empty. */
  readonly started: string;
}

const heldHere = new Set<string>();

/**
 * The right to write into a run folder: a file `run.lock` that names this process. A lock whose process is gone (killed, or from before a restart of the
 * machine) is taken over.
 */
export class RunLock {
  private constructor(private readonly path: string) {}

  /** @throws RunError when a living process, or one on another machine, holds the folder. OutputError when the folder cannot be written. */
  static async acquire(folder: string): Promise<RunLock> {
    await mkdir(folder, { recursive: true }).catch((error: unknown) => {
      throw outputError(folder, error);
    });
    const path = join(folder, lockName);
    const self = await describe(process.pid);
    const mine = `${JSON.stringify(self)}\n`;
    for (;;) {
      if (heldHere.has(path)) throw busy(folder, self);
      if (await createWith(path, mine)) break;
      const holder = await readHolder(path);
      if (holder !== undefined && (await isAlive(holder))) throw busy(folder, holder);
      await rm(path, { force: true });
      if (!(await createWith(path, mine))) continue;
      // Another process may have judged the same lock dead and removed ours for it: the one whose lock stays has won.
      await sleep(50);
      const winner = await readHolder(path);
      if (winner?.pid !== self.pid) throw busy(folder, winner ?? self);
      break;
    }
    heldHere.add(path);
    return new RunLock(path);
  }

  async release(): Promise<void> {
    if (heldHere.delete(this.path)) await rm(this.path, { force: true });
  }
}

/** The lock's file name; it is there only while a process has the run open. */
export const lockName = 'run.lock';

async function createWith(path: string, text: string): Promise<boolean> {
  try {
    const file = await open(path, 'wx');
    try {
      await file.writeFile(text);
    } finally {
      await file.close();
    }
    return true;
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'EEXIST') return false;
    throw outputError(path, error);
  }
}

/** The lock's holder; undefined when the file is gone, or still unreadable after a second, which its writer cannot have survived. */
async function readHolder(path: string): Promise<Holder | undefined> {
  for (let attempt = 0; attempt < 20; attempt++) {
    const text = await readFile(path, 'utf8').catch(() => undefined);
    if (text === undefined) return undefined;
    const holder = parseHolder(text);
    if (holder !== undefined) return holder;
    await sleep(50);
  }
  return undefined;
}

function parseHolder(text: string): Holder | undefined {
  try {
    const { pid, host, started } = JSON.parse(text) as Partial<Holder>;
    if (typeof pid !== 'number' || typeof host !== 'string' || typeof started !== 'string') return undefined;
    return { pid, host, started };
  } catch {
    return undefined;
  }
}

async function describe(pid: number): Promise<Holder> {
  return { pid, host: hostname(), started: await startTime(pid) };
}

/** Linux: the machine's boot and the process's start, in clock ticks since then (proc_pid_stat(5), field 22). */
async function startTime(pid: number): Promise<string> {
  try {
    const boot = await readFile('/proc/sys/kernel/random/boot_id', 'utf8');
    const status = await readFile(`/proc/${pid}/stat`, 'utf8');
    // The second field is the command in parentheses and may hold anything, so count from the last parenthesis.
    const ticks = status.slice(status.lastIndexOf(')') + 2).split(' ')[19];
    return `${boot.trim()}/${ticks}`;
  } catch {
    return '';
  }
}

async function isAlive(holder: Holder): Promise<boolean> {
  // A process of another machine cannot be looked up: better to refuse than to let two write.
  if (holder.host !== hostname()) return true;
  try {
    process.kill(holder.pid, 0);
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'ESRCH') return false;
  }
  if (holder.started === '') return holder.pid !== process.pid;
  return (await startTime(holder.pid)) === holder.started;
}

function busy(folder: string, holder: Holder): RunError {
  const elsewhere = holder.host === hostname() ? '' : ` on ${holder.host}`;
  return new RunError(
    `${folder}: process ${holder.pid}${elsewhere} is writing this run. Wait for it or stop it, or choose another output folder. If it has surely ended, delete ${join(folder, lockName)}.`,
  );
}
