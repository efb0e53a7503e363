import { type PictureSize, sizeName } from '../data/aspect-buckets.js';
import { prepareImage, type ReferenceImage } from '../data/reference-images.js';
import type { Engine, Program } from '../engine/engine.js';
import { Graph, type Value } from '../onnx/graph.js';
import type { Random } from '../tensor/random.js';
import { float32, type Tensor } from '../tensor/tensor.js';

/** What rewards have to know of a photograph, by name: from pixels [1, 3, H, W] in [-1, 1] to [1, D]. */
export type References = ReadonlyMap<string, (pixels: Value) => Value>;

export interface ReferenceOptions {
  readonly randomCrop: boolean;
  readonly randomFlip: boolean;
}

/** The name under which a step is fed what a reward knows of its rows' photographs. */
export const referenceName = (reward: string): string => `reference.${reward}`;

/**
 * What rewards have to know of each photograph, worked out once and kept; with random crops, where every use is another picture, at each use. A use sees the same
 * crop and flip as the latents of that use.
 */
export class ReferenceCache {
  readonly #programs = new Map<string, Promise<Program>>();
  readonly #known = new Map<string, Promise<Record<string, Tensor>>>();

  constructor(
    private readonly engine: Engine,
    private readonly images: readonly ReferenceImage[],
    private readonly references: References,
    private readonly options: ReferenceOptions,
  ) {}

  /** What is known of picture `index`, by the names that a step is fed, [1, D] each. The same random stream gives the same crop and flip. */
  of(index: number, size: PictureSize, random: Random): Promise<Record<string, Tensor>> {
    if (this.references.size === 0) return Promise.resolve({});
    const { randomCrop, randomFlip } = this.options;
    const flip = randomFlip && random.derive('flip').uniform() < 0.5;
    if (randomCrop) return this.#compute(index, size, flip, random.derive('crop'));
    const key = `${index}:${sizeName(size)}:${flip}`;
    const known = this.#known.get(key) ?? this.#compute(index, size, flip, 'center');
    this.#known.set(key, known);
    return known;
  }

  async release(): Promise<void> {
    for (const program of this.#programs.values()) await (await program).release();
    this.#programs.clear();
  }

  async #compute(
    index: number,
    size: PictureSize,
    flip: boolean,
    crop: 'center' | Random,
  ): Promise<Record<string, Tensor>> {
    const { pixels } = await prepareImage(this.images[index]!, { size, crop, flip });
    const shape = [1, ...pixels.shape];
    const program = this.#programs.get(shape.join()) ?? this.#compile(shape);
    this.#programs.set(shape.join(), program);
    return (await program).run({ pixels: float32(shape, pixels.data) });
  }

  #compile(shape: readonly number[]): Promise<Program> {
    const graph = new Graph('references');
    const pixels = graph.input('pixels', 'float32', shape);
    for (const [name, build] of this.references) graph.output(referenceName(name), build(pixels));
    return this.engine.compile(graph);
  }
}
