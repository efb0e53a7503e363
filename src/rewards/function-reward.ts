import type { BlackBoxReward, Picture, ScoringContext } from './reward.js';

/** Rewards of pictures, one number each in their order; more is better. It may take its time, and should stop when the context's signal is raised. */
export type ScoreFunction = (
  pictures: readonly Picture[],
  context: ScoringContext,
) => readonly number[] | Float32Array | Promise<readonly number[] | Float32Array>;

/**
 * A function of the caller's as a reward. It runs on the caller's own thread: one that never comes back from a computation cannot be stopped.
 *
 * @param timeout how long one answer may take, in seconds
 */
export function functionReward(name: string, score: ScoreFunction, timeout: number): BlackBoxReward {
  return { kind: 'black box', name, timeout, score: async (pictures, context) => score(pictures, context) };
}
