import { RunError } from '../errors.js';
import { isObject, type Json } from '../formats/json-config.js';
import { initialLossScale, type LossScale, nextLossScale } from '../optim/loss-scale.js';
import { scalarFeed } from '../optim/optimizer.js';
import type { Tensor } from '../tensor/tensor.js';

/** The graph input that takes the loss scale. */
export const LOSS_SCALE = 'loss_scale';

/** Skipped steps in a row after which a run stops: from 2^16 the scale has come down to 1/16 by then, where no gradient should overflow any more. */
const MOST_SKIPPED = 20;

/**
 * The loss scale of a run in half precision, with what it has gone through: steps whose gradients overflow change nothing of what is learnt, and half the scale.
 */
export class LossScaler {
  #scale: LossScale;
  #skipped: number;
  #inARow: number;

  private constructor(scale: LossScale, skipped: number, inARow: number) {
    this.#scale = scale;
    this.#skipped = skipped;
    this.#inARow = inARow;
  }

  static start(): LossScaler {
    return new LossScaler(initialLossScale, 0, 0);
  }

  /** From what `progress` gave. @throws RunError when it is something else; `path` is the checkpoint's. */
  static restore(progress: Json | undefined, path: string): LossScaler {
    const numbers = isObject(progress)
      ? (['scale', 'cleanSteps', 'skippedSteps', 'skippedInARow'] as const).map((key) => progress[key])
      : [];
    const [scale, cleanSteps, skipped, inARow] = numbers.filter((v) => typeof v === 'number' && v >= 0);
    if (!scale || inARow === undefined) {
      throw new RunError(
        `${path}: the checkpoint holds no loss scale, which training in half precision needs. It belongs to a run in float32, or was edited; start again in another output folder.`,
      );
    }
    return new LossScaler(
      { scale: scale as number, cleanSteps: cleanSteps as number },
      skipped as number,
      inARow as number,
    );
  }

  /** What a resumed run has to know. */
  get progress(): Json {
    const { scale, cleanSteps } = this.#scale;
    return { scale, cleanSteps, skippedSteps: this.#skipped, skippedInARow: this.#inARow };
  }

  get scale(): number {
    return this.#scale.scale;
  }

  /** Steps so far that changed nothing. */
  get skippedSteps(): number {
    return this.#skipped;
  }

  get skippedInARow(): number {
    return this.#inARow;
  }

  /** Whether so many steps in a row were skipped that the next ones will be too. */
  get isStuck(): boolean {
    return this.#inARow >= MOST_SKIPPED;
  }

  /** What a step is fed. */
  feeds(): Record<string, Tensor> {
    return { [LOSS_SCALE]: scalarFeed(this.#scale.scale) };
  }

  /** Takes note of a step. */
  settle(overflowed: boolean): void {
    this.#scale = nextLossScale(this.#scale, overflowed);
    this.#skipped += Number(overflowed);
    this.#inARow = overflowed ? this.#inARow + 1 : 0;
  }
}
