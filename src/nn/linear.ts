import { cast } from '../onnx/elementwise.js';
import type { Value } from '../onnx/graph.js';
import { gemm } from '../onnx/linalg.js';
import { reshape } from '../onnx/movement.js';
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
  const byFanIn: Initializer = { kind: 'uniform', bound: 1 / Math.sqrt(inFeatures) };
  const weight = scope.weight('weight', [outFeatures, inFeatures], options.weightInit ?? byFanIn);
  const bias =
    (options.bias ?? true) ? scope.weight('bias', [outFeatures], options.biasInit ?? byFanIn) : undefined;
  const activations = cast(x, weight.dtype);
  const rows = x.shape.length === 2 ? activations : reshape(activations, [-1, inFeatures]); // [N, in]
  const product = gemm(rows, weight, { transB: true, ...(bias && { c: bias }) }); // [N, out]
  const lora = scope.lora([outFeatures, inFeatures]);
  const y = lora ? addLora(product, rows, lora) : product;
  return x.shape.length === 2 ? y : reshape(y, [...x.shape.slice(0, -1), outFeatures]);
}
