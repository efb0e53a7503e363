import type { State } from '../engine/engine.js';
import { RunError } from '../errors.js';
import { readTensor, type SafetensorsFile } from '../formats/safetensors-file.js';
import type { DrawingRequest, TextToImage, VisitedState } from '../pretrained/text-to-image.js';
import { Random } from '../tensor/random.js';
import { concatRows } from '../tensor/rows.js';
import { elementCount, float32, int64, type Tensor } from '../tensor/tensor.js';

/** How the policy draws by itself. */
export interface RolloutSettings {
  /** Pictures drawn at once, one after another of the prompts. */
  readonly count: number;
  /** Steps of training after which they are drawn again. */
  readonly every: number;
  /** Steps of the sampler, and so states of each picture. */
  readonly samplingSteps: number;
  readonly guidanceScale: number;
  /** A row each. */
  readonly prompts: readonly string[];
}

/** The picture that is drawn as number `index` of a run, counted from 0 over all its roll-outs. Their seeds lie apart from those of sample and class pictures. */
export function rolloutRequest(
  { prompts }: Pick<RolloutSettings, 'prompts'>,
  seed: number,
  index: number,
): DrawingRequest {
  return { prompt: prompts[index % prompts.length]!, seed: seed + 2_000_000 + index };
}

/**
 * Whether the subject's row number `position` of a run, counted from 0, is a visited state. They are spread evenly, so that any stretch of rows has the right share of
 * them, whatever the batches are.
 */
export function isVisited(fraction: number, position: number): boolean {
  // The tiny addition makes thirds and tenths what they are meant to be.
  const before = (rows: number): number => Math.floor(rows * fraction + 1e-9);
  return before(position + 1) > before(position);
}

/** A visited state, and which of the prompts it belongs to. */
export interface PickedState {
  readonly prompt: number;
  /** [C, h, w] */
  readonly sample: Float32Array;
  readonly timestep: number;
}

/** The names under which a checkpoint holds the states. */
const SAMPLES = 'rollouts.samples';
const TIMESTEPS = 'rollouts.timesteps';
const PROMPTS = 'rollouts.prompts';

/**
 * The states x_t that the current policy visits while it draws by itself. They are its own states in the full sense: where its actions led, by DDIM without noise,
 * which is the sampler of a deterministic policy (Song et al., arXiv 2010.02502), with the guidance that pictures are drawn with.
 *
 * They are drawn every so many steps and kept meanwhile; a checkpoint holds them, since the factors that they were drawn with are gone by then.
 */
export class Rollouts {
  #states: readonly PickedState[] = [];

  constructor(
    private readonly drawer: TextToImage,
    private readonly settings: RolloutSettings,
    private readonly seed: number,
    private readonly options: {
      readonly onProgress?: (done: number, total: number) => void;
      readonly signal?: AbortSignal;
    } = {},
  ) {}

  /** Whether they are to be drawn before this step, counted from 1. */
  isDue(step: number): boolean {
    return (step - 1) % this.settings.every === 0;
  }

  /** Draws with the factors in the state as they are now. @throws CancelledError when the signal is raised; the states stay what they were. */
  async draw(step: number, state: State): Promise<void> {
    const { count, every, samplingSteps, guidanceScale, prompts } = this.settings;
    const { onProgress, signal } = this.options;
    // Whole, since it is only called where they are due.
    const first = ((step - 1) / every) * count;
    const requests = Array.from({ length: count }, (_, i) =>
      rolloutRequest(this.settings, this.seed, first + i),
    );
    const batches = Math.ceil(count / this.drawer.batch);
    const visited: VisitedState[] = [];
    for (let b = 0; b < batches; b++) {
      const batch = requests.slice(b * this.drawer.batch, (b + 1) * this.drawer.batch);
      const states = await this.drawer.visit(batch, {
        steps: samplingSteps,
        scheduler: 'ddim',
        guidanceScale,
        state,
        ...(signal ? { signal } : {}),
      });
      visited.push(...states.flat());
      onProgress?.(b + 1, batches);
    }
    this.#states = visited.map(({ prompt, sample, timestep }) => ({
      prompt: prompts.indexOf(prompt),
      sample: sample.data,
      timestep,
    }));
  }

  release(): Promise<void> {
    return this.drawer.release();
  }

  /** The state for the subject's row number `position` of the run. */
  pick(position: number): PickedState {
    return new Random(this.seed, 'visited', position).pick(this.#states);
  }

  /** What a checkpoint has to hold. @param shape of one state, [C, h, w] */
  tensors(shape: readonly number[]): Map<string, Tensor> {
    const numbers = (of: (state: PickedState) => number): Tensor =>
      int64([this.#states.length], this.#states.map(of));
    if (this.#states.length === 0) return new Map();
    return new Map<string, Tensor>([
      [SAMPLES, concatRows(this.#states.map(({ sample }) => float32([1, ...shape], sample)))],
      [TIMESTEPS, numbers(({ timestep }) => timestep)],
      [PROMPTS, numbers(({ prompt }) => prompt)],
    ]);
  }

  /** Takes up what a checkpoint holds. @throws RunError when it lacks something, or is of another size. */
  async restore(file: SafetensorsFile, shape: readonly number[]): Promise<void> {
    const { path } = file;
    const { count, samplingSteps, prompts } = this.settings;
    const states = count * samplingSteps;
    const [samples, timesteps, places] = await Promise.all(
      [SAMPLES, TIMESTEPS, PROMPTS].map(async (name) =>
        file.entries.has(name) ? readTensor(file, name) : undefined,
      ),
    );
    if (
      samples?.shape.join() !== [states, ...shape].join() ||
      timesteps?.data.length !== states ||
      places?.data.length !== states ||
      Array.from(places.data, Number).some((p) => prompts[p] === undefined)
    ) {
      throw new RunError(
        `${path}: expected ${states} states that the policy visited, [${shape.join(', ')}] each, with their timesteps and prompts. The checkpoint is damaged or belongs to other settings; go on from an earlier one.`,
      );
    }
    const size = elementCount(shape);
    this.#states = Array.from({ length: states }, (_, i) => ({
      prompt: Number(places.data[i]),
      sample: (samples.data as Float32Array).slice(i * size, (i + 1) * size),
      timestep: Number(timesteps.data[i]),
    }));
  }
}
