import type { ModelFamily } from './architectures.js';
import type { ModelFolder } from './model-folder.js';

/** What LoRA files and single files call this kind of model. */
export function modelFamily({ pipeline, components }: ModelFolder): ModelFamily {
  if (pipeline === 'StableDiffusionXLPipeline') return 'stable-diffusion-xl-v1-base';
  // Stable Diffusion 2 projects into its transformers by linear layers, the first version by convolutions.
  const linear = components.unet.config.raw('use_linear_projection') === true;
  return linear ? 'stable-diffusion-v2' : 'stable-diffusion-v1';
}
