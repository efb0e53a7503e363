import { join } from 'node:path';
import { openSafetensors, writeSafetensorsFile } from '../formats/safetensors-file.js';
import { float32, type Tensor } from '../tensor/tensor.js';
import type { Weight } from './weight.js';

/** The file that diffusers' `load_attn_procs` takes for Custom Diffusion. */
export const customDiffusionFileName = 'pytorch_custom_diffusion_weights.safetensors';

const projection = /^unet\.(.*\.attn2)\.to_([kv])\.weight$/;
const fileKey = /^(.*\.attn2)\.processor\.to_([kv])_custom_diffusion\.weight$/;

/**
 * Writes the denoiser's projections of the text as diffusers' Custom Diffusion does: `….attn2.processor.to_k_custom_diffusion.weight`. Self-attention, which stays as
 * it was, is named by an empty tensor each: the loader replaces every attention of the network, and refuses a file that does not name them all.
 *
 * @param learnt tensors by state name; others than these projections are left out.
 */
export async function writeCustomDiffusionFile(
  folder: string,
  learnt: ReadonlyMap<string, Tensor>,
): Promise<string> {
  const tensors = new Map<string, Tensor>();
  for (const [name, tensor] of learnt) {
    const [, attention, which] = projection.exec(name) ?? [];
    if (attention === undefined) continue;
    tensors.set(`${attention.replace(/attn2$/, 'attn1')}.processor`, float32([0], new Float32Array(0)));
    tensors.set(`${attention}.processor.to_${which}_custom_diffusion.weight`, tensor);
  }
  const path = join(folder, customDiffusionFileName);
  await writeSafetensorsFile(path, tensors, new Map([['format', 'pt']]));
  return path;
}

/** Finds the weights in a file of Custom Diffusion, by state name. @throws ModelError when it cannot be read. */
export async function openCustomDiffusionFile(folder: string): Promise<Map<string, Weight>> {
  const file = await openSafetensors(join(folder, customDiffusionFileName));
  const weights = new Map<string, Weight>();
  for (const entry of file.entries.values()) {
    const [, attention, which] = fileKey.exec(entry.name) ?? [];
    if (attention !== undefined) weights.set(`unet.${attention}.to_${which}.weight`, { file, entry });
  }
  return weights;
}
