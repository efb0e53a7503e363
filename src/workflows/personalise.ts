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
  defaultScenes,
  type SubjectPrompt,
  scenePrompts,
  shownByAny,
  subjectName,
  unnamedSubjectWarnings,
} from '../data/prompts.js';
import { type ReferenceImage, type ReferenceImages, readReferenceImages } from '../data/reference-images.js';
import type { Device } from '../engine/device.js';
import type { Engine } from '../engine/engine.js';
import { UsageError } from '../errors.js';
import type { LoraDescription } from '../pretrained/lora-formats.js';
import type { StableDiffusion } from '../pretrained/stable-diffusion.js';
import { TextToImage } from '../pretrained/text-to-image.js';
import { startValue } from '../pretrained/trainable.js';
import { Random } from '../tensor/random.js';
import type { Tensor } from '../tensor/tensor.js';
import type { TrainingListener } from '../training/events.js';
import { LatentCache, LatentEncoder } from '../training/latent-cache.js';
import { LatentStore } from '../training/latent-store.js';
import { Personalisation, type RowText } from '../training/personalisation.js';
import { ReferenceCache, referencesOf } from '../training/reference-cache.js';
import { type RolloutSettings, Rollouts } from '../training/rollouts.js';
import { RunFolder, runFiles } from '../training/run-folder.js';
import { type BaseModelOptions, openBaseModel } from './base-model.js';
import { classImages } from './class-images.js';
import { Cleanup } from './cleanup.js';
import { type ConceptOptions, conceptSubject, newWords, readConcepts } from './concepts.js';
import { readEnvironment } from './environment.js';
import { estimateMemory, type MemoryEstimate, type MemoryNeeds, requireMemory } from './memory-estimate.js';
import { halfPrecisionWarnings } from './mixed-precision.js';
import { openRewards, outlineRewards } from './open-rewards.js';
import { ownEngine } from './own-engine.js';
import { completeSettings, type PersonaliseSettings, type PresetName } from './personalisation-settings.js';
import { completeRewards } from './reward-spec.js';
import { adjustableSettings, pixelDigests, runConfig } from './run-config.js';
import { writeRunReport } from './run-report.js';
import { openRunJudges, RunWatch } from './run-watch.js';
import { methodName, stepSettings } from './step-settings.js';
import { trainingKind } from './training-kind.js';
import { drawing, ValidationPictures } from './validation-pictures.js';

/** One concept by its pictures and prompts, or several as a list. */
export interface PersonaliseOptions extends Partial<PersonaliseSettings>, BaseModelOptions, ConceptOptions {
  /** The run folder to write. */
  readonly output: string;
  /** Where latents are kept; inside the run folder by default. Runs may share a folder. */
  readonly latentCacheDir?: string;
  readonly preset?: PresetName;
  /** "latest", or a checkpoint of this run. */
  readonly resumeFromCheckpoint?: string;
  /** Threads of the engine; all processors by default. The same number gives the same bytes. */
  readonly threads?: number;
  /** Where graphs run; the processor by default. */
  readonly device?: Device;
  /** Refuse to start what this machine has not the memory for, by an estimate. It is made in any case, since it says which programs take turns. Default true. */
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
  /**
   * What was learnt, as files for other tools. Of a LoRA that for diffusers and PEFT, then that for ComfyUI, AUTOMATIC1111 and Forge; of full training the model's folder,
   * if it was asked for; of Custom Diffusion the projections, then each word; of textual inversion the word.
   */
  readonly files: readonly string[];
  /** Of what is kept: all, or those of the best validation where the run could stop early. */
  readonly steps: number;
}

/** A concept, read. */
interface PreparedConcept {
  readonly subject: SubjectPrompt;
  readonly references: ReferenceImages;
  /** Of each picture. */
  readonly prompts: readonly string[];
  readonly classDataDir: string | undefined;
}

/** What is known before anything is written or compiled. */
async function prepare(options: PersonaliseOptions) {
  const settings = completeSettings(settingsOf(options), options.preset);
  const given = await readConcepts(options);
  const subjects = given.map((concept) => conceptSubject(concept, settings));
  const words = newWords(settings, subjects);
  const { model: base, located } = await openBaseModel({
    ...options,
    mixedPrecision: settings.mixedPrecision,
  });
  const model = base.withWords(words);
  const kind = trainingKind(settings, words);
  const resolution = settings.resolution ?? model.resolution;
  model.latentShape(resolution);
  model.scheduler.sampler(settings);
  const rollouts = rolloutSettings(model, settings, subjects);
  const cutTo = cutting(model, settings, resolution);
  const concepts: PreparedConcept[] = [];
  for (const [i, { images, classDataDir }] of given.entries()) {
    const subject = subjects[i]!;
    const references = await readReferenceImages(images, { resolution, captions: settings.captions, cutTo });
    const prompts = references.images.map(({ caption }) =>
      caption ? captionPrompt(caption, subject) : subject.instancePrompt,
    );
    concepts.push({ subject, references, prompts, classDataDir });
  }
  const images = concepts.flatMap(({ references }) => references.images);
  return {
    settings,
    /** Nothing but with rewards to follow. */
    rewardSpecs:
      settings.method === 'dpg' ? completeRewards(settings.reward, settings.rewardCombination) : [],
    concepts,
    subjects,
    words,
    model,
    located,
    kind,
    resolution,
    images,
    rollouts,
    sizes: images.map(cutTo),
    instancePrompts: concepts.flatMap(({ prompts }) => prompts),
  };
}

/** What to draw before and after where nothing else is asked for: each subject by itself and in scenes, and several together. */
function defaultPrompts(subjects: readonly SubjectPrompt[]): string[] {
  const [first] = subjects;
  if (subjects.length === 1) return [first!.instancePrompt, ...scenePrompts(first!)];
  const scenes = defaultScenes.slice(0, 2);
  return [
    ...subjects.flatMap((subject) => [subject.instancePrompt, ...scenePrompts(subject, scenes)]),
    `a photo of ${subjects.map((subject) => `a ${subjectName(subject)}`).join(' and ')}`,
  ];
}

type Prepared = Awaited<ReturnType<typeof prepare>>;

async function memoryNeeds({
  settings,
  rewardSpecs,
  kind,
  resolution,
  sizes,
}: Prepared): Promise<MemoryNeeds> {
  const rewards = await outlineRewards(rewardSpecs, { resolution, gamma: settings.gamma });
  return {
    step: stepSettings(settings, rewards, kind.trainable, resolution),
    sizes,
    guided: settings.guidanceScale !== 1,
    encodesOnce: settings.centerCrop,
  };
}

/** @throws EngineError when the machine has not the memory, unless that is not to be checked. */
async function estimateAndCheck(
  prepared: Prepared,
  { memoryCheck = true }: PersonaliseOptions,
): Promise<MemoryEstimate> {
  const needs = await memoryNeeds(prepared);
  const estimate = estimateMemory(prepared.model, needs);
  if (memoryCheck) requireMemory(prepared.model, needs, estimate);
  return estimate;
}

/**
 * What `personalise` would need of memory with these options. Nothing is compiled or written.
 *
 * @throws UsageError, InputError or ModelError, as `personalise` would.
 */
export async function estimatePersonalisation(options: PersonaliseOptions): Promise<MemoryEstimate> {
  const prepared = await prepare(options);
  return estimateMemory(prepared.model, await memoryNeeds(prepared));
}

/**
 * Teaches a model one subject from a few photographs: trains what is asked for, draws the subject before and after, and writes a run folder with everything in it.
 *
 * @throws UsageError, InputError, ModelError, RunError or OutputError for what the user can mend; EngineError when the machine has not the memory for it;
 *   DivergedError when training leaves the finite numbers;
 *   CancelledError when the signal is raised, with everything saved.
 */
export async function personalise(options: PersonaliseOptions): Promise<PersonaliseResult> {
  const { onEvent, signal } = options;
  const started = performance.now();
  const prepared = await prepare(options);
  const { settings, concepts, subjects, words, model, located, kind, resolution, images, sizes } = prepared;
  const { instancePrompts, rewardSpecs, rollouts } = prepared;
  const { trainable } = kind;
  const digests = await model.digests();
  const environment = readEnvironment(options);
  const prompts = settings.validationPrompts ?? defaultPrompts(subjects);
  const drawn = [...new Set([...prompts, ...(rollouts?.prompts ?? [])])];
  const warnings = [
    ...halfPrecisionWarnings(settings.mixedPrecision, options.device),
    ...concepts.flatMap(({ references }) => references.warnings),
    ...(subjects.length === 1 ? unnamedSubjectWarnings(drawn, subjects[0]!) : []),
    ...truncations(model, [...instancePrompts, ...subjects.map((s) => s.classPrompt), ...drawn]),
  ];
  const memory = (options.device ?? 'cpu') === 'cpu' ? await estimateAndCheck(prepared, options) : undefined;
  const inTurn = memory?.drawsInTurn ?? false;
  const judging = await openRunJudges(settings.judges, rewardSpecs);
  warnings.push(...judging.warnings);
  return Cleanup.after(async (cleanup) => {
    const engine = options.engine ?? ownEngine(cleanup, options);
    const rewards = await openRewards(
      rewardSpecs,
      {
        engine,
        resolution,
        gamma: settings.gamma,
        timeout: settings.rewardTimeout,
        texts: [...instancePrompts, ...(rollouts?.prompts ?? [])].map((p) => shownByAny(p, subjects)),
        onWarning: (message) => onEvent?.({ kind: 'warning', message }),
        ...(signal ? { stop: signal } : {}),
      },
      cleanup,
    );
    const run = await RunFolder.open(options.output, {
      config: {
        ...runConfig(located, options, digests, { subjects, words, resolution, settings, images }),
        ...(images.some(({ caption }) => caption) ? { captions: instancePrompts } : {}),
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
            subjects,
            prompts,
            photographs: images,
            ...(settings.earlyStopping === undefined ? {} : { patience: settings.earlyStopping }),
            ...(onEvent ? { onEvent } : {}),
          })
        : undefined;
    const earlyStopping = watch?.earlyStopping;
    const validation = new ValidationPictures(model, engine, run, {
      prompts,
      settings,
      resolution,
      trainable,
      inTurn,
      ...(watch ? { watch } : {}),
      ...(onEvent ? { onEvent } : {}),
      ...(signal ? { signal } : {}),
    });

    // What the base model draws comes first, and its programs go before training starts: a step needs the memory.
    const { priors, texts } = await Cleanup.after(async (drawn) => {
      const drawer = drawn.release(await TextToImage.create(model, engine, { resolution, inTurn }));
      // The base has no state but the rows that new words start as.
      const rows = new Map<string, Tensor>();
      for (const variable of model.variables({}))
        rows.set(variable.input, await startValue(variable, new Random(settings.seed, 'rows')));
      const base = drawn.release(await engine.state(rows));
      const priors: { image: ReferenceImage; concept: PreparedConcept }[] = [];
      for (const [i, concept] of settings.withPriorPreservation ? concepts.entries() : []) {
        const below =
          concepts.length === 1 ? runFiles.classImages : join(runFiles.classImages, String(i + 1));
        const pictures = await drawing(
          classImages(drawer, {
            folder: concept.classDataDir ?? join(run.path, below),
            model: digests,
            prompt: concept.subject.classPrompt,
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
        );
        for (const message of pictures.warnings) onEvent?.({ kind: 'warning', message });
        priors.push(...pictures.images.map((image) => ({ image, concept })));
      }
      await validation.draw(0, 'drawing before', async () => [drawer, base]);
      const read = async (prompt: string): Promise<RowText> => ({
        shows: shownByAny(prompt, subjects),
        embedding: await drawer.embed(prompt, base),
        tokens: model.tokenize(prompt).tokens,
      });
      const known = new Map<string, RowText>();
      const classes = subjects.map((s) => s.classPrompt);
      const trained = [...instancePrompts, ...classes, ...(rollouts?.prompts ?? [])];
      for (const prompt of new Set(trained)) known.set(prompt, await read(prompt));
      return {
        priors: priors.map(({ image }) => image),
        texts: {
          instances: instancePrompts.map((p) => known.get(p)!),
          priors: priors.map(({ concept }) => known.get(concept.subject.classPrompt)!),
          rollouts: rollouts?.prompts.map((p) => known.get(p)!),
        },
      };
    });

    const known = referencesOf(rewards);
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
    const rewardReferences = cleanup.release(new ReferenceCache(engine, images, known, view));
    const instanceLatents = new LatentCache(encoder, images, view);
    const priorLatents = priors.length > 0 ? new LatentCache(encoder, priors, view) : undefined;
    const states =
      rollouts &&
      new Rollouts(
        await TextToImage.create(model, engine, { resolution, adaptation: trainable }),
        rollouts,
        settings.seed,
        {
          onProgress: (done, total) => onEvent?.({ kind: 'stage', name: 'drawing roll-outs', done, total }),
          ...(signal ? { signal } : {}),
        },
      );
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
          ...(priorLatents ? { priors: { latents: priorLatents, texts: texts.priors } } : {}),
          ...(states && texts.rollouts ? { rollouts: { states, texts: texts.rollouts } } : {}),
          encodesAhead: memory?.encodesAhead ?? false,
          prompt: subjects[0]!.instancePrompt,
          priorDigest: pixelDigests(priors).join(' '),
          ...(earlyStopping ? { earlyStopping } : {}),
          validate: (step, learnt) => validation.drawWith(step, `drawing at step ${step}`, learnt),
          ...(onEvent ? { onEvent } : {}),
          ...(signal ? { signal } : {}),
        },
        stepSettings(settings, rewards, trainable, resolution),
      ),
    );
    onEvent?.({
      kind: 'started',
      folder: run.path,
      method: methodName(settings),
      fromStep: personalisation.fromStep,
      steps: settings.steps,
      images: images.length,
      trainableParameters: personalisation.trainableParameters,
    });
    const done = await personalisation.train();

    await personalisation.release();
    await validation.drawWith(done, 'drawing after', await personalisation.learntAt(done));
    const kept = earlyStopping?.best?.step ?? done;
    const files = await kind.save({
      folder: run.path,
      model,
      predictionType: options.predictionType,
      learnt: await personalisation.learntAt(kept),
      description: loraDescription(model, subjects[0]!, { ...settings, steps: kept }, resolution),
    });
    const course = earlyStopping ? stoppingNotes(done, kept, settings) : [watch?.decline ?? []].flat();
    for (const message of course) onEvent?.({ kind: 'warning', message });
    const [before, after] = [await validation.read(0), await validation.read(kept)];
    const seconds = (performance.now() - started) / 1000;
    const report = await writeRunReport({
      run,
      subjects,
      settings,
      model: located.identity,
      resolution,
      references: images,
      environment,
      samples: prompts.map((prompt, p) => ({ prompt, before: before[p]!, after: after[p]! })),
      trainableParameters: personalisation.trainableParameters,
      seconds,
      steps: { done, kept },
      notes: [...course, ...warnings, ...reportNotes(options.model === undefined)],
      usages: kind.usages(run.path),
    });
    onEvent?.({
      kind: 'finished',
      folder: run.path,
      steps: done,
      seconds,
      files: [...files, report],
    });
    return { run: run.path, report, files, steps: kept };
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
    concepts: _concepts,
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
  subjects: readonly SubjectPrompt[],
): RolloutSettings | undefined {
  if (settings.rolloutFraction === 0) return undefined;
  model.scheduler.sampler({ scheduler: 'ddim' });
  const { steps } = model.scheduler.schedule;
  if (settings.rolloutSteps > steps) {
    throw new UsageError(`--rollout-steps ${settings.rolloutSteps}: this model knows ${steps} noise levels.`);
  }
  return {
    prompts: settings.rolloutPrompts ?? subjects.flatMap((subject) => scenePrompts(subject)),
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
