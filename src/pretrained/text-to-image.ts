import { withGuidance } from '../diffusion/guidance.js';
import type { SamplerChoice } from '../diffusion/scheduler-config.js';
import type { Engine, Program, State } from '../engine/engine.js';
import { LazyPrograms } from '../engine/lazy-programs.js';
import { CancelledError, ModelError } from '../errors.js';
import { wholePicture } from '../models/size-condition.js';
import { div } from '../onnx/elementwise.js';
import { Graph } from '../onnx/graph.js';
import { batchRows, concatRows } from '../tensor/rows.js';
import { elementCount, float32, full, type Tensor, zeros } from '../tensor/tensor.js';
import { TorchRandom } from '../tensor/torch-random.js';
import { pictureBytes } from './picture-bytes.js';
import type { TextEmbedding } from './pipeline-kind.js';
import type { StableDiffusion } from './stable-diffusion.js';
import type { Adaptation } from './trainable.js';

export interface TextToImageOptions {
  /** Side of the pictures in pixels; the model's own by default. */
  readonly resolution?: number;
  /** Pictures drawn at once. Default: `drawnAtOnce`. */
  readonly batchSize?: number;
  /** What is read from the state given to `draw`. */
  readonly adaptation?: Adaptation;
  /**
   * Whether no two of the programs are held at a time, which takes less memory: each call makes them anew, and `draw` goes with all of its pictures through one before the
   * next. Pictures stay the same. Calls must not overlap then. Default false.
   */
  readonly inTurn?: boolean;
}

export interface DrawingRequest {
  readonly prompt: string;
  /**
   * The same seed, prompt and settings give the same picture, whatever is drawn beside it: that of diffusers with `generator=torch.Generator("cpu").manual_seed(seed)` for
   * this picture.
   */
  readonly seed: number;
}

/** The sampler is the model's own unless another is chosen. */
export interface DrawOptions extends SamplerChoice {
  /** Sampler steps. Default 30. */
  readonly steps?: number;
  /** Classifier-free guidance; 1 is none. Default 7.5. */
  readonly guidanceScale?: number;
  /** What guidance leads away from. Default: the empty prompt, or zeros in its place where the model was trained so. */
  readonly negativePrompt?: string;
  /** Holds what the drawer's adaptation and the model's new words take from it. */
  readonly state?: State;
  /** Called as work is done, with sampler steps done and in all. */
  readonly onProgress?: (done: number, total: number) => void;
  readonly signal?: AbortSignal;
}

/** What the text encoders say of one prompt, [1, ...] each. */
export type PromptEmbedding = TextEmbedding<Tensor<'float32'>>;

/** A picture as bytes, [R, R, 3] row by row. */
export interface DrawnImage {
  readonly width: number;
  readonly height: number;
  readonly pixels: Uint8Array;
}

/** A state that drawing goes through: what the denoiser is asked about. */
export interface VisitedState {
  readonly prompt: string;
  /** x_t, [C, h, w]. */
  readonly sample: Tensor<'float32'>;
  /** t; some samplers stop between timesteps. */
  readonly timestep: number;
}

/** What drawing runs. */
export interface DrawingGraphs {
  /** One prompt. */
  readonly text: () => Graph;
  /** So many rows: each picture has one, and with guidance another. */
  readonly denoiser: (rows: number) => Graph;
  /** So many pictures. */
  readonly decoder: (pictures: number) => Graph;
}

/** The graphs for one resolution; nothing is built before it is asked for. */
export function drawingGraphs(
  model: StableDiffusion,
  options: Pick<TextToImageOptions, 'resolution' | 'adaptation'> = {},
): DrawingGraphs {
  const { resolution = model.resolution, adaptation = {} } = options;
  const shape = model.latentShape(resolution);

  const text = (): Graph => {
    const graph = new Graph('text_encoder');
    const { result: embedding } = model.textEncoder(graph, 1, adaptation);
    for (const [name, value] of Object.entries(embedding)) graph.output(name, value);
    return graph;
  };

  const denoiser = (rows: number): Graph => {
    const denoise = new Graph('denoiser');
    const inputs = {
      sample: denoise.input('sample', 'float32', [rows, ...shape]),
      timestep: denoise.input('timestep', 'float32', [rows]), // some samplers stop between timesteps
      condition: model.condition(denoise, rows),
    };
    denoise.output('prediction', model.denoiser(denoise, inputs, { adaptation }).result);
    return denoise;
  };

  const decoder = (pictures: number): Graph => {
    const graph = new Graph('decoder');
    const latents = graph.input('latents', 'float32', [pictures, ...shape]);
    graph.output('pixels', model.decoder(graph, div(latents, model.vaeConfig.scalingFactor)));
    return graph;
  };
  return { text, denoiser, decoder };
}

/** Up to this many pixels drawing several pictures at once is faster; beyond it takes only more memory. */
const PIXELS_AT_ONCE = 4 * 256 ** 2;
const MOST_AT_ONCE = 4;

/** How many pictures of this side in pixels are drawn at once. It follows from nothing else, since the last bits of a picture depend on it. */
export function drawnAtOnce(resolution: number): number {
  return Math.max(1, Math.min(MOST_AT_ONCE, Math.floor(PIXELS_AT_ONCE / resolution ** 2)));
}

/** Batches of a call where programs are made anew for each: they take a fiftieth of the time that drawing four pictures of 512 pixels takes, and a stop loses few. */
const BATCHES_IN_TURN = 4;

/** Draws pictures from prompts with a sampler and classifier-free guidance. */
export class TextToImage {
  private constructor(
    private readonly model: StableDiffusion,
    private readonly resolution: number,
    private readonly shape: readonly [number, number, number],
    /** Pictures drawn at once. */
    readonly batch: number,
    private readonly inTurn: boolean,
    /** Of one prompt. */
    private readonly texts: LazyPrograms<number>,
    /** By rows: with guidance each picture has two, without it one. */
    private readonly denoisers: LazyPrograms<number>,
    /** Of so many pictures; made when one is finished, as roll-outs finish none. */
    private readonly decoders: LazyPrograms<number>,
  ) {}

  /**
   * For one resolution and batch. The text encoder is compiled at once, as every call begins with it; the others when they are first needed. With variables, every `draw` needs a
   * `state` that holds them.
   */
  static async create(
    model: StableDiffusion,
    engine: Engine,
    options: TextToImageOptions = {},
  ): Promise<TextToImage> {
    const { resolution = model.resolution, batchSize = drawnAtOnce(resolution), inTurn = false } = options;
    const shape = model.latentShape(resolution);
    const { text, denoiser, decoder } = drawingGraphs(model, options);
    const texts = new LazyPrograms<number>(engine, text);
    await texts.of(1);
    return new TextToImage(
      model,
      resolution,
      shape,
      batchSize,
      inTurn,
      texts,
      new LazyPrograms(engine, denoiser),
      new LazyPrograms(engine, decoder),
    );
  }

  /** How many pictures to ask of one call of `draw` where each is wanted as soon as may be: those that are drawn at once, or more where every call makes programs anew. */
  get share(): number {
    return this.inTurn ? BATCHES_IN_TURN * this.batch : this.batch;
  }

  /**
   * One picture for each request, in their order.
   *
   * @throws ModelError or UsageError when the sampler cannot be had for this model, or cannot take that many steps.
   * @throws CancelledError when the signal is raised, between two sampler steps.
   */
  async draw(requests: readonly DrawingRequest[], options: DrawOptions = {}): Promise<DrawnImage[]> {
    const { steps = 30, onProgress } = options;
    const batches = this.#batches(requests);
    const total = batches.length * steps;
    const embeddings = await this.#embedBatches(batches, options);
    const latents: Tensor<'float32'>[] = [];
    for (const [b, batch] of batches.entries()) {
      const onStep = (done: number) => onProgress?.(b * steps + done, total);
      latents.push(await this.#sample(batch, embeddings[b]!, options, { onStep }));
    }
    const images: DrawnImage[] = [];
    for (const [b, batch] of batches.entries()) images.push(...(await this.#decode(batch, latents[b]!)));
    return images;
  }

  /**
   * The states through which each of these pictures would be drawn, from noise to the last question to the denoiser, in its order: those of `draw` with the same
   * options. Nothing is decoded.
   *
   * @throws CancelledError when the signal is raised, between two sampler steps.
   */
  async visit(requests: readonly DrawingRequest[], options: DrawOptions = {}): Promise<VisitedState[][]> {
    const visited: VisitedState[][] = requests.map(() => []);
    const batches = this.#batches(requests);
    const embeddings = await this.#embedBatches(batches, options);
    for (const [b, batch] of batches.entries()) {
      await this.#sample(batch, embeddings[b]!, options, {
        onState: (samples, timestep) => {
          batch.forEach(({ prompt }, i) => {
            visited[b * this.batch + i]!.push({ prompt, sample: rowOf(samples, i), timestep });
          });
        },
      });
    }
    return visited;
  }

  /** What the denoiser says of each of these states, without guidance, [C, h, w] each. */
  async predict(states: readonly VisitedState[], state?: State): Promise<Tensor<'float32'>[]> {
    const rows = 2 * this.batch; // the program that guided drawing has
    const embed = this.#embedder(state);
    const size = this.model.sizeFeeds(wholePicture(this.resolution, this.resolution));
    const feeds: Record<string, Tensor>[] = [];
    for (const { prompt, sample, timestep } of states) {
      feeds.push({
        sample: float32([1, ...sample.shape], sample.data),
        timestep: full([1], timestep),
        ...(await embed(prompt)),
        ...size,
      });
    }
    const denoiser = await this.#turn(this.denoisers, rows);
    const predictions: Tensor<'float32'>[] = [];
    for (let start = 0; start < states.length; start += rows) {
      const part = feeds.slice(start, start + rows);
      const filled = Array.from({ length: rows }, (_, i) => part[i] ?? part[0]!);
      const { prediction } = await denoiser.run(batchRows(filled), state);
      predictions.push(...part.map((_, i) => rowOf(prediction as Tensor<'float32'>, i)));
    }
    return predictions;
  }

  /** What the text encoders say of a prompt, [1, ...] each. */
  async embed(prompt: string, state?: State): Promise<PromptEmbedding> {
    const { tokens } = this.model.tokenize(prompt);
    const encoder = await this.#turn(this.texts, 1);
    return (await encoder.run(tokens, state)) as unknown as PromptEmbedding;
  }

  /** What guidance leads away from, [1, ...] each: the negative prompt, or what stands for none. */
  async embedUnwanted(negativePrompt: string | undefined, state?: State): Promise<PromptEmbedding> {
    const embedding = await this.embed(negativePrompt ?? '', state);
    if (negativePrompt !== undefined || !this.model.zerosForEmptyPrompt) return embedding;
    const { condition, pooled } = embedding;
    return { condition: zeros(condition.shape), ...(pooled && { pooled: zeros(pooled.shape) }) };
  }

  /** Frees the programs' memory. */
  async release(): Promise<void> {
    for (const held of [this.texts, this.denoisers, this.decoders]) await held.release();
  }

  /** `embed`, once for each prompt. */
  #embedder(state: State | undefined): (prompt: string) => Promise<PromptEmbedding> {
    const known = new Map<string, Promise<PromptEmbedding>>();
    return (prompt) => {
      const embedding = known.get(prompt) ?? this.embed(prompt, state);
      known.set(prompt, embedding);
      return embedding;
    };
  }

  #batches(requests: readonly DrawingRequest[]): readonly (readonly DrawingRequest[])[] {
    return Array.from({ length: Math.ceil(requests.length / this.batch) }, (_, b) =>
      requests.slice(b * this.batch, (b + 1) * this.batch),
    );
  }

  /** A program; where they take turns, when all others are gone. */
  async #turn(programs: LazyPrograms<number>, size: number): Promise<Program> {
    if (this.inTurn) {
      for (const held of [this.texts, this.denoisers, this.decoders])
        await held.release(held === programs ? size : undefined);
    }
    return programs.of(size);
  }

  /** A last batch that is not full repeats its first request; the programs have one shape. */
  #filled(requests: readonly DrawingRequest[]): readonly DrawingRequest[] {
    return Array.from({ length: this.batch }, (_, i) => requests[i] ?? requests[0]!);
  }

  async #embedBatches(
    batches: readonly (readonly DrawingRequest[])[],
    { guidanceScale = GUIDANCE_SCALE, negativePrompt, state }: DrawOptions,
  ): Promise<readonly BatchEmbeddings[]> {
    const embed = this.#embedder(state);
    const unwanted = guidanceScale === 1 ? undefined : await this.embedUnwanted(negativePrompt, state);
    const embeddings: BatchEmbeddings[] = [];
    for (const batch of batches) {
      const wanted: PromptEmbedding[] = [];
      for (const { prompt } of this.#filled(batch)) wanted.push(await embed(prompt));
      embeddings.push({ wanted, ...(unwanted && { unwanted }) });
    }
    return embeddings;
  }

  async #decode(
    requests: readonly DrawingRequest[],
    latents: Tensor<'float32'>,
  ): Promise<readonly DrawnImage[]> {
    const decoder = await this.#turn(this.decoders, this.batch);
    const { pixels } = await decoder.run({ latents });
    this.#requireNumbers(requests, pixels as Tensor<'float32'>);
    return requests.map((_, i) => pictureBytes(pixels as Tensor<'float32'>, i));
  }

  #requireNumbers(requests: readonly DrawingRequest[], { data }: Tensor<'float32'>): void {
    if (data.every(Number.isFinite)) return;
    const cause =
      this.model.computeType === 'float16'
        ? 'What it computes may overflow half precision, whose largest number is 65504: use --mixed-precision no. Otherwise its weights'
        : 'Its weights';
    throw new ModelError(
      `The model drew values that are not numbers for ${JSON.stringify(requests.map((r) => r.prompt))}. ${cause}, or the LoRA, are damaged or diverged.`,
    );
  }

  /**
   * The latents of a batch of pictures. `onState` is told every state [batch, C, h, w] that the denoiser is asked about.
   *
   * @throws ModelError when they are not numbers.
   */
  async #sample(
    requests: readonly DrawingRequest[],
    { wanted, unwanted }: BatchEmbeddings,
    options: DrawOptions,
    { onStep, onState }: Watching,
  ): Promise<Tensor<'float32'>> {
    const { steps = 30, guidanceScale = GUIDANCE_SCALE, state, signal } = options;
    const sampler = this.model.scheduler.sampler(options);
    const { resolution } = this;
    const rows = unwanted ? 2 * this.batch : this.batch;
    const denoiser = await this.#turn(this.denoisers, rows);
    const size = this.model.sizeFeeds(wholePicture(resolution, resolution));
    const condition = batchRows(
      [...(unwanted ? wanted.map(() => unwanted) : []), ...wanted].map((embedding) => ({
        ...embedding,
        ...size,
      })),
    );
    const randoms = this.#filled(requests).map(({ seed }) => new TorchRandom(seed));
    const drawNoise = () => concatRows(randoms.map((random) => random.normals([1, ...this.shape])));
    const denoise = async (sample: Tensor<'float32'>, t: number) => {
      if (signal?.aborted) throw new CancelledError('Stopped while drawing; the same command starts again.');
      const timestep = full([rows], t);
      const { prediction } = await denoiser.run({ sample, timestep, ...condition }, state);
      return prediction as Tensor<'float32'>;
    };
    const act = unwanted ? withGuidance(denoise, guidanceScale) : denoise;
    const latents = await sampler({
      steps,
      denoise: (sample, t) => {
        onState?.(sample, t);
        return act(sample, t);
      },
      noise: drawNoise(),
      drawNoise,
      onStep,
    });
    this.#requireNumbers(requests, latents);
    return latents;
  }
}

const GUIDANCE_SCALE = 7.5;

/** What the text encoders say of the prompts of a batch, and with guidance of what it leads away from. */
interface BatchEmbeddings {
  readonly wanted: readonly PromptEmbedding[];
  readonly unwanted?: PromptEmbedding;
}

/** Who is told of a sampler's course. */
interface Watching {
  readonly onStep?: (done: number) => void;
  readonly onState?: (samples: Tensor<'float32'>, timestep: number) => void;
}

/** Row i of [B, ...], as [...]. */
function rowOf({ shape: [, ...shape], data }: Tensor<'float32'>, i: number): Tensor<'float32'> {
  const size = elementCount(shape);
  return float32(shape, data.slice(i * size, (i + 1) * size));
}
