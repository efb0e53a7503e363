import { readdir, rm } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { autoencodingLoss } from '../algorithms/autoencoding.js';
import { denoisingLoss, minSnrWeights } from '../algorithms/denoising.js';
import { renderExamples } from '../data/world/render.js';
import { coefficients, noisySample } from '../diffusion/look-forward.js';
import { readScheduler } from '../diffusion/scheduler-config.js';
import type { Engine, Program, State } from '../engine/engine.js';
import { CancelledError, DivergedError, OutputError } from '../errors.js';
import { outputError, removeStaleTemporaries, writeFileAtomic } from '../formats/atomic-file.js';
import { type Config, type Json, parseConfig } from '../formats/json-config.js';
import { writeJsonFile } from '../formats/json-config-file.js';
import { makeFolder } from '../formats/make-folder.js';
import { writeSafetensorsFile } from '../formats/safetensors-file.js';
import { downscale, encodeLatents, readAutoencoderKLConfig } from '../models/autoencoder-kl.js';
import { clipText, readClipTextConfig } from '../models/clip-text.js';
import { readUNet2DConditionConfig, unet2DCondition } from '../models/unet-2d-condition.js';
import { initialParameters, residualStart } from '../nn/initialize.js';
import { InputParameters, Scope } from '../nn/parameters.js';
import { mul } from '../onnx/elementwise.js';
import { Graph } from '../onnx/graph.js';
import type { ClipTokenizer } from '../pretrained/tokenizer.js';
import { Random } from '../tensor/random.js';
import { elementCount, float32, fromFloat32, int64, type Tensor } from '../tensor/tensor.js';
import { BASE_PROMPT_LENGTH, BASE_RESOLUTION, baseModelConfigs } from './base-model.js';
import type { TrainingEvent } from './events.js';
import {
  type FullTrainingSettings,
  holdsState,
  nonFiniteTensor,
  requireSamePlan,
  type TrainingPlan,
  trainFully,
} from './full-training.js';
import { lockName, RunLock } from './run-lock.js';
import { writeWorldTokenizer } from './world-tokenizer.js';

export interface PretrainOptions {
  /** Becomes a diffusers model folder; the training state is kept in its `training/` until it is deleted by hand. */
  readonly output: string;
  readonly engine: Engine;
  readonly seed: number;
  /** How many pictures of the synthetic world to draw. */
  readonly examples: number;
  /** Steps of the autoencoder on crops of the pictures, which come first and cost a quarter of one on whole pictures. */
  readonly vaeCropSteps: number;
  /** Its steps on whole pictures. */
  readonly vaeSteps: number;
  /** Pictures, or crops of them, in each of its steps. */
  readonly vaeBatchSize: number;
  readonly steps: number;
  readonly batchSize: number;
  readonly learningRate: number;
  readonly checkpointingSteps: number;
  readonly onEvent?: (event: TrainingEvent) => void;
  readonly signal?: AbortSignal;
}

/** Share of captions that are left out, so that the model also learns the picture without a prompt, which guidance needs. */
const CAPTION_DROPOUT = 0.1;
const MIN_SNR_GAMMA = 5;
const KL_WEIGHT = 1e-4;
const CROP_RESOLUTION = BASE_RESOLUTION / 2;

interface Dataset {
  readonly captions: readonly string[];
  /** [3, R, R] bytes each, channels first. */
  readonly pixels: Uint8Array;
}

/**
 * Trains the small base model from nothing on the synthetic world: first the autoencoder, then text encoder and denoiser together, and writes it as a diffusers folder
 * with half-precision weights. Everything follows from the seed; stopped at any moment, the same call goes on where the last saved state left off. The model's own
 * files are written at the very end, so until then the folder is no model, or still the one it was.
 *
 * @throws CancelledError when the signal is raised. RunError when another process is writing there, or the saved state is of other settings. DivergedError when the
 * training leaves the finite numbers. OutputError when the folder cannot be written.
 */
export async function pretrain(options: PretrainOptions): Promise<void> {
  const lock = await RunLock.acquire(options.output);
  try {
    await pretrainLocked(options);
  } finally {
    await lock.release();
  }
}

async function pretrainLocked(options: PretrainOptions): Promise<void> {
  const { output, engine, seed, onEvent, signal } = options;
  const work = join(output, 'training');
  await takeFolder(output, work);
  const tokenizer = await writeWorldTokenizer(join(work, 'tokenizer'), BASE_PROMPT_LENGTH);
  await removeStaleTemporaries(work);
  const plans = planTraining(options, tokenizer.vocabularySize);
  for (const plan of Object.values(plans)) await requireSamePlan(work, plan);
  const data = await drawWorld(options);
  const settings: FullTrainingSettings = {
    engine,
    folder: work,
    random: new Random(seed, 'initial'),
    checkpointingSteps: options.checkpointingSteps,
    ...(onEvent ? { onEvent } : {}),
    ...(signal ? { signal } : {}),
  };
  const rough = await trainAutoencoder(options, settings, plans.crops, data, CROP_RESOLUTION);
  const vae = await trainAutoencoder(options, settings, plans.autoencoder, data, BASE_RESOLUTION, rough);
  const { latents, scalingFactor } = await encodeAll(options, vae, data);
  const configs = baseModelConfigs(tokenizer.vocabularySize, scalingFactor);
  const model = { tokenizer, configs, latents };
  const denoiser = await trainDenoiser(options, settings, plans.denoiser, data, model);
  await writeModel(output, configs, new Map([...vae, ...denoiser]));
}

const MARK = 'pretraining.json';
const MARK_TEXT = `${JSON.stringify({ format: 'portrayal-pretraining/1' })}\n`;

/**
 * Makes the folder this training's own, or sees that it is: one that holds the training state may hold the model that came of it too.
 * @throws OutputError when it holds anything else, which could be overwritten.
 */
async function takeFolder(output: string, work: string): Promise<void> {
  const names = await readdir(output).catch((error: unknown) => {
    throw outputError(output, error);
  });
  if (names.includes(basename(work)) && (await isTrainingFolder(work))) return;
  const foreign = names.filter((name) => name !== lockName && !name.startsWith('.'));
  if (foreign.length > 0) {
    const what = foreign.includes(indexFile) ? 'a model' : foreign.sort().slice(0, 5).join(', ');
    throw new OutputError(
      `${output}: the folder holds ${what}, which no pretraining made that could go on here (there is no training/${MARK}). Choose a new or empty folder, so that nothing of yours is overwritten.`,
    );
  }
  await makeFolder(work);
  await writeFileAtomic(join(work, MARK), MARK_TEXT);
}

/** Whether the folder is marked as a training's, or holds a state that one saved. */
async function isTrainingFolder(work: string): Promise<boolean> {
  const names = await readdir(work).catch((): string[] => []);
  if (names.includes(MARK)) return true;
  for (const name of names.filter((n) => n.endsWith('.safetensors'))) {
    if (await holdsState(join(work, name))) return true;
  }
  return false;
}

function planTraining(
  options: PretrainOptions,
  vocabularySize: number,
): Readonly<Record<'crops' | 'autoencoder' | 'denoiser', TrainingPlan>> {
  const { seed, examples, vaeCropSteps, vaeSteps, vaeBatchSize, steps, batchSize, learningRate } = options;
  const crops: TrainingPlan = {
    name: 'autoencoder-crops',
    steps: vaeCropSteps,
    learningRate: 2e-3,
    warmupSteps: 100,
    maxEmaDecay: 0.998,
    data: { seed, examples, resolution: CROP_RESOLUTION, batchSize: vaeBatchSize },
  };
  const autoencoder: TrainingPlan = {
    ...crops,
    name: 'autoencoder',
    steps: vaeSteps,
    learningRate: 1e-3,
    // It goes on from what the crops taught.
    data: { ...crops.data, resolution: BASE_RESOLUTION, crops: { steps: vaeCropSteps } },
  };
  const denoiser: TrainingPlan = {
    name: 'denoiser',
    steps,
    learningRate,
    warmupSteps: 100,
    maxEmaDecay: 0.9985,
    data: {
      ...autoencoder.data,
      batchSize,
      promptLength: BASE_PROMPT_LENGTH,
      vocabularySize,
      // Its latents are the autoencoder's.
      autoencoder: { batchSize: vaeBatchSize, steps: vaeSteps, learningRate: autoencoder.learningRate },
    },
  };
  return { crops, autoencoder, denoiser };
}

const weightFiles = {
  unet: 'diffusion_pytorch_model.safetensors',
  vae: 'diffusion_pytorch_model.safetensors',
  text_encoder: 'model.safetensors',
} as const;

/** The entry by which transformers recognises the file. */
const pytorchFormat = new Map([['format', 'pt']]);

/** @throws DivergedError when a value is too large for half precision. */
function halfWeights(
  parameters: ReadonlyMap<string, Tensor<'float32'>>,
  prefix: string,
): Map<string, Tensor> {
  const weights = new Map<string, Tensor>(
    [...parameters]
      .filter(([name]) => name.startsWith(prefix))
      .map(([name, t]) => [name.slice(prefix.length), fromFloat32(t, 'float16')]),
  );
  const bad = nonFiniteTensor(weights);
  if (bad !== undefined) {
    throw new DivergedError(
      `${prefix}${bad} has a value beyond half precision. Start in another output folder with a lower learning rate or another seed.`,
    );
  }
  return weights;
}

const indexFile = 'model_index.json';

/** Writes the finished model. Without its index a folder is no model, so that goes first and comes back last: at no moment do parts of two models pass for one. */
async function writeModel(
  output: string,
  configs: Readonly<Record<string, Json>>,
  parameters: ReadonlyMap<string, Tensor<'float32'>>,
): Promise<void> {
  const weights = Object.entries(weightFiles).map(
    ([component, file]) => [join(output, component, file), halfWeights(parameters, `${component}.`)] as const,
  );
  await rm(join(output, indexFile), { force: true }).catch((error: unknown) => {
    throw outputError(join(output, indexFile), error);
  });
  await writeWorldTokenizer(join(output, 'tokenizer'), BASE_PROMPT_LENGTH);
  const { [indexFile]: index, ...others } = configs;
  for (const [name, config] of Object.entries(others)) {
    await makeFolder(dirname(join(output, name)));
    await writeJsonFile(join(output, name), config!);
  }
  for (const [path, tensors] of weights) await writeSafetensorsFile(path, tensors, pytorchFormat);
  await writeJsonFile(join(output, indexFile), index!);
}

function configOf(configs: Readonly<Record<string, Json>>, name: string): Config {
  return parseConfig(JSON.stringify(configs[name]), name);
}

/** @throws CancelledError when the signal is raised. */
function throwIfStopped(signal: AbortSignal | undefined, doing: string): void {
  if (!signal?.aborted) return;
  throw new CancelledError(
    `Stopped while ${doing}; what was trained before is saved, and the same command goes on from there.`,
  );
}

async function drawWorld({ seed, examples, onEvent, signal }: PretrainOptions): Promise<Dataset> {
  const plane = BASE_RESOLUTION ** 2;
  const pixels = new Uint8Array(examples * 3 * plane);
  const captions: string[] = [];
  const chunk = 500;
  for (let start = 0; start < examples; start += chunk) {
    throwIfStopped(signal, 'drawing the world');
    const drawn = await renderExamples(seed, start, Math.min(chunk, examples - start), BASE_RESOLUTION);
    for (const { example, pixels: rgb } of drawn) {
      const offset = captions.length * 3 * plane;
      for (let i = 0; i < plane; i++) {
        for (let c = 0; c < 3; c++) pixels[offset + c * plane + i] = rgb[3 * i + c]!;
      }
      captions.push(example.caption);
    }
    onEvent?.({ kind: 'stage', name: 'drawing the world', done: captions.length, total: examples });
  }
  return { captions, pixels };
}

/** A square part of a picture of the dataset. */
interface Crop {
  readonly index: number;
  readonly top: number;
  readonly left: number;
}

/** These squares of side R as [B, 3, R, R] in [-1, 1]. */
function pixelBatch(data: Dataset, crops: readonly Crop[], side: number): Tensor<'float32'> {
  const batch = new Float32Array(crops.length * 3 * side * side);
  let to = 0;
  for (const { index, top, left } of crops) {
    for (let c = 0; c < 3; c++) {
      for (let y = 0; y < side; y++) {
        const row = ((index * 3 + c) * BASE_RESOLUTION + top + y) * BASE_RESOLUTION + left;
        for (let x = 0; x < side; x++) batch[to++] = data.pixels[row + x]! / 127.5 - 1;
      }
    }
  }
  return float32([crops.length, 3, side, side], batch);
}

/** The vocabulary and the scaling factor are no part of the autoencoder itself. */
function vaeConfig() {
  return readAutoencoderKLConfig(configOf(baseModelConfigs(2, 1), 'vae/config.json'));
}

async function trainAutoencoder(
  options: PretrainOptions,
  settings: FullTrainingSettings,
  plan: TrainingPlan,
  data: Dataset,
  resolution: number,
  start?: ReadonlyMap<string, Tensor>,
): Promise<Map<string, Tensor<'float32'>>> {
  const { seed, vaeBatchSize: b } = options;
  const config = vaeConfig();
  const side = resolution / downscale(config);
  const graph = new Graph('autoencoder');
  const parameters = new InputParameters(graph, 'vae.');
  const noiseShape = [b, config.latentChannels, side, side];
  const { loss, reconstruction, divergence } = autoencodingLoss(
    new Scope(parameters),
    config,
    graph.input('pixels', 'float32', [b, 3, resolution, resolution]),
    graph.input('noise', 'float32', noiseShape),
    KL_WEIGHT,
  );
  return trainFully(
    {
      ...plan,
      graph,
      loss,
      metrics: { reconstruction, divergence },
      parameters: [parameters],
      initial: start ?? initialParameters(parameters.specs.map(residualStart), settings.random),
      batch: (step) => {
        const random = new Random(seed, plan.name, step);
        const corner = () => random.int(BASE_RESOLUTION - resolution + 1);
        const crops = Array.from({ length: b }, () => ({
          index: random.int(data.captions.length),
          top: corner(),
          left: corner(),
        }));
        return { pixels: pixelBatch(data, crops, resolution), noise: random.normals(noiseShape) };
      },
    },
    settings,
  );
}

/** The posterior means of all pictures, and the factor that brings them to variance 1. */
async function encodeAll(
  { engine, onEvent, signal }: PretrainOptions,
  vae: ReadonlyMap<string, Tensor>,
  data: Dataset,
): Promise<{ latents: Tensor<'float32'>; scalingFactor: number }> {
  const b = Math.min(50, data.captions.length);
  const config = vaeConfig();
  const graph = new Graph('encoder');
  const pixels = graph.input('pixels', 'float32', [b, 3, BASE_RESOLUTION, BASE_RESOLUTION]);
  graph.output('latents', encodeLatents(new Scope(new InputParameters(graph, 'vae.')), config, pixels).mean);
  const count = data.captions.length;
  const side = BASE_RESOLUTION / downscale(config);
  const latents = new Float32Array(elementCount([count, config.latentChannels, side, side]));
  const size = latents.length / count;
  const held: (Program | State)[] = [];
  try {
    const program = await engine.compile(graph);
    held.push(program);
    const state = await engine.state(vae);
    held.push(state);
    for (let start = 0; start < count; start += b) {
      throwIfStopped(signal, 'encoding the world');
      const whole = Array.from({ length: b }, (_, i) => ({
        index: Math.min(start + i, count - 1),
        top: 0,
        left: 0,
      }));
      const { latents: batch } = await program.run(
        { pixels: pixelBatch(data, whole, BASE_RESOLUTION) },
        state,
      );
      const kept = (batch!.data as Float32Array).subarray(0, Math.min(b, count - start) * size);
      latents.set(kept, start * size);
      onEvent?.({
        kind: 'stage',
        name: 'encoding the world',
        done: Math.min(count, start + b),
        total: count,
      });
    }
  } finally {
    await Promise.allSettled(held.map((resource) => resource.release()));
  }
  let [total, squares] = [0, 0];
  for (const x of latents) {
    total += x;
    squares += x * x;
  }
  const mean = total / latents.length;
  const scalingFactor = Number((1 / Math.sqrt(squares / latents.length - mean * mean)).toPrecision(5));
  return { latents: float32([count, config.latentChannels, side, side], latents), scalingFactor };
}

/** What the denoiser is trained between. */
interface DenoiserSurroundings {
  readonly tokenizer: ClipTokenizer;
  readonly configs: Readonly<Record<string, Json>>;
  /** Not scaled: [N, C, h, w]. */
  readonly latents: Tensor<'float32'>;
}

async function trainDenoiser(
  options: PretrainOptions,
  settings: FullTrainingSettings,
  plan: TrainingPlan,
  data: Dataset,
  { tokenizer, configs, latents }: DenoiserSurroundings,
): Promise<Map<string, Tensor<'float32'>>> {
  const { seed, batchSize: b } = options;
  const { schedule } = readScheduler(configOf(configs, 'scheduler/scheduler_config.json'));
  const { scalingFactor } = readAutoencoderKLConfig(configOf(configs, 'vae/config.json'));
  const textConfig = readClipTextConfig(configOf(configs, 'text_encoder/config.json'));
  const unetConfig = readUNet2DConditionConfig(configOf(configs, 'unet/config.json'));
  const sampleShape = [b, ...latents.shape.slice(1)];

  const graph = new Graph('denoiser');
  const unetParameters = new InputParameters(graph, 'unet.');
  const textParameters = new InputParameters(graph, 'text_encoder.');
  const clean = mul(graph.input('latents', 'float32', sampleShape), scalingFactor);
  const noise = graph.input('noise', 'float32', sampleShape);
  const timestep = graph.input('timesteps', 'int64', [b]);
  const tokens = graph.input('tokens', 'int64', [b, BASE_PROMPT_LENGTH]);
  const condition = clipText(new Scope(textParameters), textConfig, tokens);
  const prediction = unet2DCondition(new Scope(unetParameters), unetConfig, {
    sample: noisySample(clean, noise, coefficients(graph, schedule, timestep)),
    timestep,
    encoderHiddenStates: condition,
  });
  const loss = denoisingLoss(prediction, noise, minSnrWeights(schedule, timestep, MIN_SNR_GAMMA));

  const ids = data.captions.map((caption) => tokenizer.encode(caption).ids);
  const noCaption = tokenizer.encode('').ids;
  const size = elementCount(sampleShape) / b;
  return trainFully(
    {
      ...plan,
      graph,
      loss,
      parameters: [unetParameters, textParameters],
      initial: initialParameters(
        [...unetParameters.specs.map(residualStart), ...textParameters.specs],
        settings.random,
      ),
      batch: (step) => {
        const random = new Random(seed, 'denoiser', step);
        const batch = new Float32Array(b * size);
        const captions: number[] = [];
        const timesteps: number[] = [];
        for (let i = 0; i < b; i++) {
          const index = random.int(data.captions.length);
          batch.set(latents.data.subarray(index * size, (index + 1) * size), i * size);
          captions.push(...(random.uniform() < CAPTION_DROPOUT ? noCaption : ids[index]!));
          // One timestep from each of B equal parts of the range: the batch covers it evenly.
          timesteps.push(Math.floor(((i + random.uniform()) * schedule.steps) / b));
        }
        return {
          latents: float32(sampleShape, batch),
          noise: random.normals(sampleShape),
          timesteps: int64([b], timesteps),
          tokens: int64([b, BASE_PROMPT_LENGTH], captions),
        };
      },
    },
    settings,
  );
}
