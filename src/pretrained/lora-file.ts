import { join } from 'node:path';
import { readSafetensorsFile, writeSafetensorsFile } from '../formats/safetensors-file.js';
import type { Lora } from './lora.js';
import { kohyaContents, type LoraDescription, parseLora, peftContents } from './lora-formats.js';

/** The file that diffusers' `load_lora_weights` looks for. */
export const peftFileName = 'pytorch_lora_weights.safetensors';

/** The file for ComfyUI, AUTOMATIC1111 and Forge. */
export const kohyaFileName = 'kohya_lora_weights.safetensors';

/** Writes a LoRA into a folder as the two files that, between them, every common tool loads. Each is written whole or not at all; returns their paths. */
export async function writeLoraFiles(
  folder: string,
  lora: Lora,
  description: LoraDescription,
): Promise<string[]> {
  const files = [
    [join(folder, peftFileName), peftContents(lora)],
    [join(folder, kohyaFileName), kohyaContents(lora, description)],
  ] as const;
  for (const [path, { tensors, metadata }] of files) await writeSafetensorsFile(path, tensors, metadata);
  return files.map(([path]) => path);
}

/** Reads a LoRA file in any of the usual spellings; see `parseLora`. */
export async function readLoraFile(path: string): Promise<Lora> {
  return parseLora(await readSafetensorsFile(path), path);
}
