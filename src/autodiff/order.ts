import { add, cast, less, scalar, where } from '../onnx/elementwise.js';
import type { Value } from '../onnx/graph.js';
import { reshape, slice } from '../onnx/movement.js';

/**
 * `values`, computed after `earlier`: a zero that is worked out from their first elements is added to them. The engine runs a graph from its results backwards, and merges
 * what is computed twice; where the order decides how much memory is held, or what must not be merged, it has to be written as a dependency. No gradient goes along it.
 */
export function after(values: readonly Value[], earlier: readonly Value[]): readonly Value[] {
  if (earlier.length === 0) return values;
  const firsts = earlier.map((v) => cast(slice(reshape(v, [-1]), 0, 0, 1), 'float32'));
  const sum = reshape(
    firsts.reduce((a, b) => add(a, b)),
    [],
  );
  // Never true, and of a type that has no gradient.
  const never = less(sum, Number.NEGATIVE_INFINITY);
  return values.map((v) => add(v, cast(never, v.dtype)));
}

/** A small parameter, computed after its gradient: a choice between the two that always falls on the parameter, one node in place of the six of `after`. */
export function afterGradient(parameter: Value, gradient: Value): Value {
  const never = parameter.graph.constant(scalar('bool', 0), 'never');
  return where(never, gradient, parameter);
}
