import { hostname } from 'node:os';
import { join } from 'node:path';
import { RunError } from '../errors.js';
import { LockFile, type LockHolder } from '../formats/lock-file.js';

/** The right to write into a run folder: a lock file in it. */
export class RunLock {
  private constructor(private readonly file: LockFile) {}

  /** @throws RunError when a living process, or one on another machine, holds the folder. OutputError when the folder cannot be written. */
  static async acquire(folder: string): Promise<RunLock> {
    const taken = await LockFile.acquire(join(folder, lockName));
    if (taken instanceof LockFile) return new RunLock(taken);
    throw busy(folder, taken);
  }

  /** Gives the folder free. A lock that is not this one's (someone deleted the file by hand, and another process took the folder) stays. */
  release(): Promise<void> {
    return this.file.release();
  }
}

/** The lock's file name; it is there only while a process has the run open. */
export const lockName = 'run.lock';

function busy(folder: string, holder: LockHolder): RunError {
  const elsewhere = holder.host === hostname() ? '' : ` on ${holder.host}`;
  return new RunError(
    `${folder}: process ${holder.pid}${elsewhere} is writing this run. Wait for it or stop it, or choose another output folder. If it has surely ended, delete ${join(folder, lockName)}.`,
  );
}
