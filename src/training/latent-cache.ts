import type { PictureSize } from '../data/aspect-buckets.js';
import { centerCropSize, prepareImage, type ReferenceImage } from '../data/reference-images.js';
import type { Engine } from '../engine/engine.js';
import { LazyPrograms } from '../engine/lazy-programs.js';
import type { SizeCondition } from '../models/size-condition.js';
import { Graph } from '../onnx/graph.js';
import type { StableDiffusion } from '../pretrained/stable-diffusion.js';
import type { Random } from '../tensor/random.js';
import { float32, type Tensor } from '../tensor/tensor.js';
import type { LatentStore, Moments } from './latent-store.js';
import { type PictureUse, type PictureUseOptions, pictureUse, viewName } from './picture-use.js';

/** What training takes of one use of a picture. */
export interface PictureLatents extends Moments {
  readonly size: SizeCondition;
}

/** The autoencoder's encoder, compiled for one picture of each size that it meets, when it first meets it. */
export class LatentEncoder {
  readonly #programs: LazyPrograms<readonly number[]>;

  constructor(model: StableDiffusion, engine: Engine) {
    this.#programs = new LazyPrograms(engine, (shape) => encoderGraph(model, shape));
  }

  /** @param pixels [3, H, W] in [-1, 1] */
  async encode(pixels: Tensor<'float32'>): Promise<Moments> {
    const shape = [1, ...pixels.shape];
    const program = await this.#programs.of(shape);
    const { mean, logvar } = await program.run({ pixels: float32(shape, pixels.data) });
    return { mean: data(mean!), logvar: data(logvar!) };
  }

  release(): Promise<void> {
    return this.#programs.release();
  }
}

/** Pictures [1, 3, H, W] to the posterior over latents. */
export function encoderGraph(model: StableDiffusion, shape: readonly number[]): Graph {
  const graph = new Graph('encoder');
  const { mean, logVariance } = model.encoder(graph, graph.input('pixels', 'float32', shape));
  graph.output('mean', mean);
  graph.output('logvar', logVariance);
  return graph;
}

export interface LatentOptions extends PictureUseOptions {
  /** Keeps latents from one start of a run to the next. */
  readonly store?: LatentStore;
}

/**
 * The latents of a set of pictures. They are encoded once and kept; with random crops, where every use is another picture, they are encoded at each use.
 */
export class LatentCache {
  readonly #known = new Map<string, Promise<PictureLatents>>();

  constructor(
    private readonly encoder: LatentEncoder,
    private readonly images: readonly ReferenceImage[],
    private readonly options: LatentOptions,
  ) {}

  get count(): number {
    return this.images.length;
  }

  /** The `viewName` of a use. */
  viewOf(index: number, size: PictureSize, random: Random): string | undefined {
    return viewName(index, size, pictureUse(this.options, random));
  }

  /** The latents of picture `index`, brought to this size, as this use of it sees it. The same random stream gives the same crop and flip. */
  moments(index: number, size: PictureSize, random: Random): Promise<PictureLatents> {
    const use = pictureUse(this.options, random);
    const view = viewName(index, size, use);
    if (view === undefined) return this.#encode(index, size, use);
    let known = this.#known.get(view);
    if (!known) {
      known = this.#center(index, size, use.flip);
      this.#known.set(view, known);
    }
    return known;
  }

  /** Frees the encoder's memory, until something is asked for that is not known yet. */
  release(): Promise<void> {
    return this.encoder.release();
  }

  async #center(index: number, size: PictureSize, flip: boolean): Promise<PictureLatents> {
    const { store } = this.options;
    const image = this.images[index]!;
    const encode = () => this.#encode(index, size, { flip, crop: 'center' });
    if (!store) return encode();
    return { ...(await store.get({ image, size, flip }, encode)), size: centerCropSize(image, size, flip) };
  }

  async #encode(index: number, target: PictureSize, use: PictureUse): Promise<PictureLatents> {
    const { pixels, size } = await prepareImage(this.images[index]!, { size: target, ...use });
    return { ...(await this.encoder.encode(pixels)), size };
  }
}

const data = (t: Tensor): Float32Array => (t as Tensor<'float32'>).data;
