import { add, cast, div, sqrt, square } from '../onnx/elementwise.js';
import type { Value } from '../onnx/graph.js';
import { groupNorm as normalizeGroups, layerNorm as normalizeRows } from '../onnx/norm.js';
import { sum } from '../onnx/reduction.js';
import type { Scope } from './parameters.js';

/** Group normalisation of [B, C, H, W] with a scale and an offset per channel (Wu and He, arXiv 1803.08494). Halves are normalised in float32. */
export function groupNorm(scope: Scope, x: Value, options: { groups: number; eps: number }): Value {
  const channels = x.shape[1]!;
  const weight = scope.parameter('weight', [channels], { kind: 'ones' });
  const bias = scope.parameter('bias', [channels], { kind: 'zeros' });
  return inFloat32(x, (v) => normalizeGroups(v, options.groups, weight, bias, options.eps));
}

/** Layer normalisation over the last axis, with a scale and an offset per feature (Ba et al., arXiv 1607.06450). Halves are normalised in float32. */
export function layerNorm(scope: Scope, x: Value, options: { eps: number }): Value {
  const features = x.shape.at(-1)!;
  const weight = scope.parameter('weight', [features], { kind: 'ones' });
  const bias = scope.parameter('bias', [features], { kind: 'zeros' });
  return inFloat32(x, (v) => normalizeRows(v, weight, bias, options.eps));
}

/** Computes in float32 and gives the type that was given. */
const inFloat32 = (x: Value, compute: (x: Value) => Value): Value =>
  cast(compute(cast(x, 'float32')), x.dtype);

/** Scales vectors along the last axis to unit length; a zero vector stays zero. */
export function unitLength(x: Value): Value {
  return div(x, sqrt(add(sum(square(x), [-1], { keepDims: true }), 1e-12)));
}
