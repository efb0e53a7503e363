import { join } from 'node:path';
import { readSubjectPrompt, type SubjectPrompt } from '../data/prompts.js';
import { ModelError, RunError } from '../errors.js';
import { isObject, type Json } from '../formats/json-config.js';
import { pathExists } from '../formats/path-exists.js';
import { emaName } from '../optim/ema.js';
import { type PredictionType, predictionTypes } from '../pretrained/architectures.js';
import type { NewWord } from '../pretrained/new-words.js';
import type { StableDiffusion } from '../pretrained/stable-diffusion.js';
import type { LoraSettings } from '../pretrained/trainable.js';
import type { Weight } from '../pretrained/weight.js';
import type { Variant } from '../pretrained/weights.js';
import type { Tensor } from '../tensor/tensor.js';
import { openCheckpoint } from '../training/checkpoint.js';
import { learntCheckpoint } from '../training/learnt-checkpoint.js';
import { type RunConfig, readRunConfig, runFiles } from '../training/run-folder.js';
import {
  type StoredTensor,
  storedWeight,
  type TrainingKind,
  trainingKind,
  trainingKinds,
} from './training-kind.js';

/** What the settings of a run say about what it learns, and on which model. */
export interface RunRecord {
  readonly path: string;
  readonly model: string;
  readonly variant: Variant;
  readonly predictionType: PredictionType | undefined;
  readonly resolution: number;
  readonly kind: TrainingKind;
  readonly words: readonly NewWord[];
  /** Whether an average of the weights over the steps was kept, which then is the result. */
  readonly averaged: boolean;
  readonly subject: SubjectPrompt | undefined;
}

/** What a run has learnt, on its model. */
export interface Learnt {
  /** The model with the words that it learnt, and the weights that were trained in place of its own. */
  readonly model: StableDiffusion;
  readonly lora: LoraSettings | undefined;
  /** The factors of the LoRA and the rows of the words, by the names of their inputs. */
  readonly state: ReadonlyMap<string, Tensor<'float32'>>;
}

/** @throws RunError when the folder is no run, or its settings are damaged. */
export async function readRunRecord(path: string): Promise<RunRecord> {
  const config = await readRunConfig(path);
  const { settings } = config;
  if (!isObject(settings) || typeof config.model !== 'string') {
    throw new RunError(
      `${join(path, runFiles.config)}: the settings of the run are missing. Was the file edited?`,
    );
  }
  const fault = (key: string, expected: string): RunError =>
    new RunError(
      `${join(path, runFiles.config)}: settings.${key} is ${JSON.stringify(settings[key])}; expected ${expected}.`,
    );
  const number = (key: string): number => {
    const value: Json | undefined = settings[key];
    if (typeof value !== 'number') throw fault(key, 'a number');
    return value;
  };
  // Runs from before there was a choice do not say it.
  const train = settings.train ?? 'lora';
  if (typeof train !== 'string' || !isTrainingKind(train)) {
    throw fault('train', Object.keys(trainingKinds).join(' or '));
  }
  const words = readWords(config, path);
  const kind = trainingKind(
    {
      train,
      rank: number('rank'),
      loraAlpha: number('loraAlpha'),
      trainTextEncoder: settings.trainTextEncoder === true,
      saveModel: settings.saveModel !== false,
    },
    words,
  );
  const { instancePrompt, classPrompt } = config;
  const subject =
    typeof instancePrompt === 'string' && typeof classPrompt === 'string'
      ? readSubjectPrompt({ instancePrompt, classPrompt })
      : undefined;
  return {
    path,
    model: config.model,
    variant: config.variant === 'fp16' ? 'fp16' : 'full',
    predictionType: predictionTypes.find((type) => type === config.predictionType),
    resolution: number('resolution'),
    kind,
    words,
    averaged: settings.useEma === true,
    subject,
  };
}

const isTrainingKind = (name: string): name is keyof typeof trainingKinds =>
  Object.hasOwn(trainingKinds, name);

function readWords(config: RunConfig, path: string): NewWord[] {
  const { words = [] } = config;
  const fault = (): RunError =>
    new RunError(
      `${join(path, runFiles.config)}: "words" is ${JSON.stringify(words)}; expected a list of words with their vectors and initializers. Was the file edited?`,
    );
  if (!Array.isArray(words)) throw fault();
  return words.map((value) => {
    const { word, vectors, initializer } = isObject(value) ? value : {};
    if (typeof word !== 'string' || typeof vectors !== 'number' || typeof initializer !== 'string')
      throw fault();
    return { word, vectors, initializer };
  });
}

/**
 * Finds what a run has learnt so far: in its newest checkpoint, or its best one where it may stop early; where there is none, in its final files. Weights stay where they are.
 *
 * @param base the model that the run was trained on, or one that stands in for it.
 * @throws ModelError when what was learnt does not fit the model; RunError when there is nothing yet.
 */
export async function storedLearnt(
  record: RunRecord,
  base: StableDiffusion,
): Promise<ReadonlyMap<string, StoredTensor>> {
  const { path, kind, averaged, words } = record;
  const model = base.withWords(words);
  const entry = await learntCheckpoint(path);
  let found: ReadonlyMap<string, StoredTensor>;
  if (entry) {
    const { tensors: file } = await openCheckpoint(entry.path);
    found = new Map(
      model.variables(kind.trainable).flatMap(({ input }) => {
        const own = file.entries.get(averaged ? emaName(input) : input);
        return own ? [[input, storedWeight({ file, entry: own })] as const] : [];
      }),
    );
  } else {
    const { result } = kind;
    if (result === undefined || !(await pathExists(join(path, result)))) {
      throw new RunError(
        `${path}: this run has neither a checkpoint nor a result yet. Let it train further.`,
      );
    }
    found = await kind.open(path, model);
  }
  for (const { input, shape } of model.variables(kind.trainable)) {
    const stored = found.get(input)?.shape;
    if (stored?.join() !== shape.join()) {
      throw new ModelError(
        `${path}: what this run learnt does not fit ${base.folder.path}: ${input} is ${stored ? `[${stored.join(', ')}]` : 'missing'}, expected [${shape.join(', ')}]. Give the model that it was trained on (${record.model}).`,
      );
    }
  }
  return found;
}

/** Puts what a run has learnt on its model. */
export async function putOnModel(
  record: RunRecord,
  stored: ReadonlyMap<string, StoredTensor>,
  base: StableDiffusion,
): Promise<Learnt> {
  const { kind, words } = record;
  const { lora, weights } = kind.trainable;
  const whole = new Set(base.variables(weights ? { weights } : {}).map(({ input }) => input));
  const replaced = new Map<string, Weight>();
  const state = new Map<string, Tensor<'float32'>>();
  for (const [name, { weight, read }] of stored) {
    if (whole.has(name) && weight) replaced.set(name, weight);
    else state.set(name, await read());
  }
  return { model: base.withWeights(replaced).withWords(words), lora, state };
}
