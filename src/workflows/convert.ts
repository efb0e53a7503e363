import { stat } from 'node:fs/promises';
import { basename } from 'node:path';
import { UsageError } from '../errors.js';
import { writeFolderAtomic } from '../formats/atomic-folder.js';
import { makingNew } from '../formats/new-path.js';
import type { SafetensorsContents } from '../formats/safetensors.js';
import {
  readSafetensorsFile,
  writeSafetensorsFile,
  writeTensorStreams,
} from '../formats/safetensors-file.js';
import type { ModelFamily } from '../pretrained/architectures.js';
import { type Lora, loraFamily } from '../pretrained/lora.js';
import { diffusersContents, kohyaContents, parseLora, peftContents } from '../pretrained/lora-formats.js';
import { inPrecision, inSourcePrecision, type SavePrecision } from '../pretrained/lora-precision.js';
import { writeModelFolder } from '../pretrained/model-folder-writer.js';
import { openModel } from '../pretrained/open-model.js';
import { readSingleFile } from '../pretrained/single-file.js';
import { singleFileContents } from '../pretrained/single-file-writer.js';
import { type BaseModelOptions, locateBaseModel } from './base-model.js';

/** How LoRA files spell their keys: PEFT's for diffusers, kohya's for ComfyUI, AUTOMATIC1111 and Forge, or diffusers' own. */
export type LoraFormat = 'peft' | 'kohya' | 'diffusers';

export const loraFormats: readonly LoraFormat[] = ['peft', 'kohya', 'diffusers'];

export interface ConvertLoraOptions {
  /** The LoRA file, in any of the usual spellings. */
  readonly lora: string;
  readonly format: LoraFormat;
  /** The type of the factors; by default the one that they have. */
  readonly savePrecision?: SavePrecision | undefined;
  /** The new file; nothing may be there yet. */
  readonly output: string;
}

/**
 * Writes a LoRA in another spelling. Names, ranks and alphas survive the way there and back; what the file's header says about the training is kept. Factors keep their
 * type; where a format has no place for alpha, those that it is multiplied into are in float32 if their own type cannot hold the product.
 *
 * @returns the path of what was written.
 * @throws ModelError when the file is no LoRA that can be read, or has values that the type cannot hold; OutputError when the output is there already, is being written
 *   by another process, or cannot be written.
 */
export async function convertLora(options: ConvertLoraOptions): Promise<string> {
  const { lora: file, format, savePrecision, output } = options;
  return makingNew(output, async () => {
    const source = await readSafetensorsFile(file);
    const written = loraWriters[format](parseLora(source, file), source.metadata, file);
    const { tensors, metadata } = savePrecision
      ? inPrecision(written, savePrecision, file)
      : inSourcePrecision(written, source.tensors);
    await writeSafetensorsFile(output, tensors, new Map([...keptNotes(source.metadata), ...metadata]));
    return output;
  });
}

type LoraWriter = (lora: Lora, notes: ReadonlyMap<string, string>, file: string) => SafetensorsContents;

const loraWriters: Readonly<Record<LoraFormat, LoraWriter>> = {
  peft: peftContents,
  diffusers: diffusersContents,
  kohya: (lora, notes, file) => {
    const title = notes.get('modelspec.title') ?? basename(file).replace(/\.safetensors$/i, '');
    return kohyaContents(lora, {
      title,
      base: notedFamily(notes) ?? loraFamily(lora) ?? 'stable-diffusion-v1',
    });
  },
};

/** The family that a header names. */
function notedFamily(notes: ReadonlyMap<string, string>): ModelFamily | undefined {
  const architecture = notes.get('modelspec.architecture') ?? '';
  const known: readonly ModelFamily[] = [
    'stable-diffusion-xl-v1-base',
    'stable-diffusion-v2',
    'stable-diffusion-v1',
  ];
  return known.find((family) => architecture.startsWith(family));
}

/** What a header says that is neither about the format nor a digest of the tensors. */
function keptNotes(metadata: ReadonlyMap<string, string>): Map<string, string> {
  return new Map([...metadata].filter(([key]) => /^(ss_|modelspec\.)/.test(key) && !/hash/i.test(key)));
}

export interface ConvertModelOptions extends BaseModelOptions {
  /** A diffusers model folder or a model of the Hugging Face hub, which becomes a single file, or a single file, which becomes a folder. */
  readonly model: string;
  /** The new file or folder; nothing may be there yet. */
  readonly output: string;
}

/**
 * Turns a diffusers folder into a single-file checkpoint with the original names, or the other way round. Weights keep their types and pass through one by one.
 *
 * @returns the path of what was written.
 * @throws ModelError when the model cannot be read, or has settings that a single file cannot express; HubError when the hub cannot give it; OutputError when the
 *   output is there already, is being written by another process, or cannot be written.
 */
export async function convertModel(options: ConvertModelOptions): Promise<string> {
  const { output, predictionType, variant } = options;
  return makingNew(output, async () => {
    const { path } = await locateBaseModel(options);
    const found = await stat(path).catch(() => undefined);
    if (found?.isFile()) {
      const single = await readSingleFile(path, predictionType);
      await writeFolderAtomic(output, (folder) => writeModelFolder(folder, single));
      return output;
    }
    if (!/\.safetensors$/i.test(output)) {
      throw new UsageError(
        `--output ${output}: a folder becomes a single file, whose name has to end in .safetensors.`,
      );
    }
    const { tensors, metadata } = await singleFileContents(await openModel(path, predictionType), variant);
    await writeTensorStreams(output, tensors, metadata);
    return output;
  });
}
