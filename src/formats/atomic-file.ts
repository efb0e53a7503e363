import { randomBytes } from 'node:crypto';
import { open, readdir, rename, rm } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { OutputError } from '../errors.js';

/** What a file is written from: whole, or in pieces that are asked for one at a time. */
export type FileContents = Uint8Array | string | Iterable<Uint8Array> | AsyncIterable<Uint8Array>;

/** Temporary names are hidden files that no reader of a folder takes for its own: `.model.safetensors.1f2e3d4c5b6a7988.partial`. */
const temporaryName = /^\..+\.[0-9a-f]{16}\.partial$/;

/** The names, among those of a folder's entries, of what writers of one file or folder in it have not finished. */
export function temporariesOf(name: string, entries: readonly string[]): string[] {
  return entries.filter(
    (e) => temporaryName.test(e) && e.replace(/\.[0-9a-f]{16}\.partial$/, '') === `.${name}`,
  );
}

/** What each refusal of the operating system means to the person at the keyboard. */
const remedies: Readonly<Record<string, string>> = {
  ENOSPC: 'the disk is full; free some space, or choose another folder',
  EDQUOT: 'your disk quota is used up; free some space, or choose another folder',
  EFBIG: 'the file system does not take files this large; choose another folder',
  EACCES: 'permission is denied; change the permissions of the folder, or choose another one',
  EPERM:
    'the operating system does not permit it; change the permissions of the folder, or choose another one',
  EROFS: 'the file system is read-only; choose a folder on another one',
  ENOENT: 'its folder does not exist; create the folder first',
  ENOTDIR: 'a part of its path is a file, not a folder; choose another path',
  EEXIST: 'a file of that name is in the way; remove it, or choose another name',
  EISDIR: 'a folder of that name is in the way; remove it, or choose another name',
  ENOTEMPTY: 'a folder of that name is in the way; remove it, or choose another name',
  ENAMETOOLONG: 'its name is too long; choose a shorter one',
  EMFILE: 'this process has too many files open; raise the limit (ulimit -n)',
  ENFILE: 'this machine has too many files open; close some programs',
  EIO: 'the disk reports an input/output error; check the disk, or choose another one',
};

/**
 * Writes a file so that a reader, or a process that is started after a crash or a power cut, finds either the whole new file or whatever was there before: the
 * bytes go to a temporary name in the same folder, are flushed to the disk, and take the final name in one step. A file that another process has mapped or
 * open keeps its old contents.
 *
 * @throws OutputError when the disk is full or the path cannot be written. Nothing of the new file is left behind, and the old one stays as it was.
 */
export async function writeFileAtomic(path: string, contents: FileContents): Promise<void> {
  const folder = dirname(path);
  const temporary = temporaryBeside(path);
  const refused = (error: unknown): never => {
    throw outputError(path, error);
  };
  try {
    const file = await open(temporary, 'wx').catch(refused);
    try {
      if (typeof contents === 'string' || contents instanceof Uint8Array) {
        await file.writeFile(contents).catch(refused);
      } else {
        for await (const piece of contents) await file.writeFile(piece).catch(refused);
      }
      await file.sync().catch(refused);
    } finally {
      await file.close();
    }
    await rename(temporary, path).catch(refused);
  } catch (error) {
    await rm(temporary, { force: true }).catch(() => undefined);
    throw error;
  }
  await flushFolder(folder);
}

/** A hidden name, used by nobody else, for what will have this path when it is whole; see {@link temporariesOf}. */
export function temporaryBeside(path: string): string {
  return join(dirname(path), `.${basename(path)}.${randomBytes(8).toString('hex')}.partial`);
}

/**
 * Removes what writers that were killed have left in a folder (not in the folders below it). Call it only where nobody else is writing, such as on a run folder
 * that this process has just taken over. Returns the names removed; a folder that does not exist holds none.
 */
export async function removeStaleTemporaries(folder: string): Promise<string[]> {
  let names: string[];
  try {
    names = await readdir(folder);
  } catch (error) {
    if (errorCode(error) === 'ENOENT') return [];
    throw outputError(folder, error);
  }
  const stale = names.filter((name) => temporaryName.test(name));
  for (const name of stale) await rm(join(folder, name), { force: true });
  return stale;
}

/**
 * An `OutputError` that says why `path` cannot be written and what to do; an error that is not the operating system's refusal is returned as it came. For
 * writers that cannot go through {@link writeFileAtomic}, such as one that appends lines.
 */
export function outputError(path: string, error: unknown): unknown {
  const remedy = remedies[errorCode(error) ?? ''];
  return remedy === undefined ? error : new OutputError(`Cannot write ${path}: ${remedy}.`, { cause: error });
}

function errorCode(error: unknown): string | undefined {
  if (!(error instanceof Error) || !('code' in error)) return undefined;
  return typeof error.code === 'string' ? error.code : undefined;
}

/** Makes a rename survive a power cut. Some platforms (Windows, some network file systems) cannot flush a folder; the rename is done all the same. */
export async function flushFolder(folder: string): Promise<void> {
  try {
    const handle = await open(folder, 'r');
    try {
      await handle.sync();
    } finally {
      await handle.close();
    }
  } catch {
    return;
  }
}
