import { readdir, rm } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { writeFolderAtomic } from '../formats/atomic-folder.js';
import { openSafetensors } from '../formats/safetensors-file.js';
import type { PredictionType } from '../pretrained/architectures.js';
import {
  customDiffusionFileName,
  openCustomDiffusionFile,
  writeCustomDiffusionFile,
} from '../pretrained/custom-diffusion-file.js';
import { loraFromFactors } from '../pretrained/lora.js';
import { writeLoraFiles } from '../pretrained/lora-file.js';
import type { LoraDescription } from '../pretrained/lora-formats.js';
import type { NewWord } from '../pretrained/new-words.js';
import type { StableDiffusion } from '../pretrained/stable-diffusion.js';
import {
  allWeights,
  crossAttentionKeysAndValues,
  type Trainable,
  type TrainedWeights,
} from '../pretrained/trainable.js';
import { writeTrainedFolder } from '../pretrained/trained-folder.js';
import { readWeightTensor, type Weight, weightShape } from '../pretrained/weight.js';
import { openWeights } from '../pretrained/weights.js';
import { learnedEmbeds, readWordFiles, wordFile, writeWordFiles } from '../pretrained/word-files.js';
import { type Shape, type Tensor, toFloat32 } from '../tensor/tensor.js';
import { runFiles } from '../training/run-folder.js';
import type { PersonaliseSettings } from './personalisation-settings.js';
import { shellWord } from './shell-word.js';

/** What of a run's settings says what is trained. */
export type TrainingKindSettings = Pick<
  PersonaliseSettings,
  'train' | 'rank' | 'loraAlpha' | 'trainTextEncoder' | 'saveModel'
>;

/** A tensor that a run has learnt, before it is read. */
export interface StoredTensor {
  readonly shape: Shape;
  readonly read: () => Promise<Tensor<'float32'>>;
  /** Its place in a file, where an engine can take it from there as it is. */
  readonly weight?: Weight;
}

export interface SaveInputs {
  /** The run folder. */
  readonly folder: string;
  readonly model: StableDiffusion;
  readonly predictionType: PredictionType | undefined;
  /** Those of the model's variables that were trained, averaged where an average was kept. */
  readonly learnt: TrainedWeights;
  readonly description: LoraDescription;
}

/** How to go on with a file in another tool. */
export interface Usage {
  readonly title: string;
  readonly file: string;
  readonly code: string;
}

/** One answer to what is trained: what of the model is variable, and in which files it is kept in the end. */
export interface TrainingKind {
  readonly trainable: Trainable;
  /** Writes what was learnt in the formats of other tools, into the run folder. Returns the paths, the most useful first. */
  save(inputs: SaveInputs): Promise<string[]>;
  /** What `save` wrote, by the names of the variables; for runs whose checkpoints are gone. The factors of a LoRA have its scale in them. */
  open(folder: string, model: StableDiffusion): Promise<Map<string, StoredTensor>>;
  /** A file of `save` by which one sees that it was done, relative to the run folder; none where nothing is written. */
  readonly result: string | undefined;
  /** Other tools' ways to take the files. */
  usages(folder: string): Usage[];
}

/** What can be trained, by the name of the flag's value. */
export const trainingKinds: Readonly<
  Record<
    PersonaliseSettings['train'],
    (settings: TrainingKindSettings, words: readonly NewWord[]) => TrainingKind
  >
> = {
  lora: loraTraining,
  full: fullTraining,
  'custom-diffusion': customDiffusion,
  'textual-inversion': textualInversion,
};

export function trainingKind(settings: TrainingKindSettings, words: readonly NewWord[]): TrainingKind {
  return trainingKinds[settings.train](settings, words);
}

function loraTraining({ rank, loraAlpha, trainTextEncoder }: TrainingKindSettings): TrainingKind {
  return {
    trainable: { lora: { rank, alpha: loraAlpha, textEncoder: trainTextEncoder } },
    async save({ folder, learnt, description }) {
      return writeLoraFiles(folder, loraFromFactors(await readAll(learnt), loraAlpha), description);
    },
    async open(folder) {
      const file = await openSafetensors(join(folder, runFiles.lora));
      // The file has alpha / rank folded in, which the graph would apply again.
      const scale = loraAlpha / rank;
      return new Map(
        [...file.entries].map(([name, entry]) => {
          const { read, shape } = storedWeight({ file, entry });
          if (!name.endsWith('.lora_B.weight')) return [name, { read, shape }];
          const unfolded = async () => {
            const t = await read();
            return { ...t, data: t.data.map((v) => v / scale) };
          };
          return [name, { shape, read: unfolded }];
        }),
      );
    },
    result: runFiles.lora,
    usages: (folder) => [
      {
        title: 'diffusers',
        file: runFiles.lora,
        code: `pipe.load_lora_weights(${JSON.stringify(folder)}, weight_name="${runFiles.lora}")`,
      },
      {
        title: 'ComfyUI, AUTOMATIC1111, Forge',
        file: runFiles.kohyaLora,
        code: `cp ${shellWord(join(folder, runFiles.kohyaLora))} YOUR_TOOL/models/loras/`,
      },
    ],
  };
}

function fullTraining({ trainTextEncoder, saveModel }: TrainingKindSettings): TrainingKind {
  return {
    trainable: allWeights(trainTextEncoder),
    async save({ folder, model, learnt, predictionType }) {
      const path = join(folder, runFiles.model);
      // What stands there is of an earlier end of this run.
      await rm(path, { recursive: true, force: true });
      if (!saveModel) return [];
      await writeFolderAtomic(path, (target) => writeTrainedFolder(target, model, learnt, predictionType));
      return [path];
    },
    async open(folder, model) {
      const stored = new Map<string, StoredTensor>();
      for (const { component } of model.weightSets) {
        if (component === 'vae' || (component !== 'unet' && !trainTextEncoder)) continue;
        const place = join(folder, runFiles.model, component);
        const files = await readdir(place);
        const { weights } = await openWeights({ name: component, folder: place, files });
        for (const [name, weight] of weights) stored.set(`${component}.${name}`, storedWeight(weight));
      }
      return stored;
    },
    result: saveModel ? join(runFiles.model, 'model_index.json') : undefined,
    usages: (folder) =>
      saveModel
        ? [
            {
              title: 'diffusers',
              file: runFiles.model,
              // Said, since transformers would take the untrained parts of a base in halves as halves beside the others.
              code: `pipe = DiffusionPipeline.from_pretrained(${JSON.stringify(join(folder, runFiles.model))}, torch_dtype=torch.float32)`,
            },
            {
              title: 'ComfyUI, AUTOMATIC1111, Forge',
              file: runFiles.model,
              code: `npx portrayal convert --model ${shellWord(join(folder, runFiles.model))} --output YOUR_TOOL/models/checkpoints/${basename(folder)}.safetensors`,
            },
          ]
        : [],
  };
}

function customDiffusion(_: TrainingKindSettings, words: readonly NewWord[]): TrainingKind {
  return {
    trainable: crossAttentionKeysAndValues,
    async save({ folder, learnt }) {
      const all = await readAll(learnt);
      return [
        await writeCustomDiffusionFile(folder, all),
        ...(await writeWordFiles(folder, words, all, wordFile)),
      ];
    },
    async open(folder, model) {
      const weights = await openCustomDiffusionFile(folder);
      return new Map([
        ...[...weights].map(([name, weight]) => [name, storedWeight(weight)] as const),
        ...storedRows(folder, model, words, wordFile),
      ]);
    },
    result: customDiffusionFileName,
    usages: (folder) => [
      {
        title: 'diffusers',
        file: customDiffusionFileName,
        // Without the pipeline, diffusers 0.42 reads the file and changes nothing.
        code: [
          `pipe.unet.load_attn_procs(${JSON.stringify(folder)}, weight_name="${customDiffusionFileName}", _pipeline=pipe)`,
          ...words.map(
            (word) =>
              `pipe.load_textual_inversion(${JSON.stringify(folder)}, weight_name="${wordFile(word)}.safetensors")`,
          ),
        ].join('\n'),
      },
    ],
  };
}

function textualInversion(_: TrainingKindSettings, words: readonly NewWord[]): TrainingKind {
  const file = `${learnedEmbeds(words[0]!)}.safetensors`;
  return {
    trainable: {},
    async save({ folder, learnt }) {
      return writeWordFiles(folder, words, await readAll(learnt), learnedEmbeds);
    },
    async open(folder, model) {
      return new Map(storedRows(folder, model, words, learnedEmbeds));
    },
    result: file,
    usages: (folder) => [
      {
        title: 'diffusers',
        file,
        code: `pipe.load_textual_inversion(${JSON.stringify(folder)}, weight_name="${file}")`,
      },
      {
        title: 'ComfyUI, AUTOMATIC1111, Forge',
        file,
        code: `cp ${shellWord(join(folder, file))} YOUR_TOOL/models/embeddings/`,
      },
    ],
  };
}

/** A tensor of a file, as a variable. */
export function storedWeight(weight: Weight): StoredTensor {
  return {
    weight,
    shape: weightShape(weight),
    read: async () => toFloat32(await readWeightTensor(weight)),
  };
}

function storedRows(
  folder: string,
  model: StableDiffusion,
  words: readonly NewWord[],
  nameOf: Parameters<typeof readWordFiles>[3],
): (readonly [string, StoredTensor])[] {
  return model
    .variables({})
    .map(({ input, shape }) => [input, { shape, read: () => readWordFiles(folder, words, input, nameOf) }]);
}

async function readAll({ names, read }: TrainedWeights): Promise<Map<string, Tensor>> {
  const all = new Map<string, Tensor>();
  for (const name of names) all.set(name, await read(name));
  return all;
}
