import { ModelError } from '../errors.js';
import { type Config, isObject } from '../formats/json-config.js';
import { indexFile, pipelineFolders } from './model-folder.js';
import { findWeightFiles, type Presence, pickles, type Variant, weightStem } from './weights.js';

/** A model's files, wherever they are, of which only some may be at hand. */
export interface ModelFiles {
  /** What it is called in messages. */
  readonly name: string;
  /** Whether there is a file of this path, such as `unet/config.json`. */
  has(path: string): Presence;
  /** The paths of all files that are known of. */
  list(): readonly string[];
  /** Reads a JSON file, getting it first where it is elsewhere. */
  read(path: string): Promise<Config>;
}

/** What a tokenizer may be made of; which of these there are depends on the library that wrote it. */
const tokenizerFiles = [
  'special_tokens_map.json',
  'added_tokens.json',
  'vocab.json',
  'merges.txt',
  'tokenizer.json',
];

/**
 * The files that a diffusers model is read from, and no others: the configurations of the components that portrayal uses, the tokenizers' files, and the
 * weights of one variant. The large ones come last.
 *
 * @throws ModelError when it is not a model that can be read, naming what to get in its place.
 */
export async function requiredFiles(files: ModelFiles, variant: Variant): Promise<string[]> {
  if (files.has(indexFile) === 'no') throw notAModel(files);
  const small = [indexFile];
  const weights: string[] = [];
  for (const [component, configFile] of pipelineFolders(await files.read(indexFile))) {
    const within = (file: string): string => `${component}/${file}`;
    small.push(within(configFile));
    if (component.startsWith('tokenizer')) {
      small.push(...tokenizerFiles.map(within).filter((path) => files.has(path) === 'yes'));
    } else if (component !== 'scheduler') {
      const found = findWeightFiles(component, (file) => files.has(within(file)), variant);
      if (found === undefined) throw noWeights(files, component);
      if (found.kind === 'single') weights.push(within(found.file));
      else {
        small.push(within(found.file));
        weights.push(...(await shards(files, within(found.file))).map(within));
      }
    }
  }
  const missing = small.find((path) => files.has(path) === 'no');
  if (missing !== undefined) {
    throw new ModelError(
      `${files.name} has no ${missing}, so it is not a whole diffusers model. Choose another.`,
    );
  }
  return [...small, ...weights];
}

/** The files that an index spreads the weights over, next to it. */
async function shards(files: ModelFiles, indexPath: string): Promise<string[]> {
  const map = (await files.read(indexPath)).raw('weight_map');
  const names = isObject(map) ? [...new Set(Object.values(map))] : [];
  const folder = indexPath.slice(0, indexPath.lastIndexOf('/') + 1);
  for (const name of names) {
    // A name, not a path: an index cannot point elsewhere on the disk.
    if (
      typeof name !== 'string' ||
      !/^[\w-][\w.-]*\.safetensors$/.test(name) ||
      files.has(folder + name) === 'no'
    ) {
      throw new ModelError(
        `${files.name}: ${indexPath} names the shard ${JSON.stringify(name)}, which is not there. The model is incomplete; choose another.`,
      );
    }
  }
  if (names.length === 0) {
    throw new ModelError(
      `${files.name}: ${indexPath} has no "weight_map", which names the file of each tensor.`,
    );
  }
  return names as string[];
}

function noWeights(files: ModelFiles, component: string): ModelError {
  const there = files.list().filter((path) => path.startsWith(`${component}/`));
  const unsafe = there.filter((path) => pickles.test(path));
  const wanted = `${component}/${weightStem(component)}.safetensors`;
  if (unsafe.length === 0)
    return new ModelError(
      `${files.name} has no ${wanted}, so it is not a whole diffusers model. Choose another.`,
    );
  return new ModelError(
    `${files.name} has only ${unsafe.join(', ')}: such files can run code when they are opened, so they are never fetched or read. ` +
      `Get ${wanted} instead: look for it in another revision (org/name@revision) or in a copy of the model whose files end in .safetensors, ` +
      `or write it in Python with save_pretrained(folder, safe_serialization=True) on a machine that may run such files.`,
  );
}

function notAModel(files: ModelFiles): ModelError {
  const list = files.list();
  const single = list.filter((path) => /^[^/]+\.safetensors$/.test(path));
  const found =
    list.includes('adapter_config.json') || single.some((path) => /lora/i.test(path))
      ? 'It looks like a LoRA, which is not a model by itself; give the model that it was made for'
      : list.includes('config.json')
        ? 'It is a single network, not a text-to-image model of several parts'
        : single.length > 0
          ? `It holds single-file checkpoints (${single.slice(0, 3).join(', ')}); choose the diffusers form of the same model`
          : list.some((path) => pickles.test(path))
            ? 'It holds pickle files, which are never read; choose the diffusers form of the same model'
            : 'It holds nothing of a text-to-image model';
  return new ModelError(`${files.name} has no ${indexFile}. ${found}.`);
}
