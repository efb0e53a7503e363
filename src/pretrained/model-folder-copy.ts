import { createReadStream } from 'node:fs';
import { mkdir, readdir, stat } from 'node:fs/promises';
import { join, relative } from 'node:path';
import { writeFileAtomic } from '../formats/atomic-file.js';

/** Weights of any library and format. */
const weightFile = /\.(safetensors|bin|ckpt|pt|pth|msgpack|h5|onnx|onnx_data|pb)$/i;
const indexFile = /\.index(\.fp16)?\.json$|\.index\.fp16\.json$/;

/** Whether a file of this name lists the files that sharded weights are in. */
export const isWeightIndex = (name: string): boolean => indexFile.test(name);

/**
 * Copies a model folder into one that exists. Of the components that change, all weights are left out, in whichever precision and format they are, as they would be the
 * old ones; what stands for them is written instead.
 *
 * @param changed by the path of a component's folder: writes its weights into the copy of that folder.
 */
export async function copyModelFolder(
  source: string,
  target: string,
  changed: ReadonlyMap<string, (into: string) => Promise<void>>,
): Promise<void> {
  const copy = async (folder: string): Promise<void> => {
    const into = join(target, relative(source, folder));
    if (into !== target) await mkdir(into);
    const write = changed.get(folder);
    for (const name of (await readdir(folder)).sort()) {
      // Hidden entries belong to download tools.
      if (name.startsWith('.')) continue;
      const path = join(folder, name);
      // A link to a file is a file, as in the cache of the Hugging Face hub.
      if ((await stat(path)).isDirectory()) await copy(path);
      else if (!write || !(weightFile.test(name) || isWeightIndex(name))) {
        await writeFileAtomic(join(into, name), createReadStream(path));
      }
    }
    await write?.(into);
  };
  await copy(source);
}
