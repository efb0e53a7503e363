import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { encodePng } from '../data/image-grid.js';
import { readSubjectPrompt, type SubjectPrompt, unnamedSubjectWarnings } from '../data/prompts.js';
import type { SchedulerName } from '../diffusion/scheduler-config.js';
import type { Device } from '../engine/device.js';
import type { Engine } from '../engine/engine.js';
import { ModelError, OutputError, RunError, UsageError } from '../errors.js';
import { slug } from '../evaluation/picture-folders.js';
import { writeFileAtomic } from '../formats/atomic-file.js';
import { isObject, type Json } from '../formats/json-config.js';
import { makeFolder } from '../formats/make-folder.js';
import { pathExists } from '../formats/path-exists.js';
import { readSafetensorsFile } from '../formats/safetensors-file.js';
import { emaName } from '../optim/ema.js';
import { type PredictionType, predictionTypes } from '../pretrained/architectures.js';
import { type AppliedLora, appliedLora, loraFromFactors, type WeightedLora } from '../pretrained/lora.js';
import type { LoraSettings, StableDiffusion } from '../pretrained/stable-diffusion.js';
import { drawnAtOnce, TextToImage } from '../pretrained/text-to-image.js';
import type { Variant } from '../pretrained/weights.js';
import type { Tensor } from '../tensor/tensor.js';
import { readCheckpoint } from '../training/checkpoint.js';
import type { TrainingListener } from '../training/events.js';
import { learntCheckpoint } from '../training/learnt-checkpoint.js';
import { readRunConfig, runFiles } from '../training/run-folder.js';
import { type BaseModelOptions, openBaseModel } from './base-model.js';
import { Cleanup } from './cleanup.js';
import { type LoraChoice, readLoras } from './lora-choice.js';
import { halfPrecisionWarnings } from './mixed-precision.js';
import { ownEngine } from './own-engine.js';

/** Without a `model`, the run's own is taken; with one, it stands in for it, which helps where a folder has moved. */
export interface GenerateOptions extends BaseModelOptions {
  /** A run folder: its model and what it learnt. */
  readonly run?: string;
  /** LoRA files to draw with, of any tool, one on top of the other and of what the run learnt. */
  readonly loras?: readonly LoraChoice[];
  readonly prompts: readonly string[];
  /** Pictures of each prompt. Default 1. */
  readonly numImages?: number;
  /** The folder for the pictures. */
  readonly output: string;
  /**
   * Picture i of each prompt is drawn from noise of its own with the seed `seed + i`: that of diffusers with
   * `generator=[torch.Generator("cpu").manual_seed(seed + i) for i in range(numImages)]`. Default 0.
   */
  readonly seed?: number;
  readonly negativePrompt?: string;
  readonly steps?: number;
  readonly guidanceScale?: number;
  /** The sampler; the model's own by default. */
  readonly scheduler?: SchedulerName;
  /** Whether the sampler's sigmas are spaced as Karras et al. do; as the model's files say by default. */
  readonly useKarrasSigmas?: boolean;
  readonly resolution?: number;
  readonly threads?: number;
  /** Where graphs run; the processor by default. */
  readonly device?: Device;
  readonly engine?: Engine;
  readonly onEvent?: TrainingListener;
  readonly signal?: AbortSignal;
}

/**
 * Draws pictures and writes them as PNG files named `<number>-<prompt>.png`, counting on from what the folder holds.
 *
 * @returns the files' paths
 */
export async function generate(options: GenerateOptions): Promise<string[]> {
  const { prompts, numImages = 1, output, seed = 0, onEvent } = options;
  if (prompts.length === 0)
    throw new UsageError(
      'There is no prompt to draw. Give one, for example --prompt "a sks backpack on the beach".',
    );
  if (!Number.isInteger(numImages) || numImages < 1) {
    throw new UsageError(`--num-images ${numImages}: expected a whole number of at least 1.`);
  }
  if (!Number.isSafeInteger(seed) || seed < 0) {
    throw new UsageError(`--seed ${seed}: expected a whole number of at least 0.`);
  }
  const learnt = options.run === undefined ? undefined : await readRun(options.run);
  const { model } = await openBaseModel({
    ...options,
    model: options.model ?? learnt?.model,
    variant: options.variant ?? learnt?.variant,
    predictionType: options.predictionType ?? learnt?.predictionType,
  });
  const { scheduler, useKarrasSigmas, mixedPrecision = 'no' } = options;
  for (const message of halfPrecisionWarnings(mixedPrecision, options.device)) {
    onEvent?.({ kind: 'warning', message });
  }
  model.scheduler.sampler({ scheduler, useKarrasSigmas });
  for (const prompt of prompts) {
    const { truncatedText } = model.tokenize(prompt);
    if (truncatedText !== undefined) {
      onEvent?.({
        kind: 'warning',
        message: `The prompt "${prompt}" is too long for the text encoder; this was cut off: "${truncatedText.trim()}".`,
      });
    }
  }
  const resolution = options.resolution ?? learnt?.resolution ?? model.resolution;
  if (learnt && options.run !== undefined) {
    requireFitting(model, learnt, options.run);
    const { subject } = learnt;
    for (const message of subject ? unnamedSubjectWarnings(prompts, subject) : []) {
      onEvent?.({ kind: 'warning', message });
    }
  }
  const applied = await chosenLora(model, learnt, options);
  const first = await prepareFolder(output);
  return Cleanup.after(async (cleanup) => {
    const engine = options.engine ?? ownEngine(cleanup, options);
    const requests = prompts.flatMap((prompt) =>
      Array.from({ length: numImages }, (_, i) => ({ prompt, seed: seed + i })),
    );
    const drawer = cleanup.release(
      await TextToImage.create(model, engine, {
        resolution,
        batchSize: Math.min(drawnAtOnce(resolution), requests.length),
        ...(applied && { lora: applied }),
      }),
    );
    const state = applied && cleanup.release(await engine.state(applied.state));
    const paths: string[] = [];
    const steps = options.steps ?? DEFAULT_STEPS;
    const total = Math.ceil(requests.length / drawer.batch) * steps;
    // Batch by batch, so that what is drawn is kept when the user stops.
    for (let start = 0; start < requests.length; start += drawer.batch) {
      const batch = requests.slice(start, start + drawer.batch);
      const before = (start / drawer.batch) * steps;
      const images = await drawer.draw(batch, {
        steps,
        scheduler,
        useKarrasSigmas,
        onProgress: (done) => onEvent?.({ kind: 'stage', name: 'drawing', done: before + done, total }),
        ...(options.guidanceScale === undefined ? {} : { guidanceScale: options.guidanceScale }),
        ...(options.negativePrompt === undefined ? {} : { negativePrompt: options.negativePrompt }),
        ...(state ? { state } : {}),
        ...(options.signal ? { signal: options.signal } : {}),
      });
      for (const [i, image] of images.entries()) {
        const number = String(first + start + i).padStart(4, '0');
        const path = join(output, `${number}-${slug(batch[i]!.prompt)}.png`);
        await writeFileAtomic(path, await encodePng(image));
        paths.push(path);
      }
    }
    return paths;
  });
}

const DEFAULT_STEPS = 30;

/** What the run learnt and the files together; undefined where there is neither. */
async function chosenLora(
  model: StableDiffusion,
  learnt: Learnt | undefined,
  { run, loras = [] }: GenerateOptions,
): Promise<AppliedLora | undefined> {
  const parts: WeightedLora[] = [];
  if (learnt !== undefined) {
    const lora = loraFromFactors(learnt.factors, learnt.lora.alpha);
    parts.push({ lora: model.fitLora(lora, run!), weight: 1 });
  }
  parts.push(...(await readLoras(loras, (lora, file) => model.fitLora(lora, file))));
  return parts.length === 0 ? undefined : appliedLora(parts);
}

/** @throws ModelError when what was learnt was learnt on another model. */
export function requireFitting(model: StableDiffusion, learnt: Learnt, run: string): void {
  for (const { input, shape } of model.loraSpecs(learnt.lora)) {
    const found = learnt.factors.get(input)?.shape;
    if (found?.join() !== shape.join()) {
      throw new ModelError(
        `${run}: what this run learnt does not fit ${model.folder.path}: ${input} is ${found ? `[${found.join(', ')}]` : 'missing'}, expected [${shape.join(', ')}]. Give the model that it was trained on (${learnt.model}).`,
      );
    }
  }
}

export interface Learnt {
  readonly model: string;
  readonly variant: Variant;
  readonly predictionType: PredictionType | undefined;
  readonly resolution: number;
  readonly lora: LoraSettings;
  readonly factors: ReadonlyMap<string, Tensor>;
  readonly subject: SubjectPrompt | undefined;
}

/** What a run has learnt so far: its final LoRA, or that of its newest checkpoint, or its best one where it may stop early. */
export async function readRun(path: string): Promise<Learnt> {
  const config = await readRunConfig(path);
  const { settings } = config;
  if (!isObject(settings) || typeof config.model !== 'string') {
    throw new RunError(
      `${join(path, runFiles.config)}: the settings of the run are missing. Was the file edited?`,
    );
  }
  const number = (key: string): number => {
    const value: Json | undefined = settings[key];
    if (typeof value !== 'number') {
      throw new RunError(
        `${join(path, runFiles.config)}: settings.${key} is ${JSON.stringify(value)}; expected a number.`,
      );
    }
    return value;
  };
  const lora: LoraSettings = {
    rank: number('rank'),
    alpha: number('loraAlpha'),
    textEncoder: settings.trainTextEncoder === true,
  };
  const factors = await readFactors(path, lora, settings.useEma === true);
  const { instancePrompt, classPrompt } = config;
  const subject =
    typeof instancePrompt === 'string' && typeof classPrompt === 'string'
      ? readSubjectPrompt({ instancePrompt, classPrompt })
      : undefined;
  const variant = config.variant === 'fp16' ? 'fp16' : 'full';
  const predictionType = predictionTypes.find((type) => type === config.predictionType);
  return {
    model: config.model,
    variant,
    predictionType,
    resolution: number('resolution'),
    lora,
    factors,
    subject,
  };
}

async function readFactors(
  path: string,
  lora: LoraSettings,
  averaged: boolean,
): Promise<Map<string, Tensor>> {
  const entry = await learntCheckpoint(path);
  if (!entry) {
    const file = join(path, runFiles.lora);
    if (!(await pathExists(file)))
      throw new RunError(`${path}: this run has neither a checkpoint nor a LoRA yet. Let it train further.`);
    const { tensors } = await readSafetensorsFile(file);
    // The file has alpha / rank folded in, which the graph would apply again.
    const scale = lora.alpha / lora.rank;
    return new Map(
      [...tensors].map(([name, t]) => [
        name,
        name.endsWith('.lora_B.weight') ? { ...t, data: (t.data as Float32Array).map((v) => v / scale) } : t,
      ]),
    );
  }
  const { tensors } = await readCheckpoint(entry.path);
  const names = [...tensors.keys()].filter((name) =>
    /^(unet|text_encoder(_2)?)\..*\.lora_[AB]\.weight$/.test(name),
  );
  return new Map(names.map((name) => [name, tensors.get(averaged ? emaName(name) : name)!]));
}

/** Makes the folder; gives the number that the next picture takes. */
async function prepareFolder(output: string): Promise<number> {
  await makeFolder(output);
  const names = await readdir(output).catch((error: unknown) => {
    throw new OutputError(`${output}: the folder cannot be read.`, { cause: error });
  });
  const taken = names.flatMap((name) => /^(\d{4,})-/.exec(name)?.[1] ?? []).map(Number);
  return taken.length ? Math.max(...taken) + 1 : 0;
}
