import { createHash } from 'node:crypto';
import { dirname } from 'node:path';
import { ModelError } from '../errors.js';
import { makeFolder } from '../formats/make-folder.js';
import { readSafetensorsFile, writeSafetensorsFile } from '../formats/safetensors-file.js';
import { tensor } from '../tensor/tensor.js';
import type { UnitVector } from './similarity.js';

/** Embeddings in a file, by a digest of what was embedded, so that only what changed is embedded again. */
export class EmbeddingCache {
  #changed = false;

  private constructor(
    private readonly path: string,
    private readonly vectors: Map<string, UnitVector>,
  ) {}

  /** A file that is not there, or damaged, is an empty cache: it costs time and nothing else. */
  static async open(path: string): Promise<EmbeddingCache> {
    try {
      const { tensors } = await readSafetensorsFile(path);
      return new EmbeddingCache(
        path,
        new Map([...tensors].map(([name, t]) => [name, Float64Array.from(t.data as Float32Array)])),
      );
    } catch (error) {
      if (!(error instanceof ModelError)) throw error;
      return new EmbeddingCache(path, new Map());
    }
  }

  get(digest: string): UnitVector | undefined {
    return this.vectors.get(digest);
  }

  /** Keeps an embedding, in single precision from now on: what comes from the file is the same as what was just seen. */
  set(digest: string, vector: UnitVector): void {
    this.vectors.set(digest, Float64Array.from(Float32Array.from(vector)));
    this.#changed = true;
  }

  /** Writes what was added, without what is not among `wanted` any more. */
  async save(wanted: ReadonlySet<string>): Promise<void> {
    const stale = [...this.vectors.keys()].filter((digest) => !wanted.has(digest));
    for (const digest of stale) this.vectors.delete(digest);
    if (!this.#changed && stale.length === 0) return;
    await makeFolder(dirname(this.path));
    const sorted = [...this.vectors].sort(([a], [b]) => (a < b ? -1 : 1));
    await writeSafetensorsFile(
      this.path,
      new Map(sorted.map(([name, v]) => [name, tensor('float32', [v.length], Float32Array.from(v))])),
    );
    this.#changed = false;
  }
}

/** The digest of a file's bytes or a text. */
export function contentDigest(contents: Uint8Array | string): string {
  return createHash('sha256').update(contents).digest('hex').slice(0, 32);
}
