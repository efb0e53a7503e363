import { join } from 'node:path';
import { contrastiveLoss } from '../algorithms/contrastive.js';
import { selfDistillationLoss } from '../algorithms/self-distillation.js';
import { Augmentation } from '../data/augmentation.js';
import { channelsFirst } from '../data/channels-first.js';
import { COLOUR_NAMES } from '../data/world/subject.js';
import { renderViews, worldSubject } from '../data/world/views.js';
import { type Json, parseConfig } from '../formats/json-config.js';
import { pathExists } from '../formats/path-exists.js';
import { readSafetensorsFile } from '../formats/safetensors-file.js';
import { type DinoHeadConfig, dinoHead } from '../models/dino-head.js';
import { readViTConfig, vit } from '../models/vit.js';
import { initialParameters } from '../nn/initialize.js';
import { InputParameters, Scope } from '../nn/parameters.js';
import { add } from '../onnx/elementwise.js';
import { Graph, type Value } from '../onnx/graph.js';
import { split } from '../onnx/movement.js';
import { emaName } from '../optim/ema.js';
import { Random } from '../tensor/random.js';
import { float32, type Tensor, toFloat32 } from '../tensor/tensor.js';
import { ENCODER_RESOLUTION, encoderPreprocessing, preparedPictures, writeEncoder } from './encoder-files.js';
import { type SmallModelTraining, smallModelSettings, trainFully } from './full-training.js';

export interface DinoTraining extends SmallModelTraining {
  /** How many subjects to draw, and how often each. */
  readonly subjects: number;
  readonly views: number;
  /** Subjects a step; each is seen twice. */
  readonly batchSize: number;
  /** After `steps` steps of any subjects, how many of subjects that are alike. */
  readonly alikeSteps: number;
}

/** How the encoders that ship were trained, but for the seed. */
export const dinoDefaults = {
  subjects: 6000,
  views: 4,
  steps: 1000,
  alikeSteps: 1400,
  batchSize: 64,
  checkpointingSteps: 250,
} as const satisfies Partial<DinoTraining>;

const CONFIG: Json = {
  architectures: ['ViTModel'],
  hidden_act: 'gelu',
  hidden_size: 96,
  image_size: ENCODER_RESOLUTION,
  intermediate_size: 288,
  layer_norm_eps: 1e-6,
  model_type: 'vit',
  num_attention_heads: 3,
  num_channels: 3,
  num_hidden_layers: 3,
  patch_size: 8,
  qkv_bias: true,
};
const HEAD: DinoHeadConfig = { bottleneck: 64, prototypes: 512 };
/** Sharper than is usual: with fewer pictures a step than prototypes, Sinkhorn-Knopp flattens the answers, and from flat answers nothing is learnt. */
const TEACHER_TEMPERATURE = 0.025;
const CONTRASTIVE_TEMPERATURE = 0.1;
/** Subjects that are alike are of so few main colours. */
const COLOURS_AT_ONCE = 3;
const LEARNING_RATE = 2e-3;

/** The teacher's input names are the averages' names. */
const TEACHER = emaName('');

/**
 * Trains a small vision transformer on the synthetic world by self-distillation (DINO, Caron et al., arXiv 2104.14294) and writes it in the layout of transformers'
 * ViTModel, with half-precision weights. No labels enter the loss; its two views are not crops of one picture but two pictures of one subject in other poses and places,
 * so that it learns what makes a subject and looks past where it is. Among the subjects of a batch a view also has to find its other view (the contrastive loss of
 * SimCLR, Chen et al., arXiv 2002.05709, section 2.1, without negatives of the same view): self-distillation alone needs far more steps before subjects come apart.
 * At first the subjects of a step are any; then, from what was learnt and with a new head, they are of few main colours, since among any subjects colours alone tell
 * nearly all apart and shapes are learnt slowly. Everything follows from the seed; stopped at any moment, the same call goes on.
 *
 * @throws CancelledError when the signal is raised, with the state saved. DivergedError when the training leaves the finite numbers.
 */
export async function trainDino(options: DinoTraining): Promise<void> {
  const { output, work, seed, subjects, views, onEvent } = options;
  const drawn = Array.from({ length: subjects }, (_, i) => worldSubject(seed, i));
  onEvent?.({ kind: 'stage', name: 'drawing the world', done: 0, total: subjects * views });
  const pictures = await renderViews(drawn, views, ENCODER_RESOLUTION, seed);
  onEvent?.({ kind: 'stage', name: 'drawing the world', done: subjects * views, total: subjects * views });
  const byColour = COLOUR_NAMES.map((colour) =>
    drawn.flatMap((subject, i) => (subject.colour === colour ? [i] : [])),
  ).filter((members) => members.length > 0);

  const first = join(work, 'first');
  if (!(await pathExists(join(first, 'model.safetensors')))) {
    const encoder = await distil(options, pictures, {
      name: 'dino',
      steps: options.steps,
      choose: (random) => () => random.int(subjects),
    });
    await writeDino(first, encoder);
  }
  const { tensors } = await readSafetensorsFile(join(first, 'model.safetensors'));
  const encoder = await distil(options, pictures, {
    name: 'dino-alike',
    steps: options.alikeSteps,
    choose: (random) => {
      const colours = random.permutation(byColour.length).slice(0, COLOURS_AT_ONCE);
      const alike = colours.flatMap((colour) => byColour[colour]!);
      return () => random.pick(alike);
    },
    start: tensors,
  });
  await writeDino(output, encoder);
}

const PREPROCESSING = encoderPreprocessing('dino');

function writeDino(folder: string, encoder: ReadonlyMap<string, Tensor<'float32'>>): Promise<void> {
  return writeEncoder(folder, { 'config.json': CONFIG, 'preprocessor_config.json': PREPROCESSING }, encoder);
}

/** One part of the training. */
interface Distillation {
  readonly name: string;
  readonly steps: number;
  /** For a step, says which subject is the next of its batch. */
  readonly choose: (random: Random) => () => number;
  /** Weights of the encoder to start from; drawn without them. */
  readonly start?: ReadonlyMap<string, Tensor>;
}

/** @returns the encoder's averaged weights */
async function distil(
  options: DinoTraining,
  pictures: readonly Uint8Array[],
  part: Distillation,
): Promise<Map<string, Tensor<'float32'>>> {
  const { seed, views, batchSize: b } = options;
  const config = readViTConfig(parseConfig(JSON.stringify(CONFIG), 'config.json'));
  const graph = new Graph('dino');
  const [student, teacher] = [new InputParameters(graph), new InputParameters(graph, TEACHER)];
  const shape = [2 * b, 3, ENCODER_RESOLUTION, ENCODER_RESOLUTION];
  const pixels = preparedPictures(PREPROCESSING, graph.input('pixels', 'float32', shape));
  // The first B rows are one view of each subject, the others the other.
  const byView = (x: Value): readonly Value[] => split(x, [b, b], 0);
  const network = (parameters: InputParameters) => {
    const scope = new Scope(parameters);
    const embeddings = vit(scope, config, pixels);
    return { embeddings, scores: byView(dinoHead(scope.at('head'), HEAD, embeddings)) };
  };
  const { embeddings, scores } = network(student);
  const distillation = selfDistillationLoss(scores, network(teacher).scores, {
    teacherTemperature: TEACHER_TEMPERATURE,
  });
  const [one, other] = byView(embeddings);
  const logScale = graph.constant(float32([], [Math.log(1 / CONTRASTIVE_TEMPERATURE)]), 'log_scale');
  const loss = add(distillation, contrastiveLoss(one!, other!, logScale));
  const augmentation = new Augmentation(ENCODER_RESOLUTION, new Random(seed, 'grain'));
  const settings = await smallModelSettings(options);
  const initial = initialParameters(student.specs, settings.random);
  for (const [name, weight] of part.start ?? []) initial.set(name, toFloat32(weight));
  const trained = await trainFully(
    {
      name: part.name,
      graph,
      loss,
      parameters: [student],
      averages: teacher,
      initial,
      batch: (step) => {
        const random = new Random(seed, part.name, step);
        const next = part.choose(random);
        const batch = new Float32Array(2 * b * 3 * ENCODER_RESOLUTION ** 2);
        const size = batch.length / (2 * b);
        for (let i = 0; i < b; i++) {
          const subject = next();
          const first = random.int(views);
          const second = (first + 1 + random.int(views - 1)) % views;
          [first, second].forEach((view, v) => {
            const into = batch.subarray((v * b + i) * size, (v * b + i + 1) * size);
            channelsFirst(pictures[subject * views + view]!, into);
            augmentation.apply(into, random);
          });
        }
        return { pixels: float32(shape, batch) };
      },
      steps: part.steps,
      learningRate: LEARNING_RATE,
      warmupSteps: 50,
      maxEmaDecay: 0.98,
    },
    settings,
  );
  return new Map([...trained].filter(([name]) => !name.startsWith('head.')));
}
