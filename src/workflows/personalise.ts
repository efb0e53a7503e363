import { createHash } from 'node:crypto';
import { join } from 'node:path';
import {
  type BucketSettings,
  bucketSizes,
  nearestBucket,
  type PictureSize,
  squareOf,
} from '../data/aspect-buckets.js';
import type { RgbImage } from '../data/image-grid.js';
import {
  captionPrompt,
  readSubjectPrompt,
  type SubjectPrompt,
  scenePrompts,
  unnamedSubjectWarnings,
} from '../data/prompts.js';
import { type ReferenceImage, readReferenceImages } from '../data/reference-images.js';
import type { Device } from '../engine/device.js';
import type { Engine, State } from '../engine/engine.js';
import { CancelledError, UsageError } from '../errors.js';
import type { Json } from '../formats/json-config.js';
import { pathExists } from '../formats/path-exists.js';
import { adamw } from '../optim/adamw.js';
import { loraFromFactors } from '../pretrained/lora.js';
import { writeLoraFiles } from '../pretrained/lora-file.js';
import type { LoraDescription } from '../pretrained/lora-formats.js';
import type { LocatedModel } from '../pretrained/model-reference.js';
import type { LoraSettings, StableDiffusion } from '../pretrained/stable-diffusion.js';
import { TextToImage } from '../pretrained/text-to-image.js';
import type { WeightedReward } from '../rewards/reward.js';
import { type Tensor, zeros } from '../tensor/tensor.js';
import type { TrainingListener } from '../training/events.js';
import { LatentCache, LatentEncoder } from '../training/latent-cache.js';
import { LatentStore } from '../training/latent-store.js';
import { Personalisation, type PersonalisationSettings, type RowText } from '../training/personalisation.js';
import type { ObjectiveSettings } from '../training/personalisation-step.js';
import { ReferenceCache } from '../training/reference-cache.js';
import { RunFolder, runFiles } from '../training/run-folder.js';
import { type BaseModelOptions, openBaseModel } from './base-model.js';
import { classImages } from './class-images.js';
import { Cleanup } from './cleanup.js';
import { readEnvironment } from './environment.js';
import { estimateMemory, type MemoryEstimate, type MemoryNeeds, requireMemory } from './memory-estimate.js';
import { openRewards } from './open-rewards.js';
import { ownEngine } from './own-engine.js';
import {
  completeSettings,
  criticLearningRate,
  isOfficial,
  type PersonaliseSettings,
  type PresetName,
} from './personalisation-settings.js';
import { completeRewards, rewardsAsJson } from './reward-spec.js';
import { eventPictures, readSampleGrid, sampleGrid, writeRunReport } from './run-report.js';

export interface PersonaliseOptions extends Partial<PersonaliseSettings>, BaseModelOptions {
  /** A folder of three to six photographs of the subject, or a list of files. */
  readonly images: string | readonly string[];
  /** Names the subject by a rare token: "a photo of sks backpack". */
  readonly instancePrompt: string;
  /** The same without the token; found from the instance prompt when it is left out. */
  readonly classPrompt?: string;
  /** The run folder to write. */
  readonly output: string;
  /** Where class pictures are kept; inside the run folder by default. */
  readonly classDataDir?: string;
  /** Where latents are kept; inside the run folder by default. Runs may share a folder. */
  readonly latentCacheDir?: string;
  readonly preset?: PresetName;
  /** "latest", or a checkpoint of this run. */
  readonly resumeFromCheckpoint?: string;
  /** Threads of the engine; all processors by default. The same number gives the same bytes. */
  readonly threads?: number;
  /** Where graphs run; the processor by default. */
  readonly device?: Device;
  /** Refuse to start what this machine has not the memory for, by an estimate. Default true. */
  readonly memoryCheck?: boolean;
  /** Runs graphs; made and closed by this call when it is left out. */
  readonly engine?: Engine;
  readonly onEvent?: TrainingListener;
  /** Stops after the step in progress, with everything saved. */
  readonly signal?: AbortSignal;
}

export interface PersonaliseResult {
  /** The run folder. */
  readonly run: string;
  readonly report: string;
  /** The LoRA for diffusers and PEFT. */
  readonly lora: string;
  /** The LoRA for ComfyUI, AUTOMATIC1111 and Forge. */
  readonly kohyaLora: string;
  readonly steps: number;
}

/** What is known before anything is written or compiled. */
async function prepare(options: PersonaliseOptions) {
  const settings = completeSettings(settingsOf(options), options.preset);
  const subject = readSubjectPrompt(options);
  const { model, located } = await openBaseModel(options);
  const resolution = settings.resolution ?? model.resolution;
  model.latentShape(resolution);
  model.scheduler.sampler(settings);
  const cutTo = cutting(model, settings, resolution);
  const references = await readReferenceImages(options.images, {
    resolution,
    captions: settings.captions,
    cutTo,
  });
  const instancePrompts = references.images.map(({ caption }) =>
    caption ? captionPrompt(caption, subject) : subject.instancePrompt,
  );
  const sizes = references.images.map(cutTo);
  const lora: LoraSettings = {
    rank: settings.rank,
    alpha: settings.loraAlpha,
    textEncoder: settings.trainTextEncoder,
  };
  return { settings, subject, model, located, resolution, references, instancePrompts, sizes, lora };
}

type Prepared = Awaited<ReturnType<typeof prepare>>;

function memoryNeeds({ settings, lora, resolution, sizes }: Prepared): MemoryNeeds {
  // Rewards are opened later, since some need the engine: what they add, the decoder above all, is not in the estimate.
  const released =
    settings.method === 'dpg'
      ? { ...settings, reward: 'look-forward', objective: 'official' as const }
      : settings;
  return {
    step: stepSettings(released, [], lora, resolution),
    sizes,
    guided: settings.guidanceScale !== 1,
  };
}

/**
 * What `personalise` would need of memory with these options. Nothing is compiled or written.
 *
 * @throws UsageError, InputError or ModelError, as `personalise` would.
 */
export async function estimatePersonalisation(options: PersonaliseOptions): Promise<MemoryEstimate> {
  const prepared = await prepare(options);
  return estimateMemory(prepared.model, memoryNeeds(prepared));
}

/**
 * Teaches a model one subject from a few photographs: trains a LoRA, draws the subject before and after, and writes a run folder with everything in it.
 *
 * @throws UsageError, InputError, ModelError, RunError or OutputError for what the user can mend; EngineError when the machine has not the memory for it;
 *   DivergedError when training leaves the finite numbers;
 *   CancelledError when the signal is raised, with everything saved.
 */
export async function personalise(options: PersonaliseOptions): Promise<PersonaliseResult> {
  const { onEvent, signal } = options;
  const started = performance.now();
  const prepared = await prepare(options);
  const { settings, subject, model, located, resolution, references, instancePrompts, sizes, lora } =
    prepared;
  const digests = await model.digests();
  const environment = readEnvironment(options);
  const prompts = settings.validationPrompts ?? [subject.instancePrompt, ...scenePrompts(subject)];
  const warnings = [
    ...references.warnings,
    ...unnamedSubjectWarnings(prompts, subject),
    ...truncations(model, [...instancePrompts, subject.classPrompt, ...prompts]),
  ];
  if (options.memoryCheck !== false && (options.device ?? 'cpu') === 'cpu') {
    requireMemory(model, memoryNeeds(prepared));
  }
  return Cleanup.after(async (cleanup) => {
    const engine = options.engine ?? ownEngine(cleanup, options);
    const rewards =
      settings.method === 'dpg'
        ? await openRewards(
            completeRewards(settings.reward, settings.rewardCombination),
            {
              engine,
              resolution,
              gamma: settings.gamma,
              timeout: settings.rewardTimeout,
              classPrompt: subject.classPrompt,
              onWarning: (message) => onEvent?.({ kind: 'warning', message }),
              ...(signal ? { stop: signal } : {}),
            },
            cleanup,
          )
        : [];
    const run = await RunFolder.open(options.output, {
      config: {
        ...runConfig(located, options, digests, subject, resolution, settings, references.images),
        ...(references.images.some(({ caption }) => caption) ? { captions: instancePrompts } : {}),
      },
      adjustable: adjustableSettings,
      environment: { ...environment },
      tensorboard: settings.reportTo === 'tensorboard',
      ...(options.resumeFromCheckpoint === undefined
        ? {}
        : { resumeFromCheckpoint: options.resumeFromCheckpoint }),
      ...(settings.checkpointsTotalLimit === undefined
        ? {}
        : { checkpointsTotalLimit: settings.checkpointsTotalLimit }),
    });
    cleanup.defer(() => run.close());
    for (const message of [...warnings, ...run.warnings]) onEvent?.({ kind: 'warning', message });
    const draw = async (drawer: TextToImage, state: State, name: string): Promise<RgbImage[][]> => {
      const requests = prompts.flatMap((prompt) =>
        Array.from({ length: settings.numValidationImages }, (_, i) => ({ prompt, seed: settings.seed + i })),
      );
      const drawn = await drawing(
        drawer.draw(requests, {
          steps: settings.samplingSteps,
          scheduler: settings.scheduler,
          guidanceScale: settings.guidanceScale,
          state,
          onProgress: (done, total) => onEvent?.({ kind: 'stage', name, done, total }),
          ...(signal ? { signal } : {}),
        }),
      );
      return prompts.map((_, p) =>
        drawn.slice(p * settings.numValidationImages, (p + 1) * settings.numValidationImages),
      );
    };

    const pathOf = (step: number): string => join(run.path, runFiles.samples, gridName(step));
    const readPictures = (step: number) =>
      readSampleGrid(pathOf(step), prompts.length, settings.numValidationImages);
    /** The pictures of a step, as a grid among the samples and for TensorBoard; what is there already is not drawn again. */
    const validate = async (step: number, name: string, drawer: () => Promise<[TextToImage, State]>) => {
      if (!(await pathExists(pathOf(step)))) {
        const grid = await sampleGrid(await draw(...(await drawer()), name));
        await run.writeSample(gridName(step), grid);
        onEvent?.({ kind: 'samples', step, path: pathOf(step) });
      }
      if (run.tensorboard && !run.tensorboard.hasPictures(step)) {
        await run.tensorboard.appendPictures(step, await eventPictures(prompts, await readPictures(step)));
      }
    };
    const drawWith =
      (factors: ReadonlyMap<string, Tensor>, drawn: Cleanup) => async (): Promise<[TextToImage, State]> => [
        drawn.release(await TextToImage.create(model, engine, { resolution, lora })),
        drawn.release(await engine.state(factors)),
      ];

    // What the base model draws comes first, and its programs go before training starts: a step needs the memory.
    const { priors, texts } = await Cleanup.after(async (drawn) => {
      const drawer = drawn.release(await TextToImage.create(model, engine, { resolution, lora }));
      const base = drawn.release(
        await engine.state(
          new Map<string, Tensor>(model.loraSpecs(lora).map((s) => [s.input, zeros(s.shape)])),
        ),
      );
      const pictures = settings.withPriorPreservation
        ? await drawing(
            classImages(drawer, {
              folder: options.classDataDir ?? join(run.path, runFiles.classImages),
              model: digests,
              prompt: subject.classPrompt,
              count: settings.numClassImages,
              seed: settings.seed,
              steps: settings.samplingSteps,
              scheduler: settings.scheduler,
              guidanceScale: settings.guidanceScale,
              resolution,
              state: base,
              ...(onEvent ? { onEvent } : {}),
              ...(signal ? { signal } : {}),
            }),
          )
        : undefined;
      for (const message of pictures?.warnings ?? []) onEvent?.({ kind: 'warning', message });
      await validate(0, 'drawing before', async () => [drawer, base]);
      const read = async (prompt: string) => ({
        embedding: await drawer.embed(prompt, base),
        tokens: model.tokenize(prompt).tokens,
      });
      const known = new Map<string, RowText>();
      for (const prompt of new Set([...instancePrompts, subject.classPrompt])) {
        known.set(prompt, await read(prompt));
      }
      return {
        priors: pictures?.images,
        texts: {
          instances: instancePrompts.map((p) => known.get(p)!),
          class: known.get(subject.classPrompt)!,
        },
      };
    });

    const known = new Map(
      rewards.flatMap(({ reward }) =>
        reward.kind === 'graph' && reward.reference ? [[reward.name, reward.reference] as const] : [],
      ),
    );
    const encoder = cleanup.release(new LatentEncoder(model, engine));
    const { onnxruntime, sharp, device, threads } = environment;
    const store =
      settings.cacheLatentsToDisk && settings.centerCrop
        ? await LatentStore.open(
            options.latentCacheDir ?? join(run.path, runFiles.latents),
            { vae: digests.vae!, onnxruntime, sharp, device, threads },
            ({ width, height }) => model.latentShape(width, height),
          )
        : undefined;
    const view = {
      randomCrop: !settings.centerCrop,
      randomFlip: settings.randomFlip,
      ...(store ? { store } : {}),
    };
    const rewardReferences = cleanup.release(new ReferenceCache(engine, references.images, known, view));
    const instanceLatents = new LatentCache(encoder, references.images, view);
    const priorLatents = priors && new LatentCache(encoder, priors, view);
    const personalisation = cleanup.release(
      await Personalisation.create(
        {
          model,
          engine,
          run,
          instances: {
            latents: instanceLatents,
            references: rewardReferences,
            texts: texts.instances,
            sizes,
          },
          ...(priorLatents ? { priors: { latents: priorLatents, text: texts.class } } : {}),
          prompt: subject.instancePrompt,
          priorDigest: priors ? pixelDigests(priors).join(' ') : '',
          validate: (step, factors) =>
            Cleanup.after((drawn) => validate(step, `drawing at step ${step}`, drawWith(factors, drawn))),
          ...(onEvent ? { onEvent } : {}),
          ...(signal ? { signal } : {}),
        },
        stepSettings(settings, rewards, lora, resolution),
      ),
    );
    onEvent?.({
      kind: 'started',
      folder: run.path,
      method: methodName(settings),
      fromStep: personalisation.fromStep,
      steps: settings.steps,
      images: references.images.length,
      trainableParameters: personalisation.trainableParameters,
    });
    await personalisation.train();

    const factors = await personalisation.factors();
    const files = await writeLoraFiles(
      run.path,
      loraFromFactors(factors, settings.loraAlpha),
      loraDescription(model, subject, settings, resolution),
    );
    await personalisation.release();
    await validate(settings.steps, 'drawing after', drawWith(factors, cleanup));
    const [before, after] = [await readPictures(0), await readPictures(settings.steps)];
    const seconds = (performance.now() - started) / 1000;
    const report = await writeRunReport({
      run,
      subject,
      settings,
      model: located.identity,
      resolution,
      references: references.images,
      environment,
      samples: prompts.map((prompt, p) => ({ prompt, before: before[p]!, after: after[p]! })),
      trainableParameters: personalisation.trainableParameters,
      seconds,
      notes: [...warnings, ...reportNotes(options.model === undefined)],
    });
    onEvent?.({
      kind: 'finished',
      folder: run.path,
      steps: settings.steps,
      seconds,
      files: [...files, report],
    });
    return { run: run.path, report, lora: files[0]!, kohyaLora: files[1]!, steps: settings.steps };
  });
}

/** What a resumed run may change: what one would turn after a run went astray, or to go on longer; the model's place, as its digests tell which one it is. */
const adjustableSettings = [
  'learningRate',
  'lrScheduler',
  'lrWarmupSteps',
  'criticLearningRate',
  'maxGradNorm',
  'rewardTimeout',
  'onRewardFailure',
  'steps',
  'checkpointingSteps',
  'cacheLatentsToDisk',
  'validationSteps',
  'reportTo',
]
  .map((key) => `settings.${key}`)
  .concat('model');

/** Pictures that are being drawn when the user stops have no state of their own to save; what is drawn already is kept. */
function drawing<T>(work: Promise<T>): Promise<T> {
  return work.catch((error: unknown) => {
    if (!(error instanceof CancelledError)) throw error;
    throw new CancelledError(
      'Stopped while drawing pictures. What is done is kept; the same command with --resume-from-checkpoint latest goes on from there.',
      { cause: error },
    );
  });
}

/** The settings among the options. */
function settingsOf(options: PersonaliseOptions): Partial<PersonaliseSettings> {
  const {
    model: _model,
    variant: _variant,
    offline: _offline,
    predictionType: _prediction,
    images: _images,
    instancePrompt: _instance,
    classPrompt: _class,
    output: _output,
    classDataDir: _classData,
    latentCacheDir: _latentCache,
    preset: _preset,
    resumeFromCheckpoint: _resume,
    threads: _threads,
    device: _device,
    memoryCheck: _memoryCheck,
    engine: _engine,
    onEvent: _onEvent,
    signal: _signal,
    ...settings
  } = options;
  return settings;
}

/** What size a photograph is brought to: a square, or the bucket that is nearest to its aspect. @throws UsageError for buckets that the model cannot take. */
function cutting(
  model: StableDiffusion,
  settings: PersonaliseSettings,
  resolution: number,
): (picture: PictureSize) => PictureSize {
  if (!settings.enableBucket) return () => squareOf(resolution);
  const step = settings.bucketResoSteps ?? model.granularity;
  if (step % model.granularity !== 0) {
    throw new UsageError(
      `--bucket-reso-steps ${step}: this model takes multiples of ${model.granularity} pixels.`,
    );
  }
  const buckets: BucketSettings = {
    resolution,
    shortest: settings.minBucketReso ?? resolution / 2,
    longest: settings.maxBucketReso ?? resolution * 2,
    step,
  };
  const sizes = bucketSizes(buckets);
  return (picture) => nearestBucket(sizes, picture);
}

/** "dpg, look-forward reward" */
function methodName(settings: PersonaliseSettings): string {
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

function stepSettings(
  settings: PersonaliseSettings,
  rewards: readonly WeightedReward[],
  lora: LoraSettings,
  resolution: number,
): PersonalisationSettings {
  return {
    objective: objectiveSettings(settings, rewards),
    onRewardFailure: settings.onRewardFailure,
    priorLossWeight: settings.priorLossWeight,
    lora,
    instances: settings.trainBatchSize,
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

/** All that is needed to repeat the run, and to notice when something else is asked for. Pictures count by their pixels, not by their place. */
function runConfig(
  located: LocatedModel,
  { variant, predictionType }: BaseModelOptions,
  digests: Readonly<Record<string, string>>,
  subject: SubjectPrompt,
  resolution: number,
  settings: PersonaliseSettings,
  images: readonly ReferenceImage[],
): Record<string, Json> {
  const { checkpointsTotalLimit: _limit, reward, ...rest } = settings;
  const kept = { ...rest, reward: rewardsAsJson(completeRewards(reward, settings.rewardCombination)) };
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

function pixelDigests(images: readonly ReferenceImage[]): string[] {
  return images.map((image) => createHash('sha256').update(image.pixels).digest('hex').slice(0, 16));
}

function truncations(model: StableDiffusion, prompts: readonly string[]): string[] {
  return [...new Set(prompts)].flatMap((prompt) => {
    const { truncatedText } = model.tokenize(prompt);
    return truncatedText === undefined
      ? []
      : [
          `The prompt "${prompt}" is longer than the ${model.promptLength - 2} tokens that the text encoder reads; this was cut off: "${truncatedText.trim()}".`,
        ];
  });
}

function loraDescription(
  model: StableDiffusion,
  subject: SubjectPrompt,
  settings: PersonaliseSettings,
  resolution: number,
): LoraDescription {
  return {
    title: `${subject.token} ${subject.className}`,
    base: model.family,
    prediction: model.scheduler.schedule.predictionType,
    resolution,
    triggerPhrase: subject.token,
    steps: settings.steps,
    learningRate: settings.learningRate,
  };
}

function reportNotes(shipped: boolean): string[] {
  const notes = [
    'Left and right of a row were drawn with the same prompt from the same noise; nothing was picked by hand.',
  ];
  if (shipped) {
    notes.push(
      'The shipped base is a small model of a world of drawings, 64 pixels wide. It shows that the method works and runs anywhere; for photographs, give a Stable Diffusion folder with --model.',
    );
  }
  return notes;
}

const gridName = (step: number): string => `step-${String(step).padStart(6, '0')}.png`;
