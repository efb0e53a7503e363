import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { encodePng } from '../data/image-grid.js';
import { unnamedSubjectWarnings } from '../data/prompts.js';
import type { SchedulerName } from '../diffusion/scheduler-config.js';
import type { Device } from '../engine/device.js';
import type { Engine } from '../engine/engine.js';
import { OutputError, UsageError } from '../errors.js';
import { slug } from '../evaluation/picture-folders.js';
import { writeFileAtomic } from '../formats/atomic-file.js';
import { makeFolder } from '../formats/make-folder.js';
import { type AppliedLora, appliedLora, loraFromFactors, type WeightedLora } from '../pretrained/lora.js';
import type { StableDiffusion } from '../pretrained/stable-diffusion.js';
import { drawnAtOnce, TextToImage } from '../pretrained/text-to-image.js';
import type { Tensor } from '../tensor/tensor.js';
import type { TrainingListener } from '../training/events.js';
import { type BaseModelOptions, openBaseModel } from './base-model.js';
import { Cleanup } from './cleanup.js';
import { type Learnt, putOnModel, readRunRecord, storedLearnt } from './learnt.js';
import { type LoraChoice, readLoras } from './lora-choice.js';
import { drawsInTurn } from './memory-estimate.js';
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
  const record = options.run === undefined ? undefined : await readRunRecord(options.run);
  const { model: base } = await openBaseModel({
    ...options,
    model: options.model ?? record?.model,
    variant: options.variant ?? record?.variant,
    predictionType: options.predictionType ?? record?.predictionType,
  });
  const learnt = record && (await putOnModel(record, await storedLearnt(record, base), base));
  const model = learnt?.model ?? base;
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
  const resolution = options.resolution ?? record?.resolution ?? model.resolution;
  for (const message of record?.subject ? unnamedSubjectWarnings(prompts, record.subject) : []) {
    onEvent?.({ kind: 'warning', message });
  }
  const applied = await chosenLora(model, learnt, options);
  const drawnWith = new Map<string, Tensor>([
    ...(learnt?.lora ? [] : (learnt?.state ?? [])),
    ...(applied?.state ?? []),
  ]);
  const first = await prepareFolder(output);
  return Cleanup.after(async (cleanup) => {
    const engine = options.engine ?? ownEngine(cleanup, options);
    const requests = prompts.flatMap((prompt) =>
      Array.from({ length: numImages }, (_, i) => ({ prompt, seed: seed + i })),
    );
    const drawn = {
      resolution,
      batchSize: Math.min(drawnAtOnce(resolution), requests.length),
      adaptation: applied ?? {},
    };
    const inTurn =
      (options.device ?? 'cpu') === 'cpu' &&
      drawsInTurn(model, { ...drawn, guided: options.guidanceScale !== 1 });
    const drawer = cleanup.release(await TextToImage.create(model, engine, { ...drawn, inTurn }));
    const state = cleanup.release(await engine.state(drawnWith));
    const paths: string[] = [];
    const steps = options.steps ?? DEFAULT_STEPS;
    const total = Math.ceil(requests.length / drawer.batch) * steps;
    // Part by part, so that what is drawn is kept when the user stops.
    for (let start = 0; start < requests.length; start += drawer.share) {
      const part = requests.slice(start, start + drawer.share);
      const before = (start / drawer.batch) * steps;
      const images = await drawer.draw(part, {
        steps,
        scheduler,
        useKarrasSigmas,
        onProgress: (done) => onEvent?.({ kind: 'stage', name: 'drawing', done: before + done, total }),
        ...(options.guidanceScale === undefined ? {} : { guidanceScale: options.guidanceScale }),
        ...(options.negativePrompt === undefined ? {} : { negativePrompt: options.negativePrompt }),
        state,
        ...(options.signal ? { signal: options.signal } : {}),
      });
      for (const [i, image] of images.entries()) {
        const number = String(first + start + i).padStart(4, '0');
        const path = join(output, `${number}-${slug(part[i]!.prompt)}.png`);
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
  if (learnt?.lora) {
    const lora = loraFromFactors(learnt.state, learnt.lora.alpha);
    parts.push({ lora: model.fitLora(lora, run!), weight: 1 });
  }
  parts.push(...(await readLoras(loras, (lora, file) => model.fitLora(lora, file))));
  return parts.length === 0 ? undefined : appliedLora(parts);
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
