import type { CriticTarget, PolicyGradient } from '../algorithms/dpg.js';
import { type SchedulerName, schedulerNames } from '../diffusion/scheduler-config.js';
import { UsageError } from '../errors.js';
import { type ScheduleName, schedules } from '../optim/schedule.js';
import type { Combination } from '../rewards/combination.js';
import { type MixedPrecision, readMixedPrecision } from './mixed-precision.js';
import { completeRewards, isBlackBox, isLookForwardAlone, type RewardInput } from './reward-spec.js';

/** How a model is personalised. Everything but the pictures, the prompt and the output has a default. */
export interface PersonaliseSettings {
  /** "dpg": deterministic policy gradient on a reward (arXiv 2407.06642). "dreambooth": the denoising error alone. */
  readonly method: 'dpg' | 'dreambooth';
  /** What DPG is rewarded for. */
  readonly reward: RewardInput | readonly RewardInput[];
  /** How several rewards become one. */
  readonly rewardCombination: Combination;
  /**
   * "official": what the authors' code computes, for the look-forward reward alone. "paper": what the paper describes, for any rewards. Left out: the
   * first where it can be.
   */
  readonly objective: 'official' | 'paper' | undefined;
  /** Weight of the rewards against the denoising error, for the objective "paper". */
  readonly lambda: number;
  /** Which way the policy's gradient takes; left out, straight for rewards that have a gradient and through the critic for the others. */
  readonly policyGradient: PolicyGradient | undefined;
  /** What the critic learns, for the objective "paper". */
  readonly criticTarget: CriticTarget;
  /** How long a black box may take for an answer, in seconds. */
  readonly rewardTimeout: number;
  /** What to do when a reward cannot be had: "stop" with everything saved, or "skip" the critic's turn and go on. */
  readonly onRewardFailure: 'stop' | 'skip';
  /** Share of the subject's rows that are states which the policy visited itself; the others are noised photographs. */
  readonly rolloutFraction: number;
  /** What the policy draws to visit them; the subject in six scenes by default. */
  readonly rolloutPrompts: readonly string[] | undefined;
  /** Pictures whose states are visited at a time. */
  readonly numRollouts: number;
  /** Training steps after which they are drawn again. */
  readonly rolloutEvery: number;
  /** Sampler steps of each, and so its states. */
  readonly rolloutSteps: number;
  readonly steps: number;
  readonly learningRate: number;
  readonly lrScheduler: ScheduleName;
  readonly lrWarmupSteps: number;
  /**
   * What of the model learns. "lora": low-rank updates of the attention projections. "full": all weights of the denoiser. "custom-diffusion": cross-attention keys and
   * values, and a new word for each concept. "textual-inversion": a new word alone.
   */
  readonly train: 'lora' | 'full' | 'custom-diffusion' | 'textual-inversion';
  /** The new words of Custom Diffusion, in the order of the concepts: "<new1>". */
  readonly modifierToken: readonly string[] | undefined;
  /** The new word of textual inversion: "<toy>". */
  readonly placeholderToken: string | undefined;
  /** The word that each new word starts as: one token of the vocabulary. Rare ones for Custom Diffusion, the class for textual inversion by default. */
  readonly initializerToken: readonly string[] | undefined;
  /** How many tokens the new word of textual inversion is. */
  readonly numVectors: number;
  /** Write the whole model at the end of a run of "full"; otherwise its last checkpoint is what it leaves. */
  readonly saveModel: boolean;
  readonly rank: number;
  /** Low-rank updates are scaled by loraAlpha / rank; the rank by default. */
  readonly loraAlpha: number;
  readonly trainTextEncoder: boolean;
  readonly withPriorPreservation: boolean;
  readonly priorLossWeight: number;
  readonly numClassImages: number;
  readonly trainBatchSize: number;
  readonly gradientAccumulationSteps: number;
  readonly gradientCheckpointing: boolean;
  /** "fp16": compute in half precision, with a loss scale that adapts; what learns stays float32. */
  readonly mixedPrecision: MixedPrecision;
  /** Side in pixels; the model's own by default. */
  readonly resolution: number | undefined;
  /** Always the middle square; otherwise a random one at each use. */
  readonly centerCrop: boolean;
  readonly randomFlip: boolean;
  /** Take the captions beside the pictures as their instance prompts. */
  readonly captions: boolean;
  /** Let pictures keep about their aspect, in batches of one shape, instead of cutting squares. */
  readonly enableBucket: boolean;
  /** The shortest side of a bucket in pixels; half the resolution by default. */
  readonly minBucketReso: number | undefined;
  /** The longest side of a bucket in pixels; twice the resolution by default. */
  readonly maxBucketReso: number | undefined;
  /** Sides of buckets are multiples of this; the least that the model takes by default. */
  readonly bucketResoSteps: number | undefined;
  /** Keep latents on the disk, so that a resumed run need not encode again. */
  readonly cacheLatentsToDisk: boolean;
  /** Standard deviation of the noise that a whole channel has in common. */
  readonly noiseOffset: number;
  readonly seed: number;
  readonly adamBeta1: number;
  readonly adamBeta2: number;
  readonly adamWeightDecay: number;
  readonly adamEpsilon: number;
  readonly maxGradNorm: number;
  /** Gamma of min-SNR weighting, for DreamBooth. */
  readonly snrGamma: number | undefined;
  readonly useEma: boolean;
  readonly emaDecay: number;
  /** Discount of the reward per timestep, for DPG. */
  readonly gamma: number;
  /** Left out: 0.01 for the official critic, which learns by SGD, and 0.001 for the other, which learns by Adam. */
  readonly criticLearningRate: number | undefined;
  readonly checkpointingSteps: number;
  readonly checkpointsTotalLimit: number | undefined;
  /** What to draw before and after; scenes around the subject by default. */
  readonly validationPrompts: readonly string[] | undefined;
  readonly numValidationImages: number;
  /** Draw every so many steps too; before and after only by default. */
  readonly validationSteps: number | undefined;
  /** Folders of image encoders that watch the run: they score its pictures, and must not be those of its rewards. */
  readonly judges: readonly string[];
  /** Validations without a better score of the judges after which to stop; the best step's weights are what is kept. Never by default. */
  readonly earlyStopping: number | undefined;
  /** "tensorboard": also write an event file for TensorBoard into the run folder. */
  readonly reportTo: 'none' | 'tensorboard';
  readonly samplingSteps: number;
  /** The sampler of sample and class pictures; the model's own by default. */
  readonly scheduler: SchedulerName | undefined;
  readonly guidanceScale: number;
}

/** The defaults. The equations of DPG, its critic and its discount are those of the authors' code; the learning rate is that of low-rank updates; `learningRates` has the others. */
export const personaliseDefaults: PersonaliseSettings = {
  method: 'dpg',
  reward: 'look-forward',
  rewardCombination: 'sum',
  objective: undefined,
  lambda: 0.1,
  policyGradient: undefined,
  criticTarget: 'reward',
  rewardTimeout: 60,
  onRewardFailure: 'stop',
  rolloutFraction: 0,
  rolloutPrompts: undefined,
  numRollouts: 8,
  rolloutEvery: 25,
  rolloutSteps: 10,
  steps: 400,
  learningRate: 5e-4,
  lrScheduler: 'constant',
  lrWarmupSteps: 0,
  train: 'lora',
  modifierToken: undefined,
  placeholderToken: undefined,
  initializerToken: undefined,
  numVectors: 1,
  saveModel: true,
  rank: 8,
  loraAlpha: 8,
  trainTextEncoder: false,
  withPriorPreservation: true,
  priorLossWeight: 1,
  numClassImages: 16,
  trainBatchSize: 1,
  gradientAccumulationSteps: 1,
  gradientCheckpointing: false,
  mixedPrecision: 'no',
  resolution: undefined,
  centerCrop: true,
  randomFlip: false,
  captions: true,
  enableBucket: false,
  minBucketReso: undefined,
  maxBucketReso: undefined,
  bucketResoSteps: undefined,
  cacheLatentsToDisk: true,
  noiseOffset: 0,
  seed: 23,
  adamBeta1: 0.9,
  adamBeta2: 0.999,
  adamWeightDecay: 1e-2,
  adamEpsilon: 1e-8,
  maxGradNorm: 1,
  snrGamma: undefined,
  useEma: false,
  emaDecay: 0.999,
  gamma: 0.9986,
  criticLearningRate: undefined,
  checkpointingSteps: 100,
  checkpointsTotalLimit: undefined,
  validationPrompts: undefined,
  numValidationImages: 2,
  validationSteps: undefined,
  judges: [],
  earlyStopping: undefined,
  reportTo: 'none',
  samplingSteps: 30,
  scheduler: undefined,
  guidanceScale: 7.5,
};

/** The learning rates where none is given: those of diffusers' scripts, but for LoRA. */
export const learningRates: Readonly<Record<PersonaliseSettings['train'], number>> = {
  lora: personaliseDefaults.learningRate,
  full: 5e-6,
  'custom-diffusion': 1e-5,
  'textual-inversion': 5e-4,
};

/** Settings that go together under a name. */
export const presets = {
  /**
   * The authors' released run: 1000 steps of one picture beside one of its class, UNet and text encoder, 8 class images, seed 23, constant learning rate 1e-6.
   */
  official: {
    method: 'dpg',
    reward: 'look-forward',
    objective: 'official',
    train: 'full',
    steps: 1000,
    learningRate: 1e-6,
    lrScheduler: 'constant',
    lrWarmupSteps: 0,
    trainTextEncoder: true,
    trainBatchSize: 1,
    withPriorPreservation: true,
    priorLossWeight: 1,
    numClassImages: 8,
    seed: 23,
    gamma: 0.9986,
    criticLearningRate: 0.01,
    adamWeightDecay: 1e-2,
    maxGradNorm: 1,
  },
} as const satisfies Record<string, Partial<PersonaliseSettings>>;

export type PresetName = keyof typeof presets;

/** Completes settings with the preset's and the defaults. @throws UsageError for a value out of range. */
export function completeSettings(
  given: Partial<PersonaliseSettings>,
  preset?: PresetName,
): PersonaliseSettings {
  const own = Object.fromEntries(Object.entries(given).filter(([, value]) => value !== undefined));
  const chosen: Partial<PersonaliseSettings> = { ...(preset ? presets[preset] : {}), ...own };
  const train = chosen.train ?? personaliseDefaults.train;
  const settings: PersonaliseSettings = {
    ...personaliseDefaults,
    learningRate: learningRates[train] ?? personaliseDefaults.learningRate,
    // A prompt of the class has no new word in it, so its pictures would move nothing.
    withPriorPreservation: train !== 'textual-inversion',
    ...chosen,
    loraAlpha: chosen.loraAlpha ?? chosen.rank ?? personaliseDefaults.rank,
  };
  checkChoices(settings, preset);
  checkTraining(settings, given);
  checkRanges(settings);
  return settings;
}

/** Whether what is trained goes with the other settings. @throws UsageError naming the flag that does not. */
function checkTraining(settings: PersonaliseSettings, given: Partial<PersonaliseSettings>): void {
  const { train, modifierToken = [], initializerToken = [] } = settings;
  const belongsTo: readonly (readonly [
    keyof PersonaliseSettings,
    readonly PersonaliseSettings['train'][],
  ])[] = [
    ['rank', ['lora']],
    ['loraAlpha', ['lora']],
    ['saveModel', ['full']],
    ['trainTextEncoder', ['lora', 'full']],
    ['modifierToken', ['custom-diffusion']],
    ['placeholderToken', ['textual-inversion']],
    ['numVectors', ['textual-inversion']],
    ['initializerToken', ['custom-diffusion', 'textual-inversion']],
  ];
  for (const [key, kinds] of belongsTo) {
    const value = given[key];
    if (value === undefined || value === false || kinds.includes(train)) continue;
    throw new UsageError(
      `${flag(key)} is about --train ${kinds.join(' or ')}, and this is --train ${train}. Leave it out, or choose another --train.`,
    );
  }
  if (train === 'textual-inversion' && settings.withPriorPreservation) {
    throw new UsageError(
      '--with-prior-preservation: pictures of the class do not have the new word in their prompt, so textual inversion learns nothing from them. Leave it out.',
    );
  }
  if (train === 'textual-inversion' && settings.placeholderToken === undefined) {
    throw new UsageError(
      '--train textual-inversion learns a new word: give it with --placeholder-token "<toy>", and use it in --prompt.',
    );
  }
  if (train === 'custom-diffusion' && modifierToken.length === 0) {
    throw new UsageError(
      '--train custom-diffusion learns a new word for each concept: give it with --modifier-token "<new1>", and use it in --prompt.',
    );
  }
  const most = train === 'textual-inversion' ? 1 : modifierToken.length;
  if (initializerToken.length > most) {
    throw new UsageError(
      `--initializer-token: ${initializerToken.length} words to start from are given for ${most} new one${most === 1 ? '' : 's'}.`,
    );
  }
  if (
    train === 'custom-diffusion' &&
    initializerToken.length < modifierToken.length &&
    modifierToken.length > 3
  ) {
    throw new UsageError(
      `--initializer-token: expected a word to start from for each of the ${modifierToken.length} new ones; there is none by default for more than three.`,
    );
  }
}

function checkChoices(settings: PersonaliseSettings, preset: PresetName | undefined): void {
  const oneOf = (name: string, value: string | undefined, allowed: readonly string[]): void => {
    if (value !== undefined && !allowed.includes(value)) {
      throw new UsageError(`--${name} ${value}: expected ${allowed.join(' or ')}.`);
    }
  };
  oneOf('preset', preset, Object.keys(presets));
  oneOf('method', settings.method, ['dpg', 'dreambooth']);
  oneOf('train', settings.train, Object.keys(learningRates));
  oneOf('reward-combination', settings.rewardCombination, ['sum', 'harmonic']);
  oneOf('objective', settings.objective, ['official', 'paper']);
  oneOf('policy-gradient', settings.policyGradient, ['critic', 'reward', 'both']);
  oneOf('critic-target', settings.criticTarget, ['return', 'reward']);
  oneOf('on-reward-failure', settings.onRewardFailure, ['stop', 'skip']);
  checkRewards(settings);
  checkRollouts(settings);
  readMixedPrecision(settings.mixedPrecision);
  oneOf('report-to', settings.reportTo, ['none', 'tensorboard']);
  oneOf('lr-scheduler', settings.lrScheduler, Object.keys(schedules));
  oneOf('scheduler', settings.scheduler, schedulerNames);
  const unknown = Object.keys(settings).filter((key) => !(key in personaliseDefaults));
  if (unknown.length > 0) {
    throw new UsageError(
      `Unknown setting ${unknown.join(', ')}. The settings are ${Object.keys(personaliseDefaults).join(', ')}.`,
    );
  }
  if (settings.validationPrompts?.length === 0) {
    throw new UsageError('The list of validation prompts is empty. Leave it out to have prompts chosen.');
  }
}

/** Whether DPG is computed as the authors' code does, by its own critic and for its own reward. */
export function isOfficial(settings: PersonaliseSettings): boolean {
  const { objective, rewardCombination, lambda, policyGradient, criticTarget } = settings;
  if (objective !== undefined) return objective === 'official';
  const d = personaliseDefaults;
  return (
    isLookForwardAlone(completeRewards(settings.reward, rewardCombination)) &&
    settings.rolloutFraction === 0 &&
    rewardCombination === d.rewardCombination &&
    lambda === d.lambda &&
    policyGradient === undefined &&
    criticTarget === d.criticTarget
  );
}

/** The critic's learning rate where none is given. */
export function criticLearningRate(settings: PersonaliseSettings): number {
  return settings.criticLearningRate ?? (isOfficial(settings) ? 0.01 : 1e-3);
}

/** Settings about roll-outs that say nothing without them. */
const rolloutKeys = ['rolloutPrompts', 'numRollouts', 'rolloutEvery', 'rolloutSteps'] as const;

function checkRollouts(settings: PersonaliseSettings): void {
  const { rolloutFraction, rolloutPrompts, method, objective, policyGradient } = settings;
  if (!(rolloutFraction >= 0 && rolloutFraction <= 1)) {
    throw new UsageError(
      `--rollout-fraction ${rolloutFraction}: expected a number from 0, noised photographs alone, to 1, visited states alone.`,
    );
  }
  if (rolloutPrompts?.length === 0) {
    throw new UsageError('The list of roll-out prompts is empty. Leave it out to have scenes chosen.');
  }
  if (rolloutFraction === 0) {
    const idle = rolloutKeys.find((key) => settings[key] !== personaliseDefaults[key]);
    if (idle === undefined) return;
    throw new UsageError(
      `${idle === 'rolloutPrompts' ? '--rollout-prompt' : flag(idle)} is about roll-outs, and there are none: add --rollout-fraction 0.5, or leave it out.`,
    );
  }
  const visited = `--rollout-fraction ${rolloutFraction}: a state that the policy visited itself`;
  if (method !== 'dpg') {
    throw new UsageError(
      `${visited} has no true noise that --method ${method} could learn. Use --method dpg with a reward, or leave the flag out.`,
    );
  }
  if (objective === 'official') {
    throw new UsageError(
      `${visited} is not known to the released code. Use --objective paper, or leave the flag out.`,
    );
  }
  if (settings.enableBucket) {
    throw new UsageError(
      `${visited} is a square, and --enable-bucket gives photographs other shapes. Leave one of them out.`,
    );
  }
  const rewards = completeRewards(settings.reward, settings.rewardCombination);
  if (rewards.every(({ kind }) => kind === 'look-forward')) {
    throw new UsageError(
      `${visited} has no photograph that it was noised from, so look-forward alone cannot reward it. Add a reward that looks at the picture, such as --reward clip-text:DIR or --reward dino:DIR.`,
    );
  }
  if (policyGradient && policyGradient !== 'reward' && rewards.some(({ kind }) => kind === 'look-forward')) {
    throw new UsageError(
      `--policy-gradient ${policyGradient}: with roll-outs no critic can learn look-forward, which says nothing of states that the policy visited. Leave the flag out, so that look-forward is followed straight.`,
    );
  }
}

function checkRewards(settings: PersonaliseSettings): void {
  const rewards = completeRewards(settings.reward, settings.rewardCombination);
  if (settings.method !== 'dpg') return;
  if (settings.objective === 'official' && !isLookForwardAlone(rewards)) {
    throw new UsageError(
      '--objective official: the released code knows the look-forward reward alone, without a weight. Leave --reward out, or use --objective paper.',
    );
  }
  const boxes = rewards.filter(isBlackBox).map((r) => r.name);
  if (settings.policyGradient === 'reward' && boxes.length > 0) {
    throw new UsageError(
      `--policy-gradient reward: ${boxes.join(', ')} has no gradient of its own, so the critic has to learn it. Leave the flag out, or use critic or both.`,
    );
  }
}

type NumberKey = {
  [K in keyof PersonaliseSettings]-?: PersonaliseSettings[K] extends number | undefined ? K : never;
}[keyof PersonaliseSettings];

interface Range {
  readonly keys: readonly NumberKey[];
  readonly expected: string;
  readonly holds: (value: number) => boolean;
}

const ranges: readonly Range[] = [
  {
    keys: [
      'steps',
      'rank',
      'numVectors',
      'numClassImages',
      'trainBatchSize',
      'gradientAccumulationSteps',
      'checkpointingSteps',
      'checkpointsTotalLimit',
      'numValidationImages',
      'samplingSteps',
      'validationSteps',
      'minBucketReso',
      'maxBucketReso',
      'bucketResoSteps',
      'numRollouts',
      'rolloutEvery',
      'rolloutSteps',
      'earlyStopping',
    ],
    expected: 'a whole number of at least 1',
    holds: (v) => Number.isInteger(v) && v >= 1,
  },
  {
    keys: ['lrWarmupSteps', 'seed'],
    expected: 'a whole number of at least 0',
    holds: (v) => Number.isSafeInteger(v) && v >= 0,
  },
  {
    keys: ['rewardTimeout', 'learningRate', 'loraAlpha', 'adamEpsilon', 'maxGradNorm', 'snrGamma'],
    expected: 'a number above 0',
    holds: (v) => Number.isFinite(v) && v > 0,
  },
  {
    keys: [
      'lambda',
      'priorLossWeight',
      'adamWeightDecay',
      'criticLearningRate',
      'guidanceScale',
      'noiseOffset',
    ],
    expected: 'a number of at least 0',
    holds: (v) => Number.isFinite(v) && v >= 0,
  },
  {
    keys: ['adamBeta1', 'adamBeta2', 'emaDecay'],
    expected: 'a number of at least 0 and below 1',
    holds: (v) => v >= 0 && v < 1,
  },
  { keys: ['gamma'], expected: 'a number above 0 and at most 1', holds: (v) => v > 0 && v <= 1 },
];

const flag = (key: string): string => `--${key.replace(/[A-Z]/g, (c) => `-${c.toLowerCase()}`)}`;

function checkRanges(settings: PersonaliseSettings): void {
  for (const { keys, expected, holds } of ranges) {
    for (const key of keys) {
      const value = settings[key];
      if (value !== undefined && !holds(value)) {
        throw new UsageError(`${flag(key)} ${value}: expected ${expected}.`);
      }
    }
  }
  const bucketing = (['minBucketReso', 'maxBucketReso', 'bucketResoSteps'] as const).find(
    (key) => settings[key] !== undefined,
  );
  if (!settings.enableBucket && bucketing !== undefined) {
    throw new UsageError(
      `${flag(bucketing)} is about buckets of one shape: add --enable-bucket, or leave it out.`,
    );
  }
  if (settings.earlyStopping !== undefined && settings.judges.length === 0) {
    throw new UsageError(
      '--early-stopping needs a judge to say what is better. Add --judge DIR, an image encoder that is none of the rewards, or leave it out.',
    );
  }
  if (settings.earlyStopping !== undefined && settings.validationSteps === undefined) {
    throw new UsageError(
      '--early-stopping counts validations, and there are none on the way. Add --validation-steps 50, or leave it out.',
    );
  }
  if (settings.method === 'dpg' && settings.snrGamma !== undefined) {
    throw new UsageError(
      '--snr-gamma weights the DreamBooth loss; DPG has its own discount (--gamma). Leave it out, or use --method dreambooth.',
    );
  }
}
