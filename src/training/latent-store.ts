import { createHash } from 'node:crypto';
import { join } from 'node:path';
import type { PictureSize } from '../data/aspect-buckets.js';
import type { ReferenceImage } from '../data/reference-images.js';
import { removeStaleTemporaries } from '../formats/atomic-file.js';
import type { Json } from '../formats/json-config.js';
import { makeFolder } from '../formats/make-folder.js';
import { pathExists } from '../formats/path-exists.js';
import { readSafetensorsFile, writeSafetensorsFile } from '../formats/safetensors-file.js';
import { float32, type Tensor } from '../tensor/tensor.js';

/** A picture's posterior over latents, [C, h, w] each. */
export interface Moments {
  readonly mean: Float32Array;
  readonly logvar: Float32Array;
}

/** One picture as the autoencoder is shown it: its middle, cut to a size, mirrored or not. */
export interface StoredView {
  readonly image: ReferenceImage;
  readonly size: PictureSize;
  readonly flip: boolean;
}

const FORMAT = 'portrayal-latents/1';

/**
 * Latents on the disk, one safetensors file a picture and view. A file is named by a hash of all that its numbers follow from: the picture's pixels, the view, and
 * what encoded it. Another picture, other weights or other settings thus have another name, and what is stale is never found. Several runs may share a folder.
 */
export class LatentStore {
  private constructor(
    private readonly folder: string,
    private readonly origin: string,
    private readonly shapeOf: (size: PictureSize) => readonly number[],
  ) {}

  /**
   * @param encodedBy what the numbers depend on besides the picture: the digest of the autoencoder's weights, and the engine, whose rounding is its own.
   * @param shapeOf [C, h, w] of the latents of a picture of a size.
   * @throws OutputError when the folder cannot be made.
   */
  static async open(
    folder: string,
    encodedBy: Json,
    shapeOf: (size: PictureSize) => readonly number[],
  ): Promise<LatentStore> {
    await makeFolder(folder);
    await removeStaleTemporaries(folder);
    return new LatentStore(folder, JSON.stringify([FORMAT, encodedBy]), shapeOf);
  }

  /** The latents of a view, encoded and kept if they are not there yet. A damaged file counts as none. */
  async get(view: StoredView, encode: () => Promise<Moments>): Promise<Moments> {
    const path = join(this.folder, `${this.#key(view)}.safetensors`);
    const shape = this.shapeOf(view.size);
    const found = await read(path, shape);
    if (found) return found;
    const { mean, logvar } = await encode();
    const tensors = new Map<string, Tensor>([
      ['mean', float32(shape, mean)],
      ['logvar', float32(shape, logvar)],
    ]);
    await writeSafetensorsFile(path, tensors, new Map([['format', FORMAT]]));
    return { mean, logvar };
  }

  #key({ image, size, flip }: StoredView): string {
    const view = JSON.stringify([image.width, image.height, size.width, size.height, flip]);
    return createHash('sha256')
      .update(this.origin)
      .update(view)
      .update(image.pixels)
      .digest('hex')
      .slice(0, 32);
  }
}

async function read(path: string, shape: readonly number[]): Promise<Moments | undefined> {
  if (!(await pathExists(path))) return undefined;
  const contents = await readSafetensorsFile(path).catch(() => undefined);
  const values = ['mean', 'logvar'].map((name) => {
    const t = contents?.tensors.get(name);
    const fits = t?.dtype === 'float32' && t.shape.join() === shape.join();
    return fits && t.data.every((v) => Number.isFinite(v)) ? (t.data as Float32Array) : undefined;
  });
  const [mean, logvar] = values;
  return mean && logvar ? { mean, logvar } : undefined;
}
