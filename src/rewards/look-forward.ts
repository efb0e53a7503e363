import { lookForwardResidual } from '../diffusion/look-forward.js';
import { neg } from '../onnx/elementwise.js';
import { mean } from '../onnx/reduction.js';
import type { GraphReward } from './reward.js';

/** The look-forward reward (arXiv 2407.06642, section 4.2): -mean((xhat_0 - x_0)^2), in scaled latents. Needs no decoder. */
export const lookForwardReward: GraphReward = {
  kind: 'graph',
  name: 'look-forward',
  ofNoisedPhotographs: true,
  values: ({ latents, clean }) => neg(mean(lookForwardResidual(latents, clean), [1, 2, 3])),
};
