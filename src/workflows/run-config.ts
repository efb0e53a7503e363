import { createHash } from 'node:crypto';
import type { SubjectPrompt } from '../data/prompts.js';
import type { ReferenceImage } from '../data/reference-images.js';
import type { Json } from '../formats/json-config.js';
import type { LocatedModel } from '../pretrained/model-reference.js';
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
]
  .map((key) => `settings.${key}`)
  .concat('model');

/** All that is needed to repeat the run, and to notice when something else is asked for. Pictures count by their pixels, not by their place. */
export function runConfig(
  located: LocatedModel,
  { variant, predictionType }: BaseModelOptions,
  digests: Readonly<Record<string, string>>,
  subject: SubjectPrompt,
  resolution: number,
  settings: PersonaliseSettings,
  images: readonly ReferenceImage[],
): Record<string, Json> {
  const { checkpointsTotalLimit: _limit, reward, ...all } = settings;
  const { rolloutFraction, rolloutPrompts, numRollouts, rolloutEvery, rolloutSteps, judges, ...rest } = all;
  // Left out where there are none, so that runs from before there were any can be gone on with.
  const rollouts =
    rolloutFraction > 0 ? { rolloutFraction, rolloutPrompts, numRollouts, rolloutEvery, rolloutSteps } : {};
  const kept = {
    ...rest,
    ...rollouts,
    ...(judges.length > 0 ? { judges } : {}),
    reward: rewardsAsJson(completeRewards(reward, settings.rewardCombination)),
  };
  return {
    model: located.identity,
    // The default is left out, so that runs from before there was a choice can be gone on with.
    ...(variant === undefined || variant === 'full' ? {} : { variant }),
    ...(predictionType && { predictionType }),
    modelDigests: digests,
    instancePrompt: subject.instancePrompt,
    classPrompt: subject.classPrompt,
    images: pixelDigests(images),
    settings: { ...(JSON.parse(JSON.stringify(kept)) as Record<string, Json>), resolution },
  };
}

/** What a picture's pixels are known by. */
export function pixelDigests(images: readonly ReferenceImage[]): string[] {
  return images.map((image) => createHash('sha256').update(image.pixels).digest('hex').slice(0, 16));
}
