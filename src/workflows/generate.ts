import { mkdir, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { encodePng } from '../data/image-grid.js';
import type { Engine } from '../engine/engine.js';
import { createNodeEngine } from '../engine/node.js';
import { OutputError, RunError, UsageError } from '../errors.js';
import { outputError, writeFileAtomic } from '../formats/atomic-file.js';
import { isObject, type Json } from '../formats/json-config.js';
import { readSafetensorsFile } from '../formats/safetensors-file.js';
import { emaName } from '../optim/ema.js';
import { type LoraSettings, StableDiffusion } from '../pretrained/stable-diffusion.js';
import { TextToImage } from '../pretrained/text-to-image.js';
import type { Tensor } from '../tensor/tensor.js';
import { readCheckpoint } from '../training/checkpoint.js';
import type { TrainingListener } from '../training/events.js';
import { latestCheckpoint, readRunConfig, runFiles } from '../training/run-folder.js';
import { shippedModelPath } from './shipped.js';

export interface GenerateOptions {
  /** A run folder: its model and what it learnt. */
  readonly run?: string;
  /** A diffusers model folder, in place of a run, or in place of the run's own when that has moved. */
  readonly model?: string;
  readonly prompts: readonly string[];
  /** Pictures of each prompt. Default 1. */
  readonly numImages?: number;
  /** The folder for the pictures. */
  readonly output: string;
  /** Picture i of each prompt has the seed `seed + i`. Default 0. */
  readonly seed?: number;
  readonly negativePrompt?: string;
  readonly steps?: number;
  readonly guidanceScale?: number;
  readonly resolution?: number;
  readonly threads?: number;
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
  const learnt = options.run === undefined ? undefined : await readRun(options.run);
  const model = await StableDiffusion.open(options.model ?? learnt?.model ?? shippedModelPath());
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
  const first = await prepareFolder(output);
  const ownEngine = options.engine
    ? undefined
    : createNodeEngine(options.threads ? { threads: options.threads } : {});
  const engine = options.engine ?? ownEngine!;
  try {
    const requests = prompts.flatMap((prompt) =>
      Array.from({ length: numImages }, (_, i) => ({ prompt, seed: seed + i })),
    );
    const drawer = await TextToImage.create(model, engine, {
      resolution,
      batchSize: Math.min(4, requests.length),
      ...(learnt ? { lora: learnt.lora } : {}),
    });
    const state = learnt && (await engine.state(learnt.factors));
    const images = await drawer.draw(requests, {
      onProgress: (done, total) => onEvent?.({ kind: 'stage', name: 'drawing', done, total }),
      ...(options.steps === undefined ? {} : { steps: options.steps }),
      ...(options.guidanceScale === undefined ? {} : { guidanceScale: options.guidanceScale }),
      ...(options.negativePrompt === undefined ? {} : { negativePrompt: options.negativePrompt }),
      ...(state ? { state } : {}),
      ...(options.signal ? { signal: options.signal } : {}),
    });
    const paths: string[] = [];
    for (const [i, image] of images.entries()) {
      const path = join(output, `${String(first + i).padStart(4, '0')}-${slug(requests[i]!.prompt)}.png`);
      await writeFileAtomic(path, await encodePng(image));
      paths.push(path);
    }
    await drawer.release();
    await state?.release();
    return paths;
  } finally {
    await ownEngine?.close();
  }
}

interface Learnt {
  readonly model: string;
  readonly resolution: number;
  readonly lora: LoraSettings;
  readonly factors: ReadonlyMap<string, Tensor>;
}

/** What a run has learnt so far: its final LoRA, or that of its newest checkpoint while it is not finished. */
async function readRun(path: string): Promise<Learnt> {
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
  return { model: config.model, resolution: number('resolution'), lora, factors };
}

async function readFactors(
  path: string,
  lora: LoraSettings,
  averaged: boolean,
): Promise<Map<string, Tensor>> {
  const entry = await latestCheckpoint(path);
  if (!entry) {
    const { tensors } = await readSafetensorsFile(join(path, runFiles.lora)).catch((error: unknown) => {
      throw new RunError(`${path}: this run has neither a checkpoint nor a LoRA yet. Let it train further.`, {
        cause: error,
      });
    });
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
    /^(unet|text_encoder)\..*\.lora_[AB]\.weight$/.test(name),
  );
  return new Map(names.map((name) => [name, tensors.get(averaged ? emaName(name) : name)!]));
}

/** Makes the folder; gives the number that the next picture takes. */
async function prepareFolder(output: string): Promise<number> {
  await mkdir(output, { recursive: true }).catch((error: unknown) => {
    throw outputError(output, error);
  });
  const names = await readdir(output).catch((error: unknown) => {
    throw new OutputError(`${output}: the folder cannot be read.`, { cause: error });
  });
  const taken = names.flatMap((name) => /^(\d{4,})-/.exec(name)?.[1] ?? []).map(Number);
  return taken.length ? Math.max(...taken) + 1 : 0;
}

const slug = (prompt: string): string =>
  prompt
    .toLowerCase()
    .replace(/[^\p{L}\p{N}]+/gu, '-')
    .replace(/^-|-$/g, '')
    .slice(0, 60) || 'picture';
