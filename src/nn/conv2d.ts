import { conv2d as convolve } from '../onnx/conv.js';
import { add, cast } from '../onnx/elementwise.js';
import type { Value } from '../onnx/graph.js';
import { matmul } from '../onnx/linalg.js';
import { reshape } from '../onnx/movement.js';
import { winogradConv2d } from '../onnx/winograd.js';
import { addConvLora } from './lora.js';
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

/** Convolution with `weight` [out, in, kernel, kernel] and `bias` [out]; [B, in, H, W] -> [B, out, H', W']. Adds the layer's LoRA update if it has one. */
export function conv2d(scope: Scope, image: Value, options: Conv2dOptions): Value {
  const { kernel, stride = 1, padding = 0 } = options;
  const init: Initializer = { kind: 'uniform', bound: 1 / Math.sqrt(options.in * kernel * kernel) };
  const shape = [options.out, options.in, kernel, kernel];
  const weight = scope.weight('weight', shape, init);
  const bias = scope.weight('bias', [options.out], init);
  const x = cast(image, weight.dtype);
  const whole = stride === 1 && 2 * Number(padding) === kernel - 1;
  let y: Value;
  if (whole && kernel === 3 && scope.computation.minimalFiltering && isLarge(x, weight))
    y = winogradConv2d(x, weight, bias);
  else if (whole && kernel === 1 && weight.size >= LARGE_MATRIX && weight.graph.isFrozen(weight))
    y = pointwise(x, weight, bias);
  else y = convolve(x, weight, bias, { stride, padding });
  const lora = scope.lora(shape);
  return lora ? addConvLora(y, x, lora, { stride, padding }) : y;
}

/** 4 MiB of weights. */
const LARGE_MATRIX = 1 << 20;

/** A kernel of one pixel is a matrix, of which the engine makes no packed copies when it stands on the left: [O, C] [B, C, H W]. */
function pointwise(x: Value, weight: Value, bias: Value): Value {
  const [b, c, h, w] = x.shape as [number, number, number, number];
  const o = weight.shape[0]!;
  const y = matmul(reshape(weight, [o, c]), reshape(x, [b, c, h * w]));
  return reshape(add(y, reshape(bias, [o, 1])), [b, o, h, w]);
}

/**
 * Whether a frozen 3x3 kernel has so many channels that fewer multiplications make up for the transforms, and is applied at so many places that they make up for its
 * transformed copy, which takes four times its memory; a graph that is planned in stages has no kernels in blocked layout to compare with. In halves the transforms would lose too many digits.
 */
function isLarge(x: Value, weight: Value): boolean {
  const [, c, h, w] = x.shape as [number, number, number, number];
  const o = weight.shape[0]!;
  if (weight.dtype === 'float16') return false;
  const places = h * w;
  return (
    weight.graph.isFrozen(weight) &&
    h % 4 === 0 &&
    w % 4 === 0 &&
    Math.min(c, o) >= 256 &&
    weight.size <= (weight.graph.staged ? 8192 : 4096) * places &&
    places * Math.max(c, o) < LARGEST_IMAGE
  );
}

/** The transformed image takes 9/4 of its elements: 300 MB at this size. */
const LARGEST_IMAGE = 1 << 25;
