import { createReadStream } from 'node:fs';
import { readdir, stat } from 'node:fs/promises';
import { join, relative, resolve } from 'node:path';
import { CancelledError, UsageError } from '../errors.js';
import { writeFileAtomic } from '../formats/atomic-file.js';
import { writeFolderAtomic } from '../formats/atomic-folder.js';
import { isObject } from '../formats/json-config.js';
import { readConfigFile } from '../formats/json-config-file.js';
import { makingNew } from '../formats/new-path.js';
import type { TensorStream } from '../formats/safetensors.js';
import { openSafetensors, type SafetensorsFile, writeTensorStreams } from '../formats/safetensors-file.js';
import { combineLoras, fittedLora } from '../pretrained/lora.js';
import { type FileUpdates, fileUpdates, updatedTensors } from '../pretrained/lora-merge.js';
import { modelFamily } from '../pretrained/model-family.js';
import type { ComponentName, ModelFolder } from '../pretrained/model-folder.js';
import { copyModelFolder, isWeightIndex } from '../pretrained/model-folder-copy.js';
import { openModel } from '../pretrained/open-model.js';
import { weightShape } from '../pretrained/weight.js';
import { layerWeight, openWeights, type Variant, type WeightSet } from '../pretrained/weights.js';
import type { TrainingListener } from '../training/events.js';
import { type BaseModelOptions, locateBaseModel } from './base-model.js';
import { type LoraChoice, readLoras } from './lora-choice.js';

/** Of the model's settings `variant` says which weights are changed, and copied, where a folder has both. */
export interface MergeOptions extends Omit<BaseModelOptions, 'model' | 'predictionType'> {
  /** A diffusers model folder, a single-file checkpoint, or a model of the Hugging Face hub. */
  readonly model: string;
  /** What is added to its weights, one on top of the other. */
  readonly loras: readonly LoraChoice[];
  /** The new folder, or the new file when the model is a file. Nothing may be there yet. */
  readonly output: string;
  /** Told of the tensors written so far, and of a download. */
  readonly onEvent?: TrainingListener | undefined;
  /** Stops between two tensors; nothing is left behind. */
  readonly signal?: AbortSignal | undefined;
}

/**
 * Bakes LoRAs into a copy of a model, which then needs no LoRA: W + weight * alpha / rank * up · down, computed in float32 and stored in the type that the weight
 * had. All else of the model is copied as it is. Tensors pass through one by one, so that memory does not grow with the model.
 *
 * @returns the path of what was written.
 * @throws UsageError without a LoRA; ModelError for files that cannot be read, or a LoRA for another base; HubError when the hub cannot give the model; OutputError
 *   when the output is there already, is being written by another process, or cannot be written; CancelledError when the signal is raised. In all these cases nothing is written.
 */
export async function mergeLoras(options: MergeOptions): Promise<string> {
  const { loras, output } = options;
  if (loras.length === 0)
    throw new UsageError(
      'There is nothing to merge. Give at least one LoRA, for example --lora style.safetensors:0.8.',
    );
  return makingNew(output, () => merge(options));
}

async function merge(options: MergeOptions): Promise<string> {
  const { loras, output, variant } = options;
  const folder = await openModel((await locateBaseModel(options)).path);
  const sets = await adaptableWeights(folder, variant);
  const family = modelFamily(folder);
  const shapeOf = (module: string) => {
    const weight = layerWeight(sets, module);
    return weight && weightShape(weight);
  };
  const parts = await readLoras(loras, (lora, file) => fittedLora(lora, shapeOf, family, file));
  const updates = fileUpdates(combineLoras(parts), (module) => layerWeight(sets, module)!);
  const tell = tensorCounter(sets, options);
  if ((await stat(folder.path)).isFile()) {
    const file = await openSafetensors(folder.path);
    await writeTensorStreams(output, tell(updatedTensors(file, updates)), withoutDigests(file));
  } else {
    await writeFolderAtomic(output, (target) => copyFolder(folder.path, target, updates, sets, tell));
  }
  return output;
}

/** The components that a LoRA may change. */
const adaptable: readonly ComponentName[] = ['unet', 'text_encoder', 'text_encoder_2'];

async function adaptableWeights(folder: ModelFolder, variant?: Variant): Promise<WeightSet[]> {
  const sets: WeightSet[] = [];
  for (const name of adaptable) {
    const component = folder.components[name];
    if (component !== undefined) sets.push(await openWeights(component, variant));
  }
  return sets;
}

/** Passes tensors on, telling how many are done and noticing when to stop. */
function tensorCounter(
  sets: readonly WeightSet[],
  { onEvent, signal }: MergeOptions,
): (tensors: TensorStream[]) => TensorStream[] {
  const total = new Set(
    sets.flatMap((set) => [...set.weights.values()].map((w) => `${w.file.path} ${w.entry.name}`)),
  ).size;
  let done = 0;
  return (tensors) =>
    tensors.map((tensor) => ({
      ...tensor,
      bytes() {
        if (signal?.aborted) throw new CancelledError('Stopped; nothing was written.');
        done++;
        onEvent?.({ kind: 'stage', name: 'merging', done: Math.min(done, total), total });
        return tensor.bytes();
      },
    }));
}

/** Digests of the tensors, which are other ones now. */
function withoutDigests({ metadata }: SafetensorsFile): Map<string, string> {
  return new Map([...metadata].filter(([key]) => !/hash/i.test(key)));
}

/** Copies a model folder. Of the components that change, only the weights that were read are written. */
function copyFolder(
  source: string,
  target: string,
  updates: FileUpdates,
  sets: readonly WeightSet[],
  tell: (tensors: TensorStream[]) => TensorStream[],
): Promise<void> {
  const changed = new Map<string, (into: string) => Promise<void>>();
  for (const set of sets) {
    const folder = resolve(set.folder);
    const files = new Map(
      [...set.weights.values()].map(({ file }) => [relative(folder, resolve(file.path)), file.path]),
    );
    if (![...files.values()].some((file) => updates.has(file))) continue;
    changed.set(folder, async (into) => {
      for (const [name, path] of [...files].sort()) {
        const file = await openSafetensors(path);
        await writeTensorStreams(join(into, name), tell(updatedTensors(file, updates)), withoutDigests(file));
      }
      for (const name of await readdir(folder)) {
        const path = join(folder, name);
        if (isWeightIndex(name) && (await names(path, new Set(files.keys())))) {
          await writeFileAtomic(join(into, name), createReadStream(path));
        }
      }
    });
  }
  return copyModelFolder(source, target, changed);
}

/** Whether an index is that of these files. */
async function names(path: string, files: ReadonlySet<string>): Promise<boolean> {
  const map = (await readConfigFile(path)).raw('weight_map');
  return isObject(map) && Object.values(map).every((file) => typeof file === 'string' && files.has(file));
}
