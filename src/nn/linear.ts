import { cast } from '../onnx/elementwise.js';
import type { Value } from '../onnx/graph.js';
import { gemm } from '../onnx/linalg.js';
import { reshape, split, splitRows } from '../onnx/movement.js';
import { addLora } from './lora.js';
import type { Initializer, Scope } from './parameters.js';

export interface LinearOptions {
  readonly in: number;
  readonly out: number;
  /** Default true. */
  readonly bias?: boolean;
  /** Where the model's authors start elsewhere than at U(-1/sqrt(in), 1/sqrt(in)). */
  readonly weightInit?: Initializer;
  readonly biasInit?: Initializer;
}

/** y = x W^T + b over the last axis, with `weight` [out, in] and `bias` [out]; [..., in] -> [..., out]. Adds the layer's LoRA update if it has one. */
export function linear(scope: Scope, x: Value, options: LinearOptions): Value {
  const { in: inFeatures, out: outFeatures } = options;
  const { weight, bias } = parameters(scope, options);
  const rows = asRows(x, weight);
  const product = affine(rows, weight, bias); // [N, out]
  const lora = scope.lora([outFeatures, inFeatures]);
  return likeRowsOf(x, lora ? addLora(product, rows, lora) : product);
}

/**
 * The same layer with its result in consecutive parts, [..., in] -> [..., out_i] each. Where nothing of the layer learns, every part is a product of its own with some of the
 * weight's rows, so that a wide result is never held whole nor copied apart.
 */
export function linearParts(
  scope: Scope,
  x: Value,
  options: Omit<LinearOptions, 'out'> & { readonly out: readonly number[] },
): readonly Value[] {
  const out = options.out.reduce((n, part) => n + part, 0);
  const { weight, bias } = parameters(scope, { ...options, out });
  const learns = !x.graph.isFrozen(weight) || scope.lora([out, options.in]) !== undefined;
  if (learns) return split(linear(scope, x, { ...options, out }), options.out, -1);
  const rows = asRows(x, weight);
  const biases = bias && splitRows(bias, options.out);
  return splitRows(weight, options.out).map((part, i) => likeRowsOf(x, affine(rows, part, biases?.[i])));
}

function parameters(
  scope: Scope,
  { in: inFeatures, out: outFeatures, ...options }: LinearOptions,
): { readonly weight: Value; readonly bias: Value | undefined } {
  const byFanIn: Initializer = { kind: 'uniform', bound: 1 / Math.sqrt(inFeatures) };
  const weight = scope.weight('weight', [outFeatures, inFeatures], options.weightInit ?? byFanIn);
  const bias =
    (options.bias ?? true) ? scope.weight('bias', [outFeatures], options.biasInit ?? byFanIn) : undefined;
  return { weight, bias };
}

/** [..., in] -> [N, in], in the type that the layer computes in */
function asRows(x: Value, weight: Value): Value {
  const activations = cast(x, weight.dtype);
  return x.rank === 2 ? activations : reshape(activations, [-1, weight.shape[1]!]);
}

/** [N, out] -> [..., out], where x is [..., in] */
const likeRowsOf = (x: Value, y: Value): Value =>
  x.rank === 2 ? y : reshape(y, [...x.shape.slice(0, -1), y.shape[1]!]);

const affine = (rows: Value, weight: Value, bias: Value | undefined): Value =>
  gemm(rows, weight, { transB: true, ...(bias && { c: bias }) });
