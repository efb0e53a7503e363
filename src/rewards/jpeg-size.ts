import type { BlackBoxReward, Picture } from './reward.js';

/**
 * How much there is to see in a picture, as the size of its JPEG file in bits per pixel: the reward by which Black et al. show that a reward needs no gradient
 * ("Training diffusion models with reinforcement learning", arXiv 2305.13301, section 5.1). Give it a negative weight for plain pictures.
 *
 * @param encode the picture as a JPEG file of fixed quality
 */
export function jpegSizeReward(
  name: string,
  encode: (picture: Picture) => Promise<Uint8Array>,
): BlackBoxReward {
  return {
    kind: 'black box',
    name,
    timeout: undefined,
    score: (pictures) =>
      Promise.all(
        pictures.map(
          async (picture) => (8 * (await encode(picture)).length) / (picture.width * picture.height),
        ),
      ),
  };
}
