import { mkdir, rename, rm } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { OutputError } from '../errors.js';
import { flushFolder, outputError, temporaryBeside } from './atomic-file.js';
import { requireFree } from './new-path.js';

/**
 * Writes a new folder so that whoever looks finds it whole or not at all: `fill` writes into a hidden folder beside it, which takes the final name at the end.
 *
 * @throws OutputError when the path is taken or cannot be written. Nothing of the new folder is left behind.
 */
export async function writeFolderAtomic(
  path: string,
  fill: (folder: string) => Promise<void>,
): Promise<void> {
  await requireFree(path);
  const parent = dirname(resolve(path));
  const temporary = temporaryBeside(resolve(path));
  const refused = (error: unknown): never => {
    throw outputError(path, error);
  };
  try {
    await mkdir(temporary).catch(refused);
    await fill(temporary);
    await flushFolder(temporary);
    await requireFree(path);
    await rename(temporary, path).catch(refused);
  } catch (error) {
    await rm(temporary, { recursive: true, force: true }).catch(() => undefined);
    // A file's own error names the hidden folder; people know the path that they gave.
    if (error instanceof OutputError) {
      throw new OutputError(error.message.replaceAll(temporary, path), { cause: error.cause });
    }
    throw error;
  }
  await flushFolder(parent);
}
