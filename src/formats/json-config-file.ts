import { readFile } from 'node:fs/promises';
import { ModelError } from '../errors.js';
import { writeFileAtomic } from './atomic-file.js';
import { type Config, parseConfig } from './json-config.js';

/** Reads a text file of a model. Throws a `ModelError` when it cannot be read. */
export async function readModelText(path: string): Promise<string> {
  try {
    return await readFile(path, 'utf8');
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new ModelError(`Cannot read ${path} (${reason}).`, { cause: error });
  }
}

/** Reads a configuration file of a model; see {@link parseConfig}. */
export async function readConfigFile(path: string): Promise<Config> {
  return parseConfig(await readModelText(path), path);
}

/** Writes JSON as people read it, indented by two, whole or not at all. @throws OutputError when the disk is full or the path cannot be written. */
export function writeJsonFile(path: string, value: unknown): Promise<void> {
  return writeFileAtomic(path, `${JSON.stringify(value, null, 2)}\n`);
}
