import { cast, less, maximum, minimum, sub, where } from '../onnx/elementwise.js';
import type { Value } from '../onnx/graph.js';
import { gather, reshape } from '../onnx/movement.js';
import type { Initializer, Scope } from './parameters.js';

/** Rows of the table `weight` [count, dim], and of those that its source adds to it, by int64 index; [...] -> [..., dim]. */
export function embedding(
  scope: Scope,
  indices: Value,
  options: { count: number; dim: number; init?: Initializer },
): Value {
  const { count, dim, init = { kind: 'normal', std: 1 } } = options;
  const table = scope.weight('weight', [count, dim], init);
  const added = scope.addedRows('weight', [count, dim]);
  if (!added) return gather(table, indices, 0);
  const known = reshape(less(indices, count), [...indices.shape, 1]);
  const ofTable = gather(table, minimum(indices, count - 1), 0);
  const ofAdded = gather(cast(added, table.dtype), maximum(sub(indices, count), 0), 0);
  return where(known, ofTable, ofAdded); // [..., 1] chooses between [..., dim] and [..., dim]
}
