import { readFile } from 'node:fs/promises';
import { ModelError } from '../errors.js';
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
