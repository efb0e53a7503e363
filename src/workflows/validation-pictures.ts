import { join } from 'node:path';
import type { RgbImage } from '../data/image-grid.js';
import type { Engine, State } from '../engine/engine.js';
import { CancelledError } from '../errors.js';
import { pathExists } from '../formats/path-exists.js';
import type { StableDiffusion } from '../pretrained/stable-diffusion.js';
import { TextToImage } from '../pretrained/text-to-image.js';
import type { Trainable, TrainedWeights } from '../pretrained/trainable.js';
import { type Tensor, zeros } from '../tensor/tensor.js';
import type { TrainingListener } from '../training/events.js';
import { type RunFolder, runFiles } from '../training/run-folder.js';
import { Cleanup } from './cleanup.js';
import type { PersonaliseSettings } from './personalisation-settings.js';
import { eventPictures, readSampleGrid, sampleGrid } from './run-report.js';
import { type BaseDistance, divergenceFromBase, type RunWatch } from './run-watch.js';

export interface ValidationSettings {
  readonly prompts: readonly string[];
  readonly settings: Pick<
    PersonaliseSettings,
    'numValidationImages' | 'seed' | 'samplingSteps' | 'scheduler' | 'guidanceScale'
  >;
  readonly resolution: number;
  readonly trainable: Trainable;
  /** Of a drawer of what was learnt, as in `TextToImageOptions`. */
  readonly inTurn: boolean;
  /** Measures the pictures, where that is asked for. */
  readonly watch?: RunWatch;
  readonly onEvent?: TrainingListener;
  readonly signal?: AbortSignal;
}

/** The pictures by which a run is watched: the same prompts from the same noise before, between and after, kept as a grid a step among the run's samples. */
export class ValidationPictures {
  readonly #grid: readonly [prompts: number, pictures: number];

  constructor(
    private readonly model: StableDiffusion,
    private readonly engine: Engine,
    private readonly run: RunFolder,
    private readonly options: ValidationSettings,
  ) {
    this.#grid = [options.prompts.length, options.settings.numValidationImages];
  }

  /**
   * Draws and measures the pictures of a step, for the samples and for TensorBoard; what is there already is not drawn again.
   *
   * @param name of the stage, in progress.
   * @param drawer is only asked for when there is something to draw.
   * @param distance from the base, left out for the base itself.
   * @throws CancelledError when the signal is raised.
   */
  async draw(
    step: number,
    name: string,
    drawer: () => Promise<readonly [TextToImage, State]>,
    distance?: () => Promise<BaseDistance>,
  ): Promise<void> {
    const { run } = this;
    const path = this.#pathOf(step);
    if (!(await pathExists(path))) {
      const grid = await sampleGrid(await this.#drawn(...(await drawer()), name));
      await run.writeSample(gridName(step), grid);
      this.options.onEvent?.({ kind: 'samples', step, path });
    }
    if (run.tensorboard && !run.tensorboard.hasPictures(step)) {
      await run.tensorboard.appendPictures(
        step,
        await eventPictures(this.options.prompts, await this.read(step)),
      );
    }
    await this.options.watch?.measure(step, () => this.read(step), distance);
  }

  /** The same with what was learnt, by the names of the inputs, on programs that are made for it and released again. */
  drawWith(step: number, name: string, learnt: TrainedWeights): Promise<void> {
    const { resolution, trainable: adaptation, inTurn } = this.options;
    return Cleanup.after((drawn) => {
      let made: readonly [TextToImage, State] | undefined;
      const drawer = async () => {
        made ??= [
          drawn.release(
            await TextToImage.create(this.model, this.engine, { resolution, adaptation, inTurn }),
          ),
          drawn.release(await this.#stateOf(learnt.names, learnt.read)),
        ];
        return made;
      };
      return this.draw(step, name, drawer, async () => {
        const [own, policy] = await drawer();
        const start = new Map(this.model.variables(adaptation).map((v) => [v.input, v]));
        const base = drawn.release(
          await this.#stateOf(learnt.names, async (input) => {
            const { stored, shape } = start.get(input)!;
            return stored ? stored() : zeros(shape); // low-rank factors: no update
          }),
        );
        return {
          updateNorm: await this.model.relativeUpdate(adaptation, learnt),
          klToBase: await drawing(this.#divergence(own, { policy, base })),
        };
      });
    });
  }

  /** A state that is filled tensor by tensor, since all weights of a model are too much to hold twice. */
  async #stateOf(names: readonly string[], read: (name: string) => Promise<Tensor>): Promise<State> {
    const state = await this.engine.state(new Map());
    for (const name of names) await state.write(new Map([[name, await read(name)]]));
    return state;
  }

  #divergence(drawer: TextToImage, states: { policy: State; base: State }): Promise<number> {
    const { prompts, settings, signal } = this.options;
    const { seed, guidanceScale } = settings;
    return divergenceFromBase(this.model, drawer, states, {
      prompts,
      seed,
      guidanceScale,
      ...(signal ? { signal } : {}),
    });
  }

  /** The pictures of a step that were drawn before, by prompt. */
  read(step: number): Promise<RgbImage[][]> {
    return readSampleGrid(this.#pathOf(step), ...this.#grid);
  }

  #pathOf(step: number): string {
    return join(this.run.path, runFiles.samples, gridName(step));
  }

  async #drawn(drawer: TextToImage, state: State, name: string): Promise<RgbImage[][]> {
    const { prompts, settings, onEvent, signal } = this.options;
    const count = settings.numValidationImages;
    const requests = prompts.flatMap((prompt) =>
      Array.from({ length: count }, (_, i) => ({ prompt, seed: settings.seed + i })),
    );
    const pictures = await drawing(
      drawer.draw(requests, {
        steps: settings.samplingSteps,
        scheduler: settings.scheduler,
        guidanceScale: settings.guidanceScale,
        state,
        onProgress: (done, total) => onEvent?.({ kind: 'stage', name, done, total }),
        ...(signal ? { signal } : {}),
      }),
    );
    return prompts.map((_, p) => pictures.slice(p * count, (p + 1) * count));
  }
}

/** Pictures that are being drawn when the user stops have no state of their own to save; what is drawn already is kept. */
export function drawing<T>(work: Promise<T>): Promise<T> {
  return work.catch((error: unknown) => {
    if (!(error instanceof CancelledError)) throw error;
    throw new CancelledError(
      'Stopped while drawing pictures. What is done is kept; the same command with --resume-from-checkpoint latest goes on from there.',
      { cause: error },
    );
  });
}

const gridName = (step: number): string => `step-${String(step).padStart(6, '0')}.png`;
