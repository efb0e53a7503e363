import { createHash } from 'node:crypto';
import { open } from 'node:fs/promises';
import { ModelError } from '../errors.js';
import type { WeightSet } from './weights.js';

/** Read of each tensor: this many bytes at its start, in its middle and at its end. */
const SAMPLE = 4096;

/**
 * Tells weights apart: a hash of every tensor's name, type and shape and of three samples of its bytes, by name. It takes milliseconds where a hash of all bytes would
 * take many seconds, and does not depend on how the tensors lie in files. Training moves every tensor everywhere, so other weights give another digest; a change of
 * single values in the inside of a large tensor would not, so it is no proof against forgery.
 *
 * @returns 32 hexadecimal digits
 * @throws ModelError when a file cannot be read.
 */
export async function digestWeights(set: WeightSet): Promise<string> {
  const hash = createHash('sha256');
  const handles = new Map<string, Awaited<ReturnType<typeof open>>>();
  try {
    const names = [...set.weights.keys()].sort();
    for (const name of names) {
      const { file, entry } = set.weights.get(name)!;
      let handle = handles.get(file.path);
      if (!handle) {
        handle = await open(file.path);
        handles.set(file.path, handle);
      }
      hash.update(JSON.stringify([name, entry.dtype, entry.shape]));
      const length = Math.min(SAMPLE, entry.byteLength);
      const last = entry.byteLength - length;
      for (const start of new Set([0, Math.floor(last / 2), last])) {
        const { buffer, bytesRead } = await handle.read(
          new Uint8Array(length),
          0,
          length,
          entry.offset + start,
        );
        if (bytesRead < length) throw new Error(`it ends within the tensor ${JSON.stringify(name)}`);
        hash.update(buffer);
      }
    }
    return hash.digest('hex').slice(0, 32);
  } catch (error) {
    throw new ModelError(
      `${set.folder}: the weights cannot be read (${error instanceof Error ? error.message : error}).`,
      { cause: error },
    );
  } finally {
    for (const handle of handles.values()) await handle.close();
  }
}
