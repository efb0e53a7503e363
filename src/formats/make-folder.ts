import { mkdir } from 'node:fs/promises';
import { outputError } from './atomic-file.js';

/** Makes a folder, and those above it, where they are not there yet. @throws OutputError when the operating system refuses. */
export async function makeFolder(path: string): Promise<void> {
  await mkdir(path, { recursive: true }).catch((error: unknown) => {
    throw outputError(path, error);
  });
}
