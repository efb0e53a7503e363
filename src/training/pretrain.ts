import { mkdir } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { autoencodingLoss } from '../algorithms/autoencoding.js';
import { denoisingLoss, minSnrWeights } from '../algorithms/denoising.js';
import { renderExamples } from '../data/world/render.js';
import { worldVocabulary } from '../data/world/vocabulary.js';
import { coefficients, noisySample } from '../diffusion/look-forward.js';
import { readScheduler } from '../diffusion/scheduler-config.js';
import type { Engine } from '../engine/engine.js';
import { writeFileAtomic } from '../formats/atomic-file.js';
import { type Json, parseConfig } from '../formats/json-config.js';
import { writeSafetensorsFile } from '../formats/safetensors-file.js';
import { downscale, encodeLatents, readAutoencoderKLConfig } from '../models/autoencoder-kl.js';
import { clipText, readClipTextConfig } from '../models/clip-text.js';
import { readUNet2DConditionConfig, unet2DCondition } from '../models/unet-2d-condition.js';
import { InputParameters, Scope } from '../nn/parameters.js';
import { mul } from '../onnx/elementwise.js';
import { Graph } from '../onnx/graph.js';
import { openModelFolder } from '../pretrained/model-folder.js';
import { openTokenizer } from '../pretrained/tokenizer.js';
import { writeWordTokenizer } from '../pretrained/word-tokenizer.js';
import { encodeHalf } from '../tensor/half.js';
import { Random } from '../tensor/random.js';
import { elementCount, float32, int64, type Tensor, tensor } from '../tensor/tensor.js';
import { BASE_PROMPT_LENGTH, BASE_RESOLUTION, baseModelConfigs } from './base-model.js';
import type { TrainingEvent } from './events.js';
import { type FullTrainingSettings, trainFully } from './full-training.js';

export interface PretrainOptions {
  /** Becomes a diffusers model folder; the training state is kept in its `training/` until it is deleted by hand. */
  readonly output: string;
  readonly engine: Engine;
  readonly seed: number;
  /** How many pictures of the synthetic world to draw. */
  readonly examples: number;
  readonly vaeSteps: number;
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

interface Dataset {
  readonly captions: readonly string[];
  /** [3, R, R] bytes each, channels first. */
  readonly pixels: Uint8Array;
}

/**
 * Trains the small base model from nothing on the synthetic world: first the autoencoder, then text encoder and denoiser together, and writes it as a diffusers folder
 * with half-precision weights. Everything follows from the seed; stopped at any moment, the same call goes on where the last saved state left off.
 */
export async function pretrain(options: PretrainOptions): Promise<void> {
  const { output, engine, seed, onEvent } = options;
  const work = join(output, 'training');
  await mkdir(work, { recursive: true });
  await writeWordTokenizer(join(output, 'tokenizer'), worldVocabulary(), BASE_PROMPT_LENGTH);
  await writeConfigs(output, 1);
  const data = await drawWorld(options);
  const settings: FullTrainingSettings = {
    engine,
    folder: work,
    random: new Random(seed, 'initial'),
    checkpointingSteps: options.checkpointingSteps,
    ...(onEvent ? { onEvent } : {}),
    ...(options.signal ? { signal: options.signal } : {}),
  };
  const vae = await trainAutoencoder(options, settings, data);
  const { latents, scalingFactor } = await encodeAll(options, vae, data);
  await writeConfigs(output, scalingFactor);
  const denoiser = await trainDenoiser(options, settings, data, latents);
  for (const [component, file] of Object.entries(weightFiles)) {
    const source = component === 'vae' ? vae : denoiser;
    await writeSafetensorsFile(
      join(output, component, file),
      halfWeights(source, `${component}.`),
      pytorchFormat,
    );
  }
}

const weightFiles = {
  unet: 'diffusion_pytorch_model.fp16.safetensors',
  vae: 'diffusion_pytorch_model.fp16.safetensors',
  text_encoder: 'model.fp16.safetensors',
} as const;

/** The entry by which transformers recognises the file. */
const pytorchFormat = new Map([['format', 'pt']]);

function halfWeights(parameters: ReadonlyMap<string, Tensor>, prefix: string): Map<string, Tensor> {
  return new Map(
    [...parameters]
      .filter(([name]) => name.startsWith(prefix))
      .map(([name, t]) => [
        name.slice(prefix.length),
        tensor('float16', t.shape, encodeHalf(t.data as Float32Array)),
      ]),
  );
}

/** Writes all configuration files. */
async function writeConfigs(output: string, scalingFactor: number): Promise<void> {
  const write = async (configs: Record<string, Json>) => {
    for (const [name, config] of Object.entries(configs)) {
      await mkdir(dirname(join(output, name)), { recursive: true });
      await writeFileAtomic(join(output, name), `${JSON.stringify(config, null, 2)}\n`);
    }
  };
  await write(baseModelConfigs(2, scalingFactor));
  const { tokenizer } = (await openModelFolder(output)).components;
  const { vocabularySize } = await openTokenizer(tokenizer, BASE_PROMPT_LENGTH);
  await write(baseModelConfigs(vocabularySize, scalingFactor));
}

async function drawWorld({ seed, examples, onEvent }: PretrainOptions): Promise<Dataset> {
  const plane = BASE_RESOLUTION ** 2;
  const pixels = new Uint8Array(examples * 3 * plane);
  const captions: string[] = [];
  const chunk = 500;
  for (let start = 0; start < examples; start += chunk) {
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

/** These pictures as [B, 3, R, R] in [-1, 1]. */
function pixelBatch(data: Dataset, indices: readonly number[]): Tensor<'float32'> {
  const size = 3 * BASE_RESOLUTION ** 2;
  const batch = new Float32Array(indices.length * size);
  indices.forEach((index, b) => {
    const from = index * size;
    for (let i = 0; i < size; i++) batch[b * size + i] = data.pixels[from + i]! / 127.5 - 1;
  });
  return float32([indices.length, 3, BASE_RESOLUTION, BASE_RESOLUTION], batch);
}

function vaeConfig() {
  return readAutoencoderKLConfig(
    parseConfig(JSON.stringify(baseModelConfigs(2, 1)['vae/config.json']), 'vae/config.json'),
  );
}

async function trainAutoencoder(
  options: PretrainOptions,
  settings: FullTrainingSettings,
  data: Dataset,
): Promise<Map<string, Tensor>> {
  const { seed, vaeBatchSize: b } = options;
  const config = vaeConfig();
  const side = BASE_RESOLUTION / downscale(config);
  const graph = new Graph('autoencoder');
  const parameters = new InputParameters(graph, 'vae.');
  const noiseShape = [b, config.latentChannels, side, side];
  const { loss, reconstruction, divergence } = autoencodingLoss(
    new Scope(parameters),
    config,
    graph.input('pixels', 'float32', [b, 3, BASE_RESOLUTION, BASE_RESOLUTION]),
    graph.input('noise', 'float32', noiseShape),
    KL_WEIGHT,
  );
  return trainFully(
    {
      name: 'autoencoder',
      graph,
      loss,
      metrics: { reconstruction, divergence },
      parameters: [parameters],
      batch: (step) => {
        const random = new Random(seed, 'autoencoder', step);
        const indices = Array.from({ length: b }, () => random.int(data.captions.length));
        return { pixels: pixelBatch(data, indices), noise: random.normals(noiseShape) };
      },
      steps: options.vaeSteps,
      learningRate: 2e-3,
      warmupSteps: 100,
      maxEmaDecay: 0.998,
    },
    settings,
  );
}

/** The posterior means of all pictures, and the factor that brings them to variance 1. */
async function encodeAll(
  { engine, onEvent }: PretrainOptions,
  vae: ReadonlyMap<string, Tensor>,
  data: Dataset,
): Promise<{ latents: Tensor<'float32'>; scalingFactor: number }> {
  const b = 50;
  const config = vaeConfig();
  const graph = new Graph('encoder');
  const pixels = graph.input('pixels', 'float32', [b, 3, BASE_RESOLUTION, BASE_RESOLUTION]);
  graph.output('latents', encodeLatents(new Scope(new InputParameters(graph, 'vae.')), config, pixels).mean);
  const program = await engine.compile(graph);
  const state = await engine.state(vae);
  const count = data.captions.length;
  const side = BASE_RESOLUTION / downscale(config);
  const latents = new Float32Array(elementCount([count, config.latentChannels, side, side]));
  const size = latents.length / count;
  for (let start = 0; start < count; start += b) {
    const indices = Array.from({ length: b }, (_, i) => Math.min(start + i, count - 1));
    const { latents: batch } = await program.run({ pixels: pixelBatch(data, indices) }, state);
    const kept = (batch!.data as Float32Array).subarray(0, Math.min(b, count - start) * size);
    latents.set(kept, start * size);
    onEvent?.({ kind: 'stage', name: 'encoding the world', done: Math.min(count, start + b), total: count });
  }
  await program.release();
  await state.release();
  let [total, squares] = [0, 0];
  for (const x of latents) {
    total += x;
    squares += x * x;
  }
  const mean = total / latents.length;
  const scalingFactor = Number((1 / Math.sqrt(squares / latents.length - mean * mean)).toPrecision(5));
  return { latents: float32([count, config.latentChannels, side, side], latents), scalingFactor };
}

async function trainDenoiser(
  options: PretrainOptions,
  settings: FullTrainingSettings,
  data: Dataset,
  latents: Tensor<'float32'>,
): Promise<Map<string, Tensor>> {
  const { seed, batchSize: b, output } = options;
  const folder = await openModelFolder(output);
  const { unet, text_encoder: textEncoder, vae, scheduler, tokenizer } = folder.components;
  const { encode } = await openTokenizer(tokenizer, BASE_PROMPT_LENGTH);
  const { schedule } = readScheduler(scheduler.config);
  const { scalingFactor } = readAutoencoderKLConfig(vae.config);
  const sampleShape = [b, ...latents.shape.slice(1)];

  const graph = new Graph('denoiser');
  const unetParameters = new InputParameters(graph, 'unet.');
  const textParameters = new InputParameters(graph, 'text_encoder.');
  const clean = mul(graph.input('latents', 'float32', sampleShape), scalingFactor);
  const noise = graph.input('noise', 'float32', sampleShape);
  const timestep = graph.input('timesteps', 'int64', [b]);
  const tokens = graph.input('tokens', 'int64', [b, BASE_PROMPT_LENGTH]);
  const condition = clipText(new Scope(textParameters), readClipTextConfig(textEncoder.config), tokens);
  const prediction = unet2DCondition(new Scope(unetParameters), readUNet2DConditionConfig(unet.config), {
    sample: noisySample(clean, noise, coefficients(graph, schedule, timestep)),
    timestep,
    encoderHiddenStates: condition,
  });
  const loss = denoisingLoss(prediction, noise, minSnrWeights(schedule, timestep, MIN_SNR_GAMMA));

  const ids = data.captions.map((caption) => encode(caption).ids);
  const noCaption = encode('').ids;
  const size = elementCount(sampleShape) / b;
  return trainFully(
    {
      name: 'denoiser',
      graph,
      loss,
      parameters: [unetParameters, textParameters],
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
      steps: options.steps,
      learningRate: options.learningRate,
      warmupSteps: 100,
      maxEmaDecay: 0.9985,
    },
    settings,
  );
}
