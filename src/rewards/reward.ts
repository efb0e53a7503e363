import type { Value } from '../onnx/graph.js';
import type { Tensor } from '../tensor/tensor.js';

/** Where the policy is heading on the subject's rows of a batch, as rewards see it. */
export interface Heading {
  /** xhat_0, scaled latents [I, C, h, w]. */
  readonly latents: Value;
  /** x_0 of the photographs that the rows were noised from, or, where the policy visited them, that stand beside them, scaled latents [I, C, h, w]. */
  readonly clean: Value;
  /** xhat_0 as pictures [I, 3, R, R], about [-1, 1]. Built when it is first asked for, once for all rewards. */
  readonly pixels: () => Value;
}

/**
 * A reward that is part of the training graph: it can be followed by its own gradient, or learnt by the critic like any other.
 *
 * Rewards are written so that more is better. Those about a distance are minus that distance, at most 0.
 */
export interface GraphReward {
  readonly kind: 'graph';
  /** Names its curve: lower case, without spaces. */
  readonly name: string;
  /** It compares with the very photograph that a row was noised from, and says nothing of a state that the policy visited itself. */
  readonly ofNoisedPhotographs?: boolean;
  /** What it has to know of a row besides where the policy is heading. */
  readonly reference?: PhotographReference | TextReference;
  /** One value a row, [I]. @param reference what it has to know of each row, [I, D] */
  values(heading: Heading, reference: Value | undefined): Value;
}

/** Something to know of a row's photograph: from its pixels [1, 3, R, R] in [-1, 1] to [1, D], worked out once for each. */
export interface PhotographReference {
  readonly of: 'photograph';
  readonly build: (photograph: Value) => Value;
}

/** Something to know of the text of a row: [1, D] for each text that a row may have. */
export interface TextReference {
  readonly of: 'text';
  readonly known: ReadonlyMap<string, Tensor<'float32'>>;
}

/** A picture as bytes, [height, width, 3] row by row from the top. */
export interface Picture {
  readonly width: number;
  readonly height: number;
  readonly pixels: Uint8Array;
}

/** What a black box is told besides the pictures. */
export interface ScoringContext {
  /** The training step, from 1. */
  readonly step: number;
  /** What the subject's pictures should show: the run's prompt. */
  readonly prompt: string;
  /** What each of the pictures should show, without the rare token. */
  readonly prompts: readonly string[];
  /** Raised when the time for an answer is over. */
  readonly signal: AbortSignal;
}

/** A reward that only answers: pictures in, a number for each out. It has no gradient; the critic learns it. */
export interface BlackBoxReward {
  readonly kind: 'black box';
  readonly name: string;
  /** How long one answer may take, in seconds; undefined where it keeps the time itself. */
  readonly timeout: number | undefined;
  /** Rejects where it cannot answer. What it answers is checked by the caller. */
  score(pictures: readonly Picture[], context: ScoringContext): Promise<unknown>;
  /** Gives back what it holds, such as a thread. */
  close?(): Promise<void>;
}

export type Reward = GraphReward | BlackBoxReward;

/** A reward among others. */
export interface WeightedReward {
  readonly reward: Reward;
  readonly weight: number;
  /** Discount per timestep. */
  readonly gamma: number;
}
