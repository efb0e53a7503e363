import { ModelError } from '../errors.js';
import type { AutoencoderKLConfig } from '../models/autoencoder-kl.js';
import { familyName, familyScalingFactor, type ModelFamily } from './architectures.js';
import { modelFamily } from './model-family.js';
import type { ModelFolder } from './model-folder.js';

/** The shape of the autoencoder that all three families were published with. */
const PUBLISHED_CHANNELS = '128,256,512,512';

const FAMILIES: readonly ModelFamily[] = [
  'stable-diffusion-v1',
  'stable-diffusion-v2',
  'stable-diffusion-xl-v1-base',
];

/**
 * Checks the number that latents are multiplied by before the denoiser sees them. With a wrong one nothing fails, and every picture is washed out or burnt. An
 * autoencoder of another shape than the published ones may have any: nobody else can know it.
 *
 * @returns what to warn of: a number that no published model has, as that of an autoencoder that was trained anew would be.
 * @throws ModelError for the number of another family, also where it is only what an absent setting means.
 */
export function scalingFactorWarning(folder: ModelFolder, config: AutoencoderKLConfig): string | undefined {
  const { blockOutChannels, latentChannels, scalingFactor: found } = config;
  if (blockOutChannels.join() !== PUBLISHED_CHANNELS || latentChannels !== 4) return undefined;
  const family = modelFamily(folder);
  const expected = familyScalingFactor(family);
  if (found === expected) return undefined;
  const { config: file } = folder.components.vae;
  const came = file.has('scaling_factor')
    ? `"scaling_factor" is ${found}`
    : `"scaling_factor" is missing, which means ${found}`;
  const other = FAMILIES.find((f) => familyScalingFactor(f) === found);
  if (other !== undefined) {
    throw new ModelError(
      `${file.file}: ${came}, as in ${familyName(other)}; ${familyName(family)} has ${expected}. With a wrong factor all pictures come out washed out or burnt. Write "scaling_factor": ${expected} into that file, or get the model again.`,
    );
  }
  return `${file.file}: ${came}; the autoencoder of ${familyName(family)} has ${expected}. If pictures come out washed out or burnt, that is why.`;
}
