import { lstat, readdir, rm, stat } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import { OutputError } from '../errors.js';
import { outputError, temporariesOf } from './atomic-file.js';
import { LockFile } from './lock-file.js';

/** @throws OutputError when there is anything at the path. */
export async function requireFree(path: string): Promise<void> {
  const found = await lstat(path).catch(() => undefined);
  if (found !== undefined) {
    throw new OutputError(
      `${path} exists already and is not overwritten. Choose another path, or remove it first.`,
    );
  }
}

/**
 * Runs the writer of a new file or folder, one at a time for a path: what writers of the same path that were killed have left beside it is removed first. A hidden
 * lock file beside the path tells the living from the dead.
 *
 * @throws OutputError when there is anything at the path, when its folder is missing, or when another process is writing the path at this moment.
 */
export async function makingNew<T>(path: string, write: () => Promise<T>): Promise<T> {
  await requireFree(path);
  const [folder, name] = [dirname(resolve(path)), basename(resolve(path))];
  await stat(folder).catch((error: unknown) => {
    throw outputError(path, error);
  });
  const lock = await LockFile.acquire(join(folder, `.${name}.lock`));
  if (!(lock instanceof LockFile)) {
    throw new OutputError(
      `${path} is being written by process ${lock.pid} on ${lock.host}. Wait for it to end, or choose another path.`,
    );
  }
  try {
    for (const left of temporariesOf(name, await readdir(folder))) {
      await rm(join(folder, left), { recursive: true, force: true });
    }
    return await write();
  } finally {
    await lock.release();
  }
}
