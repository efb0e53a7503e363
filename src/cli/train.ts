import { Option } from 'commander';
import { devices } from '../engine/device.js';
import type { MemoryEstimate } from '../workflows/memory-estimate.js';
import { learningRates, personaliseDefaults, presets } from '../workflows/personalisation-settings.js';
import type { PersonaliseOptions } from '../workflows/personalise.js';
import { type CommandFactory, createCommand, requireFlags } from './command.js';
import { interruptible } from './interrupt.js';
import {
  choiceOption,
  mixedPrecisionOption,
  modelSourceOptions,
  numberOption,
  predictionTypeOption,
  repeatedOption,
  schedulerOption,
  switchOptions,
  textOption,
  wholeOption,
} from './option.js';
import { progressListener } from './progress.js';

type Personalise = (options: PersonaliseOptions) => Promise<{ readonly run: string }>;
type Estimate = (options: PersonaliseOptions) => Promise<MemoryEstimate>;

const EXAMPLE = 'portrayal train --images photos/ --prompt "a photo of sks backpack" --output runs/backpack';

/** Flags whose name is not that of the option it sets. */
const optionNames: Readonly<Record<string, keyof PersonaliseOptions>> = {
  pretrainedModelNameOrPath: 'model',
  instanceDataDir: 'images',
  outputDir: 'output',
  maxTrainSteps: 'steps',
  validationPrompt: 'validationPrompts',
  rolloutPrompt: 'rolloutPrompts',
  judge: 'judges',
  conceptsList: 'concepts',
};

const startPersonalise: Personalise = async (options) =>
  (await import('../workflows/personalise.js')).personalise(options);

const startEstimate: Estimate = async (options) =>
  (await import('../workflows/personalise.js')).estimatePersonalisation(options);

/** `portrayal train`: its flags are those of diffusers' DreamBooth script, with shorter names for the frequent ones. */
export const trainCommand: CommandFactory = (terminal) => createTrainCommand(terminal, startPersonalise);

/**
 * @param personalise is called with what the flags say
 * @param estimate is called in its place for --dry-run
 */
export function createTrainCommand(
  terminal: Parameters<CommandFactory>[0],
  personalise: Personalise,
  estimate: Estimate = startEstimate,
): ReturnType<CommandFactory> {
  const command = createCommand('train', terminal).usage('--images DIR --prompt TEXT --output DIR [FLAGS]');
  const d = personaliseDefaults;
  const rates = Object.entries(learningRates)
    .map(([what, rate]) => `${rate} for ${what}`)
    .join(', ');
  const add = (group: string, options: Parameters<typeof command.addOption>[0][]) => {
    for (const option of options) command.addOption(option.helpGroup(group));
  };
  add('The subject:', [
    textOption('--images, --instance-data-dir <path...>', 'Folder of three to six photographs, or the files'),
    textOption(
      '--prompt, --instance-prompt <text>',
      'Names the subject by a rare word: "a photo of sks backpack"',
    ),
    textOption('--class-prompt <text>', 'The same without the rare word (default: found from --prompt)'),
    textOption(
      '--concepts-list <file>',
      "Several subjects at once, in place of the above: a JSON list as diffusers' Custom Diffusion script takes it",
    ),
    ...switchOptions(
      '--captions',
      `Captions beside the pictures (dog.txt, metadata.jsonl) go before --prompt (default: ${onOff(d.captions)})`,
    ),
  ]);
  add('The model and the run:', [
    textOption(
      '--model, --pretrained-model-name-or-path <model>',
      'Model folder, single .safetensors file, or org/name of the Hugging Face hub (default: the shipped base)',
    ),
    ...modelSourceOptions(),
    predictionTypeOption(),
    textOption('--output, --output-dir <dir>', 'Run folder to write'),
    choiceOption(
      '--report-to <name>',
      `tensorboard: also write an event file for it; nothing is sent anywhere (default: ${d.reportTo})`,
      ['none', 'tensorboard'],
    ),
    textOption(
      '--resume-from-checkpoint <checkpoint>',
      'Go on with a stopped run: "latest", or a checkpoint of this run',
    ),
    wholeOption('--checkpointing-steps <n>', `Save every n steps (default: ${d.checkpointingSteps})`, {
      atLeast: 1,
    }),
    wholeOption('--checkpoints-total-limit <n>', 'Keep only the n newest checkpoints (default: all)', {
      atLeast: 1,
    }),
    wholeOption('--threads <n>', 'Processors to use (default: all)', { atLeast: 1 }),
    ...switchOptions('--memory-check', 'Refuse what the machine has not the memory for (default: on)'),
    new Option('--dry-run', 'Only check the input, and tell the memory that it would take'),
    choiceOption(
      '--device <name>',
      'cpu, cuda, webgpu, dml or coreml: the README says what each needs (default: cpu)',
      devices,
    ),
  ]);
  add('The method:', [
    choiceOption('--method <name>', `dpg or dreambooth (default: ${d.method})`, ['dpg', 'dreambooth']),
    repeatedOption(
      '--reward <reward>',
      'What dpg is rewarded for; may be given several times: look-forward, dino:DIR, clip-image:DIR, clip-text:DIR, embedding:DIR|FILE.onnx, onnx:FILE.onnx, jpeg-size, ./module.mjs, http://…, each with =WEIGHT and @GAMMA where wanted (default: look-forward)',
    ),
    choiceOption(
      '--reward-combination <kind>',
      `sum or harmonic: how several rewards become one (default: ${d.rewardCombination})`,
      ['sum', 'harmonic'],
    ),
    choiceOption(
      '--objective <name>',
      "official, the authors' code, for look-forward alone; or paper, for any rewards (default: official where it can be)",
      ['official', 'paper'],
    ),
    numberOption(
      '--lambda <x>',
      `Weight of the rewards against the denoising error, for paper (default: ${d.lambda})`,
      { atLeast: 0 },
    ),
    choiceOption(
      '--policy-gradient <way>',
      'critic, reward or both: through the critic or straight through the reward (default: straight where a reward has a gradient)',
      ['critic', 'reward', 'both'],
    ),
    choiceOption(
      '--critic-target <kind>',
      `return or reward: what the critic learns, for paper (default: ${d.criticTarget})`,
      ['return', 'reward'],
    ),
    numberOption(
      '--reward-timeout <seconds>',
      `How long a reward from outside may take for an answer (default: ${d.rewardTimeout})`,
      { above: 0 },
    ),
    choiceOption(
      '--on-reward-failure <what>',
      `stop, with everything saved, or skip the critic's turn (default: ${d.onRewardFailure})`,
      ['stop', 'skip'],
    ),
    choiceOption('--preset <name>', 'official: the settings of the published run', Object.keys(presets)),
    numberOption('--gamma <x>', `Discount of the reward per timestep (default: ${d.gamma})`, {
      above: 0,
      atMost: 1,
    }),
    numberOption(
      '--critic-learning-rate <x>',
      'Of the critic (default: 0.01 for official, by SGD; 0.001 for paper, by Adam)',
      {
        atLeast: 0,
      },
    ),
    numberOption('--snr-gamma <x>', 'Min-SNR weighting, for dreambooth (default: none)', { above: 0 }),
    ...switchOptions(
      '--with-prior-preservation',
      `Keep the class as it is (default: ${onOff(d.withPriorPreservation)})`,
    ),
    numberOption('--prior-loss-weight <x>', `Weight of the class pictures (default: ${d.priorLossWeight})`, {
      atLeast: 0,
    }),
    wholeOption('--num-class-images <n>', `Pictures of the class to draw (default: ${d.numClassImages})`, {
      atLeast: 1,
    }),
    textOption('--class-data-dir <dir>', 'Where class pictures are kept (default: in the run folder)'),
  ]);
  add('Where the states come from:', [
    numberOption(
      '--rollout-fraction <x>',
      `Share of the rows that are states which the model visits drawing by itself, not noised photographs (default: ${d.rolloutFraction})`,
      { atLeast: 0, atMost: 1 },
    ),
    repeatedOption(
      '--rollout-prompt <text>',
      'What it draws then; may be given several times (default: the subject in six scenes)',
    ),
    wholeOption('--num-rollouts <n>', `Pictures drawn at a time (default: ${d.numRollouts})`, { atLeast: 1 }),
    wholeOption('--rollout-every <n>', `Steps until they are drawn again (default: ${d.rolloutEvery})`, {
      atLeast: 1,
    }),
    wholeOption('--rollout-steps <n>', `Steps of the sampler for each (default: ${d.rolloutSteps})`, {
      atLeast: 1,
    }),
  ]);
  add('What learns:', [
    choiceOption(
      '--train <what>',
      `lora, full (all weights), custom-diffusion (cross-attention keys and values and a new word) or textual-inversion (a new word) (default: ${d.train})`,
      Object.keys(learningRates),
    ),
    repeatedOption(
      '--modifier-token <word>',
      'The new word of custom-diffusion, "<new1>"; once for each subject, or joined by +',
    ),
    textOption('--placeholder-token <word>', 'The new word of textual-inversion, "<toy>"'),
    repeatedOption(
      '--initializer-token <word>',
      'The word that a new one starts as (default: ktn, pll, ucd for custom-diffusion; the class for textual-inversion)',
    ),
    wholeOption(
      '--num-vectors <n>',
      `Tokens of the new word of textual-inversion (default: ${d.numVectors})`,
      {
        atLeast: 1,
      },
    ),
    ...switchOptions(
      '--save-model',
      `Write the whole model that full has made (default: ${onOff(d.saveModel)})`,
    ),
    wholeOption('--rank <n>', `Rank of the LoRA (default: ${d.rank})`, { atLeast: 1 }),
    numberOption('--lora-alpha <x>', 'Scale of the LoRA, times 1 / rank (default: the rank)', { above: 0 }),
    ...switchOptions(
      '--train-text-encoder',
      `The text encoder too, with lora and full (default: ${onOff(d.trainTextEncoder)})`,
    ),
    ...switchOptions(
      '--use-ema',
      `Keep the average of the weights over the steps (default: ${onOff(d.useEma)})`,
    ),
    numberOption('--ema-decay <x>', `Decay of that average (default: ${d.emaDecay})`, {
      atLeast: 0,
      below: 1,
    }),
  ]);
  add('Training:', [
    wholeOption('--steps, --max-train-steps <n>', `Training steps (default: ${d.steps})`, { atLeast: 1 }),
    numberOption('--learning-rate <x>', `Of AdamW, at its highest (default: ${rates})`, {
      above: 0,
    }),
    choiceOption('--lr-scheduler <name>', `constant, linear or cosine (default: ${d.lrScheduler})`, [
      'constant',
      'linear',
      'cosine',
    ]),
    wholeOption('--lr-warmup-steps <n>', `Steps until the full rate (default: ${d.lrWarmupSteps})`, {
      atLeast: 0,
    }),
    wholeOption('--train-batch-size <n>', `Photographs a step (default: ${d.trainBatchSize})`, {
      atLeast: 1,
    }),
    wholeOption(
      '--gradient-accumulation-steps <n>',
      `Batches a step (default: ${d.gradientAccumulationSteps})`,
      { atLeast: 1 },
    ),
    ...switchOptions(
      '--gradient-checkpointing',
      `Less memory, more time (default: ${onOff(d.gradientCheckpointing)})`,
    ),
    mixedPrecisionOption(
      `no or fp16: compute in half precision, on a graphics card (default: ${d.mixedPrecision})`,
    ),
    wholeOption('--resolution <pixels>', "Side of the pictures (default: the model's)", { atLeast: 1 }),
    ...switchOptions(
      '--center-crop',
      `The middle square; otherwise a random one (default: ${onOff(d.centerCrop)})`,
    ),
    ...switchOptions('--random-flip', `Mirror half of the pictures (default: ${onOff(d.randomFlip)})`),
    ...switchOptions(
      '--enable-bucket',
      `Pictures keep their aspect, in batches of one shape (default: ${onOff(d.enableBucket)})`,
    ),
    wholeOption('--min-bucket-reso <pixels>', 'Shortest side of a bucket (default: half the resolution)', {
      atLeast: 1,
    }),
    wholeOption('--max-bucket-reso <pixels>', 'Longest side of a bucket (default: twice the resolution)', {
      atLeast: 1,
    }),
    wholeOption(
      '--bucket-reso-steps <pixels>',
      'Sides of buckets are multiples of it (default: the least that the model takes)',
      { atLeast: 1 },
    ),
    ...switchOptions(
      '--cache-latents-to-disk',
      `A resumed run need not encode again (default: ${onOff(d.cacheLatentsToDisk)})`,
    ),
    textOption('--latent-cache-dir <dir>', 'Where latents are kept (default: in the run folder)'),
    numberOption('--noise-offset <x>', `Noise that a whole channel shares (default: ${d.noiseOffset})`, {
      atLeast: 0,
    }),
    wholeOption('--seed <n>', `The same seed gives the same run (default: ${d.seed})`, { atLeast: 0 }),
    numberOption('--adam-beta1 <x>', `AdamW: decay of the mean gradient (default: ${d.adamBeta1})`, {
      atLeast: 0,
      below: 1,
    }),
    numberOption('--adam-beta2 <x>', `AdamW: decay of its square (default: ${d.adamBeta2})`, {
      atLeast: 0,
      below: 1,
    }),
    numberOption(
      '--adam-weight-decay <x>',
      `AdamW: pull of the weights to zero (default: ${d.adamWeightDecay})`,
      { atLeast: 0 },
    ),
    numberOption('--adam-epsilon <x>', `AdamW: least denominator (default: ${d.adamEpsilon})`, { above: 0 }),
    numberOption('--max-grad-norm <x>', `Gradients are clipped to this norm (default: ${d.maxGradNorm})`, {
      above: 0,
    }),
  ]);
  add('Validation pictures:', [
    repeatedOption(
      '--validation-prompt <text>',
      'What to draw; may be given several times (default: the subject in six scenes)',
    ),
    wholeOption('--validation-steps <n>', 'Draw every n steps too (default: before and after only)', {
      atLeast: 1,
    }),
    repeatedOption(
      '--judge <dir>',
      'Image encoder that scores them and is no reward: a ViT or DINOv2 likeness, a CLIP the text too; may be given several times',
    ),
    wholeOption(
      '--early-stopping <n>',
      'Stop after n validations without a better score of the judges, and keep the best (default: never)',
      { atLeast: 1 },
    ),
    wholeOption('--num-validation-images <n>', `Pictures a prompt (default: ${d.numValidationImages})`, {
      atLeast: 1,
    }),
    wholeOption('--sampling-steps <n>', `Steps of the sampler (default: ${d.samplingSteps})`, { atLeast: 1 }),
    schedulerOption(),
    numberOption(
      '--guidance-scale <x>',
      `Classifier-free guidance; 1 is none (default: ${d.guidanceScale})`,
      { atLeast: 0 },
    ),
  ]);
  command.addHelpText('after', `\nFor example:\n  ${EXAMPLE}`);
  return command.action(async () => {
    const several = command.opts().conceptsList !== undefined;
    requireFlags(
      command,
      several ? ['outputDir'] : ['instanceDataDir', 'instancePrompt', 'outputDir'],
      EXAMPLE,
    );
    const { dryRun, ...flags } = command.opts();
    const listener = progressListener(terminal.err);
    if (dryRun) {
      const found = await estimate({ ...personaliseOptions(flags), onEvent: listener });
      terminal.out.write(describeEstimate(found));
      return;
    }
    const { run } = await interruptible(
      (message) => listener({ kind: 'warning', message }),
      'Finishing this step, then saving',
      (signal) => personalise({ ...personaliseOptions(flags), onEvent: listener, signal }),
    );
    terminal.err.write(`Draw with it:\n  portrayal generate --run ${run} --prompt "…" --output pictures/\n`);
  });
}

/** A line for each phase and each part of it that counts, in MiB. */
function describeEstimate({ phases, available }: MemoryEstimate): string {
  const line = (what: string, bytes: number): string =>
    `${String(Math.round(bytes / 2 ** 20)).padStart(8)} MiB  ${what}\n`;
  const told = phases.map(({ name, parts, total }) => {
    const large = [...parts].filter(({ bytes }) => bytes >= total / 50).sort((a, b) => b.bytes - a.bytes);
    return line(name, total) + large.map(({ what, bytes }) => line(`  ${what}`, bytes)).join('');
  });
  return `${told.join('')}${line('can be had', available)}`;
}

function onOff(value: boolean): string {
  return value ? 'on' : 'off';
}

/** What the flags say, in the words of the library. */
function personaliseOptions(flags: Readonly<Record<string, unknown>>): PersonaliseOptions {
  const named = Object.entries(flags).map(([flag, value]) => [optionNames[flag] ?? flag, value] as const);
  const options: Partial<Record<keyof PersonaliseOptions, unknown>> = Object.fromEntries(named);
  // A single path may be a folder; several are files.
  const images = options.images as readonly string[] | undefined;
  const list = (words: unknown): string[] => (words as readonly string[]).flatMap((word) => word.split('+'));
  return {
    ...options,
    ...(images ? { images: images.length === 1 ? images[0] : images } : {}),
    ...(options.modifierToken ? { modifierToken: list(options.modifierToken) } : {}),
    ...(options.initializerToken ? { initializerToken: list(options.initializerToken) } : {}),
  } as PersonaliseOptions;
}
