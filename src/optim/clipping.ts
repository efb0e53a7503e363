import { add, div, minimum, mul, sqrt, square } from '../onnx/elementwise.js';
import type { Value } from '../onnx/graph.js';
import { sum } from '../onnx/reduction.js';
import { flatten, groups, unflatten } from './optimizer.js';

/** The Euclidean norm of all gradients together. */
export function globalNorm(gradients: readonly Value[]): Value {
  const squares = groups(gradients.map((g) => g.shape)).map((members) =>
    sum(square(flatten(members.map((i) => gradients[i]!)))),
  );
  return sqrt(squares.reduce((a, b) => add(a, b)));
}

/** Scales all gradients so that their global norm is at most `maxNorm` (Pascanu et al., ICML 2013), with PyTorch's 1e-6 in the denominator. */
export function clipByGlobalNorm(
  gradients: readonly Value[],
  maxNorm: number,
): { clipped: Value[]; norm: Value } {
  const norm = globalNorm(gradients);
  return { clipped: scaleAll(gradients, clippingFactor(norm, maxNorm)), norm };
}

/** What gradients of this global norm are multiplied by. */
export function clippingFactor(norm: Value, maxNorm: number): Value {
  return minimum(div(maxNorm, add(norm, 1e-6)), 1);
}

/** Every tensor times one scalar. */
export function scaleAll(tensors: readonly Value[], factor: Value): Value[] {
  const scaled = new Array<Value>(tensors.length);
  for (const members of groups(tensors.map((t) => t.shape))) {
    const values = members.map((i) => tensors[i]!);
    unflatten(
      mul(flatten(values), factor),
      values.map((v) => v.shape),
    ).forEach((v, n) => {
      scaled[members[n]!] = v;
    });
  }
  return scaled;
}
