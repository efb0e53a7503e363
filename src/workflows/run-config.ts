import { createHash } from 'node:crypto';
import type { SubjectPrompt } from '../data/prompts.js';
import type { ReferenceImage } from '../data/reference-images.js';
import type { Json } from '../formats/json-config.js';
import type { LocatedModel } from '../pretrained/model-reference.js';
import type { NewWord } from '../pretrained/new-words.js';
import type { BaseModelOptions } from './base-model.js';
import type { PersonaliseSettings } from './personalisation-settings.js';
import { completeRewards, rewardsAsJson } from './reward-spec.js';

/** What a resumed run may change: what one would turn after a run went astray, or to go on longer; the model's place, as its digests tell which one it is. */
export const adjustableSettings = [
  'learningRate',
  'lrScheduler',
  'lrWarmupSteps',
  'criticLearningRate',
  'maxGradNorm',
  'rewardTimeout',
  'onRewardFailure',
  'earlyStopping',
  'steps',
  'checkpointingSteps',
  'cacheLatentsToDisk',
  'validationSteps',
  'reportTo',
  'saveModel',
]
  .map((key) => `settings.${key}`)
  .concat('model');

/** What a run is made of beside its model. */
export interface ConfiguredRun {
  /** What is taught, one or several. */
  readonly subjects: readonly SubjectPrompt[];
  readonly words: readonly NewWord[];
  readonly resolution: number;
  readonly settings: PersonaliseSettings;
  readonly images: readonly ReferenceImage[];
}

/** All that is needed to repeat the run, and to notice when something else is asked for. Pictures count by their pixels, not by their place. */
export function runConfig(
  located: LocatedModel,
  { variant, predictionType }: BaseModelOptions,
  digests: Readonly<Record<string, string>>,
  { subjects, words, resolution, settings, images }: ConfiguredRun,
): Record<string, Json> {
  const { checkpointsTotalLimit: _limit, reward, train, numVectors, saveModel, ...all } = settings;
  const { rolloutFraction, rolloutPrompts, numRollouts, rolloutEvery, rolloutSteps, judges, ...others } = all;
  // Left out where there are none, or the default is taken, so that runs from before there was a choice can be gone on with.
  const rollouts =
    rolloutFraction > 0 ? { rolloutFraction, rolloutPrompts, numRollouts, rolloutEvery, rolloutSteps } : {};
  const kept = {
    ...others,
    ...rollouts,
    ...(judges.length > 0 ? { judges } : {}),
    ...(train === 'lora' ? {} : { train }),
    ...(numVectors === 1 ? {} : { numVectors }),
    ...(saveModel ? {} : { saveModel }),
    reward: rewardsAsJson(completeRewards(reward, settings.rewardCombination)),
  };
  const [subject] = subjects;
  return {
    model: located.identity,
    ...(variant === undefined || variant === 'full' ? {} : { variant }),
    ...(predictionType && { predictionType }),
    modelDigests: digests,
    instancePrompt: subject!.instancePrompt,
    classPrompt: subject!.classPrompt,
    ...(subjects.length > 1
      ? { concepts: subjects.map(({ instancePrompt, classPrompt }) => ({ instancePrompt, classPrompt })) }
      : {}),
    ...(words.length > 0 ? { words: words.map((word) => ({ ...word })) } : {}),
    images: pixelDigests(images),
    settings: { ...(JSON.parse(JSON.stringify(kept)) as Record<string, Json>), resolution },
  };
}

/** What a picture's pixels are known by. */
export function pixelDigests(images: readonly ReferenceImage[]): string[] {
  return images.map((image) => createHash('sha256').update(image.pixels).digest('hex').slice(0, 16));
}
