import type { Value } from '../onnx/graph.js';
import type { GraphReward } from './reward.js';

/**
 * A differentiable function of the picture that the policy is heading for, such as an imported model.
 *
 * @param judge pictures [I, 3, R, R], about [-1, 1], to [I]; more is better
 */
export function pictureReward(name: string, judge: (pixels: Value) => Value): GraphReward {
  return { kind: 'graph', name, values: (heading) => judge(heading.pixels()) };
}
