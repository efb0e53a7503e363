import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { crossEntropy, UNKNOWN_CLASS } from '../algorithms/classification.js';
import { Augmentation } from '../data/augmentation.js';
import { channelsFirst } from '../data/channels-first.js';
import type { Labels } from '../data/world/example.js';
import { type RenderedExample, renderExamples } from '../data/world/render.js';
import { SCENES } from '../data/world/scenes.js';
import { COLOUR_NAMES, NOUNS, PATTERNS } from '../data/world/subject.js';
import type { Engine, Program } from '../engine/engine.js';
import { ModelError } from '../errors.js';
import { type Json, parseConfig } from '../formats/json-config.js';
import { readConfigFile, writeJsonFile } from '../formats/json-config-file.js';
import { makeFolder } from '../formats/make-folder.js';
import { openSafetensors, writeSafetensorsFile } from '../formats/safetensors-file.js';
import {
  readWorldClassifierConfig,
  type WorldClassifierConfig,
  worldClassifier,
} from '../models/world-classifier.js';
import { InputParameters, Scope } from '../nn/parameters.js';
import { add } from '../onnx/elementwise.js';
import { Graph } from '../onnx/graph.js';
import { argMax } from '../onnx/reduction.js';
import { weightSource } from '../pretrained/weights.js';
import { Random } from '../tensor/random.js';
import { float32, fromFloat32, int64, type Tensor } from '../tensor/tensor.js';
import { type SmallModelTraining, smallModelSettings, trainFully } from '../training/full-training.js';

const RESOLUTION = 64;
const CONFIG_FILE = 'config.json';
const WEIGHTS_FILE = 'model.safetensors';

const CONFIG: Json = {
  _class_name: 'WorldClassifier',
  block_out_channels: [24, 40, 72, 96],
  hidden_size: 112,
  layers_per_block: [2, 2, 1, 1],
  norm_num_groups: 4,
  num_colours: COLOUR_NAMES.length,
  num_nouns: NOUNS.length,
  num_patterns: PATTERNS.length,
  num_scenes: SCENES.length,
  resolution: RESOLUTION,
};

/** The questions, in the order in which answers are listed. */
export const QUESTIONS = ['noun', 'scene', 'colour', 'pattern'] as const satisfies readonly (keyof Labels)[];
export type Question = (typeof QUESTIONS)[number];

/** The answers for one picture, as labels: places in the lists of ANSWERS. */
export type Answers = Readonly<Record<Question, number>>;

/** The names of the answers to each question, by label. */
export const ANSWERS: Readonly<Record<Question, readonly string[]>> = {
  noun: NOUNS,
  scene: SCENES.map((scene) => scene.name),
  colour: COLOUR_NAMES,
  pattern: PATTERNS,
};

function byQuestion<T>(value: (question: Question) => T): Record<Question, T> {
  return Object.fromEntries(QUESTIONS.map((question) => [question, value(question)])) as Record<Question, T>;
}

/** The folder of the classifier that ships. */
export function shippedWorldClassifier(): string {
  return fileURLToPath(new URL('../../../models/world-classifier', import.meta.url));
}

/** Judges pictures of the synthetic world: which noun they show, where, in which main colour and with which pattern. It is no part of the models that it judges. */
export class WorldClassifier {
  readonly resolution: number;
  readonly #program: Program;
  readonly #batchSize: number;

  private constructor(program: Program, resolution: number, batchSize: number) {
    this.#program = program;
    this.resolution = resolution;
    this.#batchSize = batchSize;
  }

  /**
   * @param batchSize how many pictures are judged at once; makes no difference to the answers.
   * @throws ModelError when the folder holds no classifier of this world.
   */
  static async open(
    engine: Engine,
    folder: string = shippedWorldClassifier(),
    batchSize = 50,
  ): Promise<WorldClassifier> {
    const config = readWorldClassifierConfig(await readConfigFile(join(folder, CONFIG_FILE)));
    requireThisWorld(config, folder);
    const file = await openSafetensors(join(folder, WEIGHTS_FILE));
    const weights = new Map([...file.entries.values()].map((entry) => [entry.name, { file, entry }]));
    const graph = new Graph('world classifier');
    const { resolution } = config;
    const logits = worldClassifier(
      new Scope(weightSource(graph, { component: 'world_classifier', folder, weights })),
      config,
      graph.input('pixels', 'float32', [batchSize, 3, resolution, resolution]),
    );
    for (const question of QUESTIONS) graph.output(question, argMax(logits[question], 1));
    return new WorldClassifier(await engine.compile(graph), resolution, batchSize);
  }

  /** Answers for pictures of RGB bytes [R, R, 3], in their order. */
  async classify(pictures: readonly Uint8Array[]): Promise<Answers[]> {
    const size = 3 * this.resolution ** 2;
    const wrong = pictures.find((picture) => picture.length !== size);
    if (wrong)
      throw new RangeError(
        `internal: the classifier takes pictures of ${size} bytes ([${this.resolution}, ${this.resolution}, 3]), got ${wrong.length}`,
      );
    const answers: Answers[] = [];
    for (let start = 0; start < pictures.length; start += this.#batchSize) {
      const some = pictures.slice(start, start + this.#batchSize);
      const pixels = new Float32Array(this.#batchSize * size);
      some.forEach((picture, b) => {
        channelsFirst(picture, pixels.subarray(b * size, (b + 1) * size));
      });
      const shape = [this.#batchSize, 3, this.resolution, this.resolution];
      const found = await this.#program.run({ pixels: float32(shape, pixels) });
      const answer = (question: Question, i: number) => Number(found[question]!.data[i]);
      some.forEach((_, i) => {
        answers.push(byQuestion((question) => answer(question, i)));
      });
    }
    return answers;
  }

  async release(): Promise<void> {
    await this.#program.release();
  }
}

function requireThisWorld(config: WorldClassifierConfig, folder: string): void {
  const { nouns, scenes, colours, patterns } = config;
  const told = [nouns, scenes, colours, patterns];
  const known = QUESTIONS.map((question) => ANSWERS[question].length);
  if (told.some((count, i) => count !== known[i]))
    throw new ModelError(
      `${join(folder, CONFIG_FILE)} tells ${nouns} nouns, ${scenes} scenes, ${colours} colours and ${patterns} patterns apart, but the world has ` +
        `${known.slice(0, -1).join(', ')} and ${known.at(-1)}. It was trained for another version; train it again.`,
    );
}

/** How often each answer to a question was given for each truth. */
export interface Tally {
  readonly right: number;
  readonly total: number;
  /** [truth][answer] */
  readonly confusion: readonly (readonly number[])[];
}

/** Compares answers with the truth, question by question. A picture whose truth does not answer a question is left out of its tally. */
export function tally(truth: readonly Labels[], found: readonly Answers[]): Record<Question, Tally> {
  return byQuestion((question) => {
    const confusion = ANSWERS[question].map(() => ANSWERS[question].map(() => 0));
    let [right, total] = [0, 0];
    truth.forEach(({ [question]: label }, i) => {
      if (label === undefined) return;
      const answer = found[i]![question];
      confusion[label]![answer]!++;
      total++;
      if (answer === label) right++;
    });
    return { right, total, confusion };
  });
}

export interface WorldClassifierTraining extends SmallModelTraining {
  /** How many pictures of each scene to draw. */
  readonly examplesPerScene: number;
}

/** How the classifier that ships was trained. */
export const worldClassifierDefaults = {
  seed: 1,
  examplesPerScene: 1000,
  steps: 7000,
  batchSize: 32,
  checkpointingSteps: 250,
} as const satisfies Partial<WorldClassifierTraining>;

/**
 * Trains the classifier from nothing on drawings of the world, all scenes alike often, and writes its folder with half-precision weights. Everything follows from
 * the seed; stopped at any moment, the same call goes on where the last saved state left off.
 */
export async function trainWorldClassifier(options: WorldClassifierTraining): Promise<void> {
  const { output, seed, batchSize: b } = options;
  const config = readWorldClassifierConfig(parseConfig(JSON.stringify(CONFIG), CONFIG_FILE));
  const examples = await drawExamples(options);
  const graph = new Graph('world classifier');
  const parameters = new InputParameters(graph);
  const shape = [b, 3, RESOLUTION, RESOLUTION];
  const logits = worldClassifier(new Scope(parameters), config, graph.input('pixels', 'float32', shape));
  const losses = QUESTIONS.map((question) =>
    crossEntropy(logits[question], graph.input(question, 'int64', [b])),
  );
  const augmentation = new Augmentation(RESOLUTION, new Random(seed, 'grain'));
  const trained = await trainFully(
    {
      name: 'world-classifier',
      graph,
      loss: losses.reduce((sum, loss) => add(sum, loss)),
      parameters: [parameters],
      batch: (step) => {
        const random = new Random(seed, 'world classifier', step);
        const drawn = Array.from({ length: b }, () => random.pick(examples));
        const pixels = new Float32Array(b * 3 * RESOLUTION ** 2);
        const size = pixels.length / b;
        drawn.forEach(({ pixels: picture }, i) => {
          const into = pixels.subarray(i * size, (i + 1) * size);
          channelsFirst(picture, into);
          augmentation.apply(into, random);
        });
        const labels = (question: Question) =>
          int64(
            [b],
            drawn.map((example) => example.labels[question] ?? UNKNOWN_CLASS),
          );
        return { pixels: float32(shape, pixels), ...byQuestion(labels) };
      },
      steps: options.steps,
      learningRate: 3e-3,
      warmupSteps: 50,
      maxEmaDecay: 0.995,
    },
    await smallModelSettings(options),
  );
  await saveWorldClassifier(output, trained);
}

async function saveWorldClassifier(
  folder: string,
  weights: ReadonlyMap<string, Tensor<'float32'>>,
): Promise<void> {
  const halves = [...weights].map(([name, t]) => [name, fromFloat32(t, 'float16')] as const);
  await makeFolder(folder);
  await writeSafetensorsFile(join(folder, WEIGHTS_FILE), new Map(halves));
  await writeJsonFile(join(folder, CONFIG_FILE), CONFIG);
}

async function drawExamples(options: WorldClassifierTraining): Promise<RenderedExample[]> {
  const { seed, examplesPerScene: count, onEvent } = options;
  const examples: RenderedExample[] = [];
  for (const [i, { name: scene }] of SCENES.entries()) {
    examples.push(...(await renderExamples(seed, i * count, count, RESOLUTION, { scene })));
    onEvent?.({
      kind: 'stage',
      name: 'drawing the world',
      done: examples.length,
      total: count * SCENES.length,
    });
  }
  return examples;
}
