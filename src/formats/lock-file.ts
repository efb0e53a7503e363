import { createHash, randomBytes } from 'node:crypto';
import { open, readFile, rename, rm } from 'node:fs/promises';
import { hostname } from 'node:os';
import { basename, dirname, join, resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { outputError } from './atomic-file.js';
import { makeFolder } from './make-folder.js';

/** Who holds a lock file: a process, told from a later one of the same number by the time it was started. */
export interface LockHolder {
  readonly pid: number;
  readonly host: string;
  /** The kernel's start time of the process and its boot, where they can be read (Linux); otherwise empty. */
  readonly started: string;
  /** Random, so that one lock is told from the next even where the start time cannot be read. */
  readonly nonce: string;
}

/** The lock files that this process holds or is about to take, with the nonce it writes there. */
const heldHere = new Map<string, string>();

/** A file that names the one process which may do something. A lock whose process is gone (killed, or from before a restart of the machine) is taken over. */
export class LockFile {
  private constructor(
    private readonly path: string,
    private readonly nonce: string,
  ) {}

  /**
   * Makes the file, and its folder where that is missing. Resolves to the lock, or to its holder when a living process, or one on another machine, has it.
   * @throws OutputError when the file cannot be written.
   */
  static async acquire(file: string): Promise<LockFile | LockHolder> {
    const path = resolve(file);
    const self = { pid: process.pid, host: hostname() };
    const heldAlready = heldHere.get(path);
    if (heldAlready !== undefined) return { ...self, started: '', nonce: heldAlready };
    const nonce = randomBytes(8).toString('hex');
    // Before anything is awaited, so that another call cannot come in between.
    heldHere.set(path, nonce);
    try {
      await makeFolder(dirname(path));
      const mine: LockHolder = { ...self, started: await startTime(process.pid), nonce };
      const holder = await take(path, `${JSON.stringify(mine)}\n`);
      if (holder === undefined) return new LockFile(path, nonce);
      heldHere.delete(path);
      return holder;
    } catch (error) {
      heldHere.delete(path);
      throw error;
    }
  }

  /** Gives the lock free. One that is not this one's (someone deleted the file by hand, and another process made it again) stays. */
  async release(): Promise<void> {
    if (heldHere.get(this.path) !== this.nonce) return;
    try {
      const text = await readFile(this.path, 'utf8').catch(() => '');
      if (parseHolder(text)?.nonce === this.nonce) await rm(this.path, { force: true });
    } finally {
      heldHere.delete(this.path);
    }
  }
}

/**
 * Makes the file at `path` ours. Resolves to undefined, or to the living holder of it.
 *
 * A dead holder's file is not removed and made again, since then a process that judged it dead a moment ago would remove the next holder's. It is replaced in
 * one step, by whoever holds the claim to it: a second file taken in the same way (so that the claim of a process that died with it passes on too), named for
 * the very text it replaces.
 */
async function take(path: string, mine: string): Promise<LockHolder | undefined> {
  for (;;) {
    if (await createWith(path, mine)) return undefined;
    const text = await readText(path);
    if (text === undefined) continue;
    const holder = parseHolder(text);
    if (holder !== undefined && (await isAlive(holder))) return holder;
    const claim = claimTo(path, text);
    const claimant = await take(claim, mine);
    if (claimant !== undefined) return claimant;
    // With the claim in hand nobody else replaces this text; but it may have been replaced before.
    const stillDead = (await readFile(path, 'utf8').catch(() => undefined)) === text;
    if (stillDead && (await replace(claim, path))) return undefined;
    await rm(claim, { force: true });
  }
}

/** Hidden, and named like the temporaries of an atomic write: whoever has the folder to himself clears away what a kill has left of them. */
function claimTo(path: string, text: string): string {
  const name = createHash('sha256')
    .update(`${basename(path)}\n${text}`)
    .digest('hex')
    .slice(0, 16);
  return join(dirname(path), `.${basename(path)}.${name}.partial`);
}

/** False when the claim is gone: someone else has got the folder since, and tidied up. */
async function replace(claim: string, path: string): Promise<boolean> {
  try {
    await rename(claim, path);
    return true;
  } catch (error) {
    if (hasCode(error, 'ENOENT')) return false;
    await rm(claim, { force: true });
    throw outputError(path, error);
  }
}

async function createWith(path: string, text: string): Promise<boolean> {
  try {
    const file = await open(path, 'wx');
    try {
      await file.writeFile(text);
    } catch (error) {
      await rm(path, { force: true });
      throw error;
    } finally {
      await file.close();
    }
  } catch (error) {
    if (hasCode(error, 'EEXIST')) return false;
    throw outputError(path, error);
  }
  // A process that was suspended while the file was still empty may have been taken for dead.
  return (await readFile(path, 'utf8').catch(() => undefined)) === text;
}

function hasCode(error: unknown, code: string): boolean {
  return error instanceof Error && 'code' in error && error.code === code;
}

/** The lock's text; undefined when the file is gone. One that is still unreadable after a second is given as it is: its writer cannot have survived. */
async function readText(path: string): Promise<string | undefined> {
  for (let attempt = 0; ; attempt++) {
    const text = await readFile(path, 'utf8').catch((error: unknown) => {
      if (hasCode(error, 'ENOENT')) return undefined;
      throw outputError(path, error);
    });
    if (text === undefined || parseHolder(text) !== undefined || attempt === 20) return text;
    await sleep(50);
  }
}

function parseHolder(text: string): LockHolder | undefined {
  try {
    const { pid, host, started, nonce } = JSON.parse(text) as Partial<LockHolder>;
    if (typeof pid !== 'number' || typeof host !== 'string') return undefined;
    if (typeof started !== 'string' || typeof nonce !== 'string') return undefined;
    return { pid, host, started, nonce };
  } catch {
    return undefined;
  }
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

async function isAlive(holder: LockHolder): Promise<boolean> {
  // A process of another machine cannot be looked up: better to refuse than to let two write.
  if (holder.host !== hostname()) return true;
  // A folder may have several paths, so the nonce counts.
  if (holder.pid === process.pid && [...heldHere.values()].includes(holder.nonce)) return true;
  try {
    process.kill(holder.pid, 0);
  } catch (error) {
    if (hasCode(error, 'ESRCH')) return false;
  }
  if (holder.started === '') return holder.pid !== process.pid;
  return (await startTime(holder.pid)) === holder.started;
}
