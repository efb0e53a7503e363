import { join } from 'node:path';
import {
  type BucketSettings,
  bucketSizes,
  nearestBucket,
  type PictureSize,
  squareOf,
} from '../data/aspect-buckets.js';
import {
  captionPrompt,
  readSubjectPrompt,
  type SubjectPrompt,
  scenePrompts,
  shownBy,
  unnamedSubjectWarnings,
} from '../data/prompts.js';
import { readReferenceImages } from '../data/reference-images.js';
import type { Device } from '../engine/device.js';
import type { Engine } from '../engine/engine.js';
import { UsageError } from '../errors.js';
import { loraFromFactors } from '../pretrained/lora.js';
import { writeLoraFiles } from '../pretrained/lora-file.js';
import type { LoraDescription } from '../pretrained/lora-formats.js';
import type { LoraSettings, StableDiffusion } from '../pretrained/stable-diffusion.js';
import { TextToImage } from '../pretrained/text-to-image.js';
import { type Tensor, zeros } from '../tensor/tensor.js';
import type { TrainingListener } from '../training/events.js';
import { LatentCache, LatentEncoder } from '../training/latent-cache.js';
import { LatentStore } from '../training/latent-store.js';
import { Personalisation, type RowText } from '../training/personalisation.js';
import { ReferenceCache } from '../training/reference-cache.js';
import { type RolloutSettings, Rollouts } from '../training/rollouts.js';
import { RunFolder, runFiles } from '../training/run-folder.js';
import { type BaseModelOptions, openBaseModel } from './base-model.js';
import { classImages } from './class-images.js';
import { Cleanup } from './cleanup.js';
import { readEnvironment } from './environment.js';
import { estimateMemory, type MemoryEstimate, type MemoryNeeds, requireMemory } from './memory-estimate.js';
import { halfPrecisionWarnings } from './mixed-precision.js';
import { openRewards } from './open-rewards.js';
import { ownEngine } from './own-engine.js';
import { completeSettings, type PersonaliseSettings, type PresetName } from './personalisation-settings.js';
import { completeRewards } from './reward-spec.js';
import { adjustableSettings, pixelDigests, runConfig } from './run-config.js';
import { writeRunReport } from './run-report.js';
import { openRunJudges, RunWatch } from './run-watch.js';
import { methodName, stepSettings } from './step-settings.js';
import { drawing, ValidationPictures } from './validation-pictures.js';

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
  /** Of what is kept: all, or those of the best validation where the run could stop early. */
  readonly steps: number;
}

/** What is known before anything is written or compiled. */
async function prepare(options: PersonaliseOptions) {
  const settings = completeSettings(settingsOf(options), options.preset);
  const subject = readSubjectPrompt(options);
  const { model, located } = await openBaseModel({ ...options, mixedPrecision: settings.mixedPrecision });
  const resolution = settings.resolution ?? model.resolution;
  model.latentShape(resolution);
  model.scheduler.sampler(settings);
  const rollouts = rolloutSettings(model, settings, subject);
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
  return {
    settings,
    subject,
    model,
    located,
    resolution,
    references,
    instancePrompts,
    sizes,
    lora,
    rollouts,
  };
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
  const { settings, subject, model, located, resolution, references } = prepared;
  const { instancePrompts, sizes, lora, rollouts } = prepared;
  const digests = await model.digests();
  const environment = readEnvironment(options);
  const prompts = settings.validationPrompts ?? [subject.instancePrompt, ...scenePrompts(subject)];
  const drawn = [...new Set([...prompts, ...(rollouts?.prompts ?? [])])];
  const warnings = [
    ...references.warnings,
    ...halfPrecisionWarnings(settings.mixedPrecision, options.device),
    ...unnamedSubjectWarnings(drawn, subject),
    ...truncations(model, [...instancePrompts, subject.classPrompt, ...drawn]),
  ];
  if (options.memoryCheck !== false && (options.device ?? 'cpu') === 'cpu') {
    requireMemory(model, memoryNeeds(prepared));
  }
  const judging = await openRunJudges(
    settings.judges,
    settings.method === 'dpg' ? completeRewards(settings.reward, settings.rewardCombination) : [],
  );
  warnings.push(...judging.warnings);
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
              texts: [...instancePrompts, ...(rollouts?.prompts ?? [])].map((p) => shownBy(p, subject)),
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
    const { judges } = judging;
    const watch =
      judges.length > 0 || settings.validationSteps !== undefined
        ? await RunWatch.open(run, {
            engine,
            judges,
            subject,
            prompts,
            photographs: references.images,
            ...(settings.earlyStopping === undefined ? {} : { patience: settings.earlyStopping }),
            ...(onEvent ? { onEvent } : {}),
          })
        : undefined;
    const earlyStopping = watch?.earlyStopping;
    const validation = new ValidationPictures(model, engine, run, {
      prompts,
      settings,
      resolution,
      lora,
      ...(watch ? { watch } : {}),
      ...(onEvent ? { onEvent } : {}),
      ...(signal ? { signal } : {}),
    });

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
      await validation.draw(0, 'drawing before', async () => [drawer, base]);
      const read = async (prompt: string): Promise<RowText> => ({
        shows: shownBy(prompt, subject),
        embedding: await drawer.embed(prompt, base),
        tokens: model.tokenize(prompt).tokens,
      });
      const known = new Map<string, RowText>();
      const trained = [...instancePrompts, subject.classPrompt, ...(rollouts?.prompts ?? [])];
      for (const prompt of new Set(trained)) known.set(prompt, await read(prompt));
      return {
        priors: pictures?.images,
        texts: {
          instances: instancePrompts.map((p) => known.get(p)!),
          class: known.get(subject.classPrompt)!,
          rollouts: rollouts?.prompts.map((p) => known.get(p)!),
        },
      };
    });

    const known = new Map(
      rewards.flatMap(({ reward }) =>
        reward.kind === 'graph' && reward.reference?.of === 'photograph'
          ? [[reward.name, reward.reference.build] as const]
          : [],
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
    const states =
      rollouts &&
      new Rollouts(await TextToImage.create(model, engine, { resolution, lora }), rollouts, settings.seed, {
        onProgress: (done, total) => onEvent?.({ kind: 'stage', name: 'drawing roll-outs', done, total }),
        ...(signal ? { signal } : {}),
      });
    if (states) cleanup.release(states);
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
          ...(states && texts.rollouts ? { rollouts: { states, texts: texts.rollouts } } : {}),
          prompt: subject.instancePrompt,
          priorDigest: priors ? pixelDigests(priors).join(' ') : '',
          ...(earlyStopping ? { earlyStopping } : {}),
          validate: (step, factors) => validation.drawWith(step, `drawing at step ${step}`, factors),
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
    const done = await personalisation.train();

    const factors = await personalisation.factors();
    const write = (learnt: ReadonlyMap<string, Tensor>, steps: number): Promise<string[]> =>
      writeLoraFiles(
        run.path,
        loraFromFactors(learnt, settings.loraAlpha),
        loraDescription(model, subject, { ...settings, steps }, resolution),
      );
    let files = await write(factors, done);
    await personalisation.release();
    await validation.drawWith(done, 'drawing after', factors);
    const kept = earlyStopping?.best?.step ?? done;
    if (kept !== done) files = await write(await personalisation.factorsAt(kept), kept);
    const course = earlyStopping ? stoppingNotes(done, kept, settings) : [watch?.decline ?? []].flat();
    for (const message of course) onEvent?.({ kind: 'warning', message });
    const [before, after] = [await validation.read(0), await validation.read(kept)];
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
      steps: { done, kept },
      notes: [...course, ...warnings, ...reportNotes(options.model === undefined)],
    });
    onEvent?.({
      kind: 'finished',
      folder: run.path,
      steps: done,
      seconds,
      files: [...files, report],
    });
    return { run: run.path, report, lora: files[0]!, kohyaLora: files[1]!, steps: kept };
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

/** How roll-outs are drawn, where there are any. @throws UsageError or ModelError when the model's noise schedule does not allow it. */
function rolloutSettings(
  model: StableDiffusion,
  settings: PersonaliseSettings,
  subject: SubjectPrompt,
): RolloutSettings | undefined {
  if (settings.rolloutFraction === 0) return undefined;
  model.scheduler.sampler({ scheduler: 'ddim' });
  const { steps } = model.scheduler.schedule;
  if (settings.rolloutSteps > steps) {
    throw new UsageError(`--rollout-steps ${settings.rolloutSteps}: this model knows ${steps} noise levels.`);
  }
  return {
    prompts: settings.rolloutPrompts ?? scenePrompts(subject),
    count: settings.numRollouts,
    every: settings.rolloutEvery,
    samplingSteps: settings.rolloutSteps,
    guidanceScale: settings.guidanceScale,
  };
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

/** What early stopping has come to. */
function stoppingNotes(done: number, kept: number, settings: PersonaliseSettings): string[] {
  const { steps, earlyStopping: patience } = settings;
  const best =
    kept === done
      ? `The judges' score was best at the end, step ${done}: those weights are what is saved.`
      : `The judges' score was best at step ${kept}: the weights of that step are what is saved, and "after" was drawn with them.`;
  if (done === steps) return [best];
  return [
    `Stopped early, after step ${done} of ${steps}: ${patience} ${patience === 1 ? 'validation' : 'validations'} in a row brought nothing better. ${best}`,
  ];
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
