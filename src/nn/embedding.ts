import type { Value } from '../onnx/graph.js';
import { gather } from '../onnx/movement.js';
import type { Initializer, Scope } from './parameters.js';

/** Rows of the table `weight` [count, dim] by int64 index; [...] -> [..., dim]. */
export function embedding(
  scope: Scope,
  indices: Value,
  options: { count: number; dim: number; init?: Initializer },
): Value {
  const { count, dim, init = { kind: 'normal', std: 1 } } = options;
  return gather(scope.weight('weight', [count, dim], init), indices, 0);
}
