import { koleoLoss } from '../algorithms/koleo.js';
import { selfDistillationLoss } from '../algorithms/self-distillation.js';
import { Augmentation } from '../data/augmentation.js';
import { channelsFirst } from '../data/channels-first.js';
import { renderViews, worldSubject } from '../data/world/views.js';
import { type Json, parseConfig } from '../formats/json-config.js';
import { type DinoHeadConfig, dinoHead } from '../models/dino-head.js';
import { readViTConfig, vit } from '../models/vit.js';
import { InputParameters, Scope } from '../nn/parameters.js';
import { add, mul } from '../onnx/elementwise.js';
import { Graph, type Value } from '../onnx/graph.js';
import { split } from '../onnx/movement.js';
import { emaName } from '../optim/ema.js';
import { Random } from '../tensor/random.js';
import { float32 } from '../tensor/tensor.js';
import { ENCODER_RESOLUTION, encoderPreprocessing, writeEncoder } from './encoder-files.js';
import { type SmallModelTraining, smallModelSettings, trainFully } from './full-training.js';

export interface DinoTraining extends SmallModelTraining {
  /** How many subjects to draw, and how often each. */
  readonly subjects: number;
  readonly views: number;
  /** Subjects a step; each is seen twice. */
  readonly batchSize: number;
}

/** How the encoders that ship were trained, but for the seed. */
export const dinoDefaults = {
  subjects: 6000,
  views: 4,
  steps: 5000,
  batchSize: 32,
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
const TEACHER_TEMPERATURE = 0.015;
const KOLEO_WEIGHT = 0.3;

/** The teacher's input names are the averages' names. */
const TEACHER = emaName('');

/**
 * Trains a small vision transformer on the synthetic world by self-distillation (DINO, Caron et al., arXiv 2104.14294) and writes it in the layout of transformers'
 * ViTModel, with half-precision weights. It sees no labels; its two views are not crops of one picture but two pictures of one subject in other poses and places,
 * so that it learns what makes a subject and looks past where it is. Everything follows from the seed; stopped at any moment, the same call goes on.
 *
 * @throws CancelledError when the signal is raised, with the state saved. DivergedError when the training leaves the finite numbers.
 */
export async function trainDino(options: DinoTraining): Promise<void> {
  const { output, seed, subjects, views, batchSize: b, onEvent } = options;
  const config = readViTConfig(parseConfig(JSON.stringify(CONFIG), 'config.json'));
  const drawn = Array.from({ length: subjects }, (_, i) => worldSubject(seed, i));
  onEvent?.({ kind: 'stage', name: 'drawing the world', done: 0, total: subjects * views });
  const pictures = await renderViews(drawn, views, ENCODER_RESOLUTION, seed);
  onEvent?.({ kind: 'stage', name: 'drawing the world', done: subjects * views, total: subjects * views });

  const graph = new Graph('dino');
  const [student, teacher] = [new InputParameters(graph), new InputParameters(graph, TEACHER)];
  const shape = [2 * b, 3, ENCODER_RESOLUTION, ENCODER_RESOLUTION];
  const pixels = graph.input('pixels', 'float32', shape);
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
  const [one, other] = byView(embeddings).map(koleoLoss);
  const spread = mul(add(one!, other!), 0.5);
  const loss = add(distillation, mul(spread, KOLEO_WEIGHT));
  const augmentation = new Augmentation(ENCODER_RESOLUTION, new Random(seed, 'grain'));
  const trained = await trainFully(
    {
      name: 'dino',
      graph,
      loss,
      parameters: [student],
      averages: teacher,
      batch: (step) => {
        const random = new Random(seed, 'dino', step);
        const batch = new Float32Array(2 * b * 3 * ENCODER_RESOLUTION ** 2);
        const size = batch.length / (2 * b);
        for (let i = 0; i < b; i++) {
          const subject = random.int(subjects);
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
      steps: options.steps,
      learningRate: 3e-3,
      warmupSteps: 50,
      maxEmaDecay: 0.98,
    },
    await smallModelSettings(options),
  );
  const encoder = new Map([...trained].filter(([name]) => !name.startsWith('head.')));
  const preprocessing = encoderPreprocessing('ViTImageProcessor');
  await writeEncoder(output, { 'config.json': CONFIG, 'preprocessor_config.json': preprocessing }, encoder);
}
