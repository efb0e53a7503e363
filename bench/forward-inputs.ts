import type { StableDiffusion } from '../src/pretrained/stable-diffusion.js';
import { Random } from '../src/tensor/random.js';
import { float32, type Tensor } from '../src/tensor/tensor.js';

/** The networks that drawing and preparing a picture run; the denoiser with two rows, as guidance has. */
export const FORWARD_PARTS = [
  'denoiser',
  'autoencoder, decoding',
  'autoencoder, encoding',
  'text encoder',
] as const;
export type ForwardPart = (typeof FORWARD_PARTS)[number];

/** What both sides feed a network. */
export function forwardInputs(model: StableDiffusion, part: ForwardPart): Map<string, Tensor> {
  const random = new Random(23, 'forward', part);
  const { resolution, promptLength, unetConfig } = model;
  const latents = model.latentShape(resolution);
  switch (part) {
    case 'denoiser':
      return new Map<string, Tensor>([
        ['sample', random.derive('sample').normals([2, ...latents])],
        ['timestep', float32([2], [500, 500])],
        ['condition', random.derive('text').normals([2, promptLength, unetConfig.crossAttentionDim])],
      ]);
    case 'autoencoder, decoding':
      return new Map([['latents', random.normals([1, ...latents])]]);
    case 'autoencoder, encoding':
      return new Map([['pixels', random.uniforms([1, 3, resolution, resolution], -1, 1)]]);
    case 'text encoder':
      return new Map(Object.entries(model.tokenize('a backpack on the beach').tokens));
  }
}
