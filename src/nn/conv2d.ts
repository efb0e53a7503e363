import { conv2d as convolve } from '../onnx/conv.js';
import type { Value } from '../onnx/graph.js';
import type { Initializer, Scope } from './parameters.js';

export interface Conv2dOptions {
  readonly in: number;
  readonly out: number;
  /** Side of the square kernel. */
  readonly kernel: number;
  /** Default 1. */
  readonly stride?: number;
  /** One number for all sides, or [top, left, bottom, right]. Default 0. */
  readonly padding?: number | readonly [number, number, number, number];
}

/** Convolution with `weight` [out, in, kernel, kernel] and `bias` [out]; [B, in, H, W] -> [B, out, H', W']. */
export function conv2d(scope: Scope, x: Value, options: Conv2dOptions): Value {
  const { kernel, stride = 1, padding = 0 } = options;
  const init: Initializer = { kind: 'uniform', bound: 1 / Math.sqrt(options.in * kernel * kernel) };
  const weight = scope.parameter('weight', [options.out, options.in, kernel, kernel], init);
  const bias = scope.parameter('bias', [options.out], init);
  return convolve(x, weight, bias, { stride, padding });
}
