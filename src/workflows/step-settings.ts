import { adamw } from '../optim/adamw.js';
import type { Trainable } from '../pretrained/trainable.js';
import type { WeightedReward } from '../rewards/reward.js';
import type { PersonalisationSettings } from '../training/personalisation.js';
import type { ObjectiveSettings } from '../training/personalisation-step.js';
import { criticLearningRate, isOfficial, type PersonaliseSettings } from './personalisation-settings.js';
import { completeRewards } from './reward-spec.js';

/** "dpg, look-forward reward" */
export function methodName(settings: PersonaliseSettings): string {
  if (settings.method !== 'dpg') return settings.method;
  const names = completeRewards(settings.reward, settings.rewardCombination).map((r) => r.name);
  return `dpg, ${names.join(' + ')} reward`;
}

function objectiveSettings(
  settings: PersonaliseSettings,
  rewards: readonly WeightedReward[],
): ObjectiveSettings {
  const { method, snrGamma, gamma, policyGradient } = settings;
  if (method !== 'dpg') return { method, ...(snrGamma === undefined ? {} : { snrGamma }) };
  const rate = criticLearningRate(settings);
  if (isOfficial(settings)) return { method: 'dpg look-forward', gamma, criticLearningRate: rate };
  return {
    method,
    rewards,
    combination: settings.rewardCombination,
    lambda: settings.lambda,
    criticTarget: settings.criticTarget,
    criticLearningRate: rate,
    ...(policyGradient === undefined ? {} : { policyGradient }),
  };
}

/** What the training takes of a run's settings. */
export function stepSettings(
  settings: PersonaliseSettings,
  rewards: readonly WeightedReward[],
  trainable: Trainable,
  resolution: number,
): PersonalisationSettings {
  return {
    objective: objectiveSettings(settings, rewards),
    onRewardFailure: settings.onRewardFailure,
    priorLossWeight: settings.priorLossWeight,
    trainable,
    instances: settings.trainBatchSize,
    ...(settings.rolloutFraction > 0 ? { rollouts: true, rolloutFraction: settings.rolloutFraction } : {}),
    priors: settings.withPriorPreservation ? settings.trainBatchSize : 0,
    resolution,
    ...(settings.noiseOffset > 0 ? { noiseOffset: settings.noiseOffset } : {}),
    gradientAccumulationSteps: settings.gradientAccumulationSteps,
    gradientCheckpointing: settings.gradientCheckpointing,
    maxGradNorm: settings.maxGradNorm,
    ema: settings.useEma,
    optimizer: adamw({
      beta1: settings.adamBeta1,
      beta2: settings.adamBeta2,
      epsilon: settings.adamEpsilon,
      weightDecay: settings.adamWeightDecay,
    }),
    steps: settings.steps,
    learningRate: settings.learningRate,
    lrScheduler: settings.lrScheduler,
    lrWarmupSteps: settings.lrWarmupSteps,
    emaDecay: settings.emaDecay,
    checkpointingSteps: settings.checkpointingSteps,
    ...(settings.validationSteps === undefined ? {} : { validationSteps: settings.validationSteps }),
    seed: settings.seed,
  };
}
