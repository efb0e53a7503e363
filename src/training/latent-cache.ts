import { prepareImage, type ReferenceImage } from '../data/reference-images.js';
import type { Engine, Program } from '../engine/engine.js';
import type { SizeCondition } from '../models/size-condition.js';
import { Graph } from '../onnx/graph.js';
import type { StableDiffusion } from '../pretrained/stable-diffusion.js';
import type { Random } from '../tensor/random.js';
import { float32, type Tensor } from '../tensor/tensor.js';

/** A picture's posterior over latents, [C, h, w] each. */
export interface Moments {
  readonly mean: Float32Array;
  readonly logvar: Float32Array;
}

/** What training takes of one use of a picture. */
export interface PictureLatents extends Moments {
  readonly size: SizeCondition;
}

/** The autoencoder's encoder, compiled for one picture of one resolution. */
export class LatentEncoder {
  private constructor(
    /** Side of the pictures in pixels. */
    readonly resolution: number,
    private readonly program: Program,
  ) {}

  static async create(model: StableDiffusion, engine: Engine, resolution: number): Promise<LatentEncoder> {
    const graph = new Graph('encoder');
    const { mean, logVariance } = model.encoder(
      graph,
      graph.input('pixels', 'float32', [1, 3, resolution, resolution]),
    );
    graph.output('mean', mean);
    graph.output('logvar', logVariance);
    return new LatentEncoder(resolution, await engine.compile(graph));
  }

  /** @param pixels [3, R, R] in [-1, 1] */
  async encode(pixels: Tensor<'float32'>): Promise<Moments> {
    const { mean, logvar } = await this.program.run({ pixels: float32([1, ...pixels.shape], pixels.data) });
    return { mean: data(mean!), logvar: data(logvar!) };
  }

  async release(): Promise<void> {
    await this.program.release();
  }
}

export interface LatentOptions {
  /** Cut another square out of each picture every time it is used. */
  readonly randomCrop: boolean;
  /** Mirror a picture half of the times it is used. */
  readonly randomFlip: boolean;
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

  /** The latents of picture `index` as this use of it sees it. The same random stream gives the same crop and flip. */
  moments(index: number, random: Random): Promise<PictureLatents> {
    const { randomCrop, randomFlip } = this.options;
    const flip = randomFlip && random.derive('flip').uniform() < 0.5;
    if (randomCrop) return this.#encode(index, flip, random.derive('crop'));
    const key = `${index}:${flip}`;
    let known = this.#known.get(key);
    if (!known) {
      known = this.#encode(index, flip, 'center');
      this.#known.set(key, known);
    }
    return known;
  }

  async #encode(index: number, flip: boolean, crop: 'center' | Random): Promise<PictureLatents> {
    const { resolution } = this.encoder;
    const { pixels, size } = await prepareImage(this.images[index]!, { resolution, crop, flip });
    return { ...(await this.encoder.encode(pixels)), size };
  }
}

const data = (t: Tensor): Float32Array => (t as Tensor<'float32'>).data;
