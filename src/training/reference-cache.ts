import type { PictureSize } from '../data/aspect-buckets.js';
import { prepareImage, type ReferenceImage } from '../data/reference-images.js';
import type { Engine } from '../engine/engine.js';
import { LazyPrograms } from '../engine/lazy-programs.js';
import { Graph, type Value } from '../onnx/graph.js';
import type { WeightedReward } from '../rewards/reward.js';
import type { Random } from '../tensor/random.js';
import { float32, type Tensor } from '../tensor/tensor.js';
import { type PictureUse, type PictureUseOptions, pictureUse, viewName } from './picture-use.js';

/** What rewards have to know of a photograph, by name: from pixels [1, 3, H, W] in [-1, 1] to [1, D]. */
export type References = ReadonlyMap<string, (pixels: Value) => Value>;

/** What the rewards among these have to know of a photograph. */
export function referencesOf(rewards: readonly WeightedReward[]): References {
  return new Map(
    rewards.flatMap(({ reward }) =>
      reward.kind === 'graph' && reward.reference?.of === 'photograph'
        ? [[reward.name, reward.reference.build] as const]
        : [],
    ),
  );
}

/** The name under which a step is fed what a reward knows of its rows' photographs. */
export const referenceName = (reward: string): string => `reference.${reward}`;

/**
 * What rewards have to know of each photograph, worked out once and kept; with random crops, where every use is another picture, at each use. A use sees the same
 * crop and flip as the latents of that use.
 */
export class ReferenceCache {
  readonly #programs: LazyPrograms<readonly number[]>;
  readonly #known = new Map<string, Promise<Record<string, Tensor>>>();

  constructor(
    engine: Engine,
    private readonly images: readonly ReferenceImage[],
    private readonly references: References,
    private readonly options: PictureUseOptions,
  ) {
    this.#programs = new LazyPrograms(engine, (shape) => referencesGraph(references, shape));
  }

  /** What is known of picture `index`, by the names that a step is fed, [1, D] each. The same random stream gives the same crop and flip. */
  of(index: number, size: PictureSize, random: Random): Promise<Record<string, Tensor>> {
    if (this.references.size === 0) return Promise.resolve({});
    const use = pictureUse(this.options, random);
    const view = viewName(index, size, use);
    if (view === undefined) return this.#compute(index, size, use);
    const known = this.#known.get(view) ?? this.#compute(index, size, use);
    this.#known.set(view, known);
    return known;
  }

  release(): Promise<void> {
    return this.#programs.release();
  }

  async #compute(index: number, size: PictureSize, use: PictureUse): Promise<Record<string, Tensor>> {
    const { pixels } = await prepareImage(this.images[index]!, { size, ...use });
    const shape = [1, ...pixels.shape];
    const program = await this.#programs.of(shape);
    return program.run({ pixels: float32(shape, pixels.data) });
  }
}

/** Pictures [1, 3, H, W] to what rewards have to know of them. */
export function referencesGraph(references: References, shape: readonly number[]): Graph {
  const graph = new Graph('references');
  const pixels = graph.input('pixels', 'float32', shape);
  for (const [name, build] of references) graph.output(referenceName(name), build(pixels));
  return graph;
}
