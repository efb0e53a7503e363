import { add, cast, mul } from '../onnx/elementwise.js';
import type { Value } from '../onnx/graph.js';
import { reshape, slice } from '../onnx/movement.js';

/**
 * `values`, computed after `earlier`: 0 times their first elements is added to them. The engine runs a graph from its results backwards, and merges what is computed
 * twice; where the order decides how much memory is held, or what must not be merged, it has to be written as a dependency.
 */
export function after(values: readonly Value[], earlier: readonly Value[]): readonly Value[] {
  if (earlier.length === 0) return values;
  const firsts = earlier.map((v) => cast(slice(reshape(v, [-1]), 0, 0, 1), earlier[0]!.dtype));
  const zero = mul(
    reshape(
      firsts.reduce((a, b) => add(a, b)),
      [],
    ),
    0,
  );
  return values.map((v) => add(v, cast(zero, v.dtype)));
}
