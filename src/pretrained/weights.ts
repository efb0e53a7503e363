import { join, resolve } from 'node:path';
import { ModelError } from '../errors.js';
import { isObject } from '../formats/json-config.js';
import { readConfigFile } from '../formats/json-config-file.js';
import { assertFinite, openSafetensors, type SafetensorsFile } from '../formats/safetensors-file.js';
import type { ParameterSource } from '../nn/parameters.js';
import { cast } from '../onnx/elementwise.js';
import type { Graph, Value } from '../onnx/graph.js';
import { transpose } from '../onnx/movement.js';
import type { Shape, Tensor } from '../tensor/tensor.js';
import { readWeightTensor, type Weight, weightShape } from './weight.js';

/** The weights of one component, wherever they lie. Nothing but headers has been read. */
export interface WeightSet {
  /** The component's name; it goes before the names of the values in a graph. */
  readonly component: string;
  /** The path of the folder or the file, for messages. */
  readonly folder: string;
  readonly weights: ReadonlyMap<string, Weight>;
}

/** Where weights lie: a folder whose entries were listed, and the name that its values get in a graph. */
export interface WeightFolder {
  readonly name: string;
  readonly folder: string;
  /** The names of the folder's entries. */
  readonly files: readonly string[];
  /** The weights themselves, where they are known already: those of a single-file checkpoint. */
  readonly weights?: ReadonlyMap<string, Weight>;
}

/** Which of the weight files of a folder to read: the full ones, or the half-precision ones beside them. */
export type Variant = 'full' | 'fp16';

/** What the files of a component are called: transformers' models have one name, diffusers' another. */
const stemOf: Readonly<Record<string, string>> = {
  text_encoder: 'model',
  text_encoder_2: 'model',
  image_encoder: 'model',
};
const diffusersStem = 'diffusion_pytorch_model';

/** Buffers that early libraries saved among the weights and that hold no more than 0, 1, 2, … */
const bufferName = /(^|\.)position_ids$/;

/** Weights in a form that can run code when it is opened; never read. */
export const pickles = /\.(bin|pt|pth|ckpt|msgpack|h5)$/i;

/**
 * Finds a component's weights and reads their headers: one file, or the shards of an index; in float32 or, where there is no such file, half precision.
 *
 * @param preferred the variant to take where both are there.
 * @throws ModelError when there are none, when a shard is missing, cut short or damaged, or when there are only pickle files, which are never read.
 */
export async function openWeights(component: WeightFolder, preferred: Variant = 'full'): Promise<WeightSet> {
  const { name, folder, files } = component;
  if (component.weights !== undefined) return { component: name, folder, weights: component.weights };
  const found = findWeightFiles(name, (file) => (files.includes(file) ? 'yes' : 'no'), preferred);
  if (found === undefined) throw noWeights(component, weightStem(name));
  const weights =
    found.kind === 'single'
      ? await openSingle(join(folder, found.file))
      : await openSharded(folder, found.file, files);
  return { component: name, folder, weights };
}

/** Whether a folder has a file; "unknown" where only a part of the folder is at hand. */
export type Presence = 'yes' | 'no' | 'unknown';

/** Where a component's weights lie: one file, or the shards that an index lists. */
export interface WeightFiles {
  readonly kind: 'single' | 'sharded';
  /** The name of the file, or of the index. */
  readonly file: string;
  readonly variant: Variant;
}

/** The names that weights of a component can have, the likelier first. */
function weightNames(component: string, variant: Variant): WeightFiles[] {
  const stem = weightStem(component);
  const infix = variant === 'full' ? '' : `.${variant}`;
  const single: WeightFiles = { kind: 'single', file: `${stem}${infix}.safetensors`, variant };
  // Libraries have put the variant in either place.
  const indexes = new Set([
    `${stem}${infix}.safetensors.index.json`,
    `${stem}.safetensors.index${infix}.json`,
  ]);
  return [single, ...[...indexes].map((file): WeightFiles => ({ kind: 'sharded', file, variant }))];
}

/**
 * Chooses among the weight files of a component: those of the preferred variant, or else of the other. Where it is not known whether there are any of the
 * preferred variant, their likeliest name is the answer.
 */
export function findWeightFiles(
  component: string,
  has: (file: string) => Presence,
  preferred: Variant,
): WeightFiles | undefined {
  for (const variant of preferred === 'full' ? (['full', 'fp16'] as const) : (['fp16', 'full'] as const)) {
    const names = weightNames(component, variant);
    const found =
      names.find(({ file }) => has(file) === 'yes') ?? names.find(({ file }) => has(file) === 'unknown');
    if (found !== undefined) return found;
  }
  return undefined;
}

/** What the file of a component's weights is called before its variant and ending. */
export function weightStem(component: string): string {
  return stemOf[component] ?? diffusersStem;
}

/**
 * Checks every value of the weights, reading all of their bytes once.
 *
 * @throws ModelError naming the file and the tensor of the first that is infinite or not a number.
 */
export async function assertFiniteWeights(set: WeightSet): Promise<void> {
  const namesByFile = new Map<SafetensorsFile, string[]>();
  for (const { file, entry } of set.weights.values()) {
    const names = namesByFile.get(file);
    if (names === undefined) namesByFile.set(file, [entry.name]);
    else names.push(entry.name);
  }
  for (const [file, names] of namesByFile) await assertFinite(file, names);
}

/** Reads one tensor of a set into memory, in the type it is stored in. */
export function readWeight(set: WeightSet, name: string): Promise<Tensor> {
  return readWeightTensor(find(set, name));
}

/**
 * The weight of the layer that a LoRA file calls by this path, with its component; undefined where there is no such layer. Files name the text encoders' layers
 * below `text_model`, a level that some checkpoints leave out.
 */
export function layerWeight(sets: readonly WeightSet[], module: string): Weight | undefined {
  const dot = module.indexOf('.');
  const set = sets.find((s) => s.component === module.slice(0, dot));
  const name = `${module.slice(dot + 1)}.weight`;
  return set?.weights.get(name) ?? set?.weights.get(name.replace(/^text_model\./, ''));
}

/** A source of parameters that knows which of a checkpoint's tensors nobody has asked for. */
export interface WeightSource extends ParameterSource {
  has(path: string): boolean;
  /** The tensors that no parameter was read from, sorted; buffers that hold no knowledge are left out. */
  unused(): string[];
}

/**
 * Serves the parameters of a model from its checkpoint, by reference: each becomes an initializer of `graph` whose bytes stay in the file. Half-precision weights
 * are cast to float32 in the graph. `parameter` throws a `ModelError` when the checkpoint has no such tensor, or one of another shape or type.
 */
export function weightSource(graph: Graph, set: WeightSet): WeightSource {
  const values = new Map<string, Value>();
  return {
    has: (path) => set.weights.has(path),
    parameter(path, shape) {
      let value = values.get(path);
      if (value === undefined) {
        value = external(graph, set, path, shape);
        values.set(path, value);
      }
      return value;
    },
    unused: () =>
      [...set.weights.keys()].filter((name) => !values.has(name) && !bufferName.test(name)).sort(),
  };
}

function external(graph: Graph, set: WeightSet, path: string, shape: Shape): Value {
  const weight = find(set, path);
  const { file, entry, transposed } = weight;
  const stored = weightShape(weight);
  const fault = (found: string, expected: string): ModelError =>
    new ModelError(
      `${file.path}: tensor ${JSON.stringify(entry.name)} is ${found}; expected ${expected}. ` +
        (file.path === set.folder
          ? 'The file is of a model that is not known here, or damaged.'
          : 'The weights and the config.json beside them are not of the same model.'),
    );
  if (entry.dtype !== 'float32' && entry.dtype !== 'float16' && entry.dtype !== 'bfloat16') {
    throw fault(`of type ${entry.dtype}`, 'float32, float16 or bfloat16');
  }
  if (stored.length !== shape.length || stored.some((d, i) => d !== shape[i])) {
    throw fault(`[${stored.join(', ')}]`, `[${shape.join(', ')}]`);
  }
  const location = { path: resolve(file.path), offset: entry.offset };
  const name = `${set.component}.${path}`;
  const value = graph.external(name, entry.dtype, entry.shape, location);
  const full = entry.dtype === 'float32' ? value : cast(value, 'float32');
  return transposed ? transpose(full, [1, 0]) : full;
}

function find(set: WeightSet, name: string): Weight {
  const weight = set.weights.get(name);
  if (weight !== undefined) return weight;
  const files = new Set([...set.weights.values()].map((w) => w.file.path));
  const askedBy = files.has(set.folder)
    ? ` of the ${set.component}, in diffusers' words, which such a model has`
    : `, which ${join(set.folder, 'config.json')} asks for`;
  throw new ModelError(
    `${[...files].join(', ') || set.folder}: there is no tensor ${JSON.stringify(name)}${askedBy}. ` +
      `The weights are of another model, or incomplete.`,
  );
}

async function openSingle(path: string): Promise<ReadonlyMap<string, Weight>> {
  const file = await openSafetensors(path);
  return new Map([...file.entries.values()].map((entry) => [entry.name, { file, entry }]));
}

async function openSharded(
  folder: string,
  indexName: string,
  files: readonly string[],
): Promise<ReadonlyMap<string, Weight>> {
  const indexPath = join(folder, indexName);
  const map = (await readConfigFile(indexPath)).raw('weight_map');
  if (!isObject(map))
    throw new ModelError(`${indexPath} has no "weight_map", which names the file of each tensor.`);
  const shards = new Map<string, SafetensorsFile>();
  const weights = new Map<string, Weight>();
  for (const [name, shard] of Object.entries(map)) {
    // A shard is one of the folder's own files, so an index cannot point elsewhere on the disk.
    if (typeof shard !== 'string' || !files.includes(shard)) {
      throw new ModelError(
        `${indexPath} names the shard ${JSON.stringify(shard)}, which is not in ${folder}. The model is incomplete; get that file too.`,
      );
    }
    const file = shards.get(shard) ?? (await openSafetensors(join(folder, shard)));
    shards.set(shard, file);
    const entry = file.entries.get(name);
    if (entry === undefined) {
      throw new ModelError(
        `${indexPath} looks for tensor ${JSON.stringify(name)} in ${shard}, which does not have it. The shards are of different models; get them all again.`,
      );
    }
    weights.set(name, { file, entry });
  }
  return weights;
}

function noWeights({ name, folder, files }: WeightFolder, stem: string): ModelError {
  const wanted = `${stem}.safetensors or ${stem}.fp16.safetensors`;
  const unsafe = files.filter((file) => pickles.test(file));
  if (unsafe.length > 0) {
    return new ModelError(
      `${folder} has only ${unsafe.join(', ')}: such files can run code when they are opened, so they are never read. ` +
        `Get ${wanted} from the same place and put it in ${name}/, or write it in Python with save_pretrained(folder, safe_serialization=True).`,
    );
  }
  const others = files.filter((file) => file.endsWith('.safetensors'));
  const found = others.length > 0 ? `It holds ${others.join(', ')}.` : 'It holds no weights.';
  return new ModelError(`${folder} has no ${wanted}. ${found} The model is incomplete; get that file too.`);
}
