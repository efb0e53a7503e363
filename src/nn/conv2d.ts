import { conv2d as convolve, resizeNearest } from '../onnx/conv.js';
import { doubledConv2d, doubledConv2dByPhase } from '../onnx/doubled-conv.js';
import { add, cast } from '../onnx/elementwise.js';
import type { Value } from '../onnx/graph.js';
import { matmul } from '../onnx/linalg.js';
import { winogradConv2d } from '../onnx/minimal-filtering.js';
import { reshape } from '../onnx/movement.js';
import { addConvLora } from './lora.js';
import type { Initializer, LoraFactors, Scope } from './parameters.js';

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
export const conv2d = (scope: Scope, image: Value, options: Conv2dOptions): Value =>
  convolved(layerOf(scope, options), image, options);

/** `conv2d` with a 3x3 kernel and padding 1 of the image with every pixel repeated twice in both directions: [B, in, H, W] -> [B, out, 2H, 2W]. */
export function doubledConv(scope: Scope, image: Value, channels: Pick<Conv2dOptions, 'in' | 'out'>): Value {
  const options = { ...channels, kernel: 3, padding: 1 };
  const layer = layerOf(scope, options);
  const { weight, bias, lora, isFiltered } = layer;
  const x = cast(image, weight.dtype);
  const places = x.shape[2]! * x.shape[3]!;
  if (isFiltered && !lora && Math.min(channels.in, channels.out) >= FILTERED_CHANNELS) {
    // Convolutions by phase live by kernels in blocked layout, which a graph that is planned in stages has not.
    if (places >= MANY_PLACES && !weight.graph.staged) return doubledConv2dByPhase(x, weight, bias);
    if (4 * places * Math.max(channels.in, channels.out) < LARGEST_IMAGE)
      return doubledConv2d(x, weight, bias);
  }
  return convolved(layer, resizeNearest(x, 2), options);
}

/** From so many on an image in nine forms is far larger than a processor's caches. */
const MANY_PLACES = 4096;

interface Layer {
  readonly weight: Value;
  readonly bias: Value;
  readonly lora: LoraFactors | undefined;
  /** Whether a 3x3 kernel may go by minimal filtering: one that is frozen, so that it is transformed once. In halves the transforms would lose too many digits. */
  readonly isFiltered: boolean;
}

function layerOf(scope: Scope, { in: c, out: o, kernel }: Conv2dOptions): Layer {
  const init: Initializer = { kind: 'uniform', bound: 1 / Math.sqrt(c * kernel * kernel) };
  const shape = [o, c, kernel, kernel];
  const weight = scope.weight('weight', shape, init);
  const isFiltered =
    scope.computation.minimalFiltering && weight.dtype !== 'float16' && weight.graph.isFrozen(weight);
  return { weight, bias: scope.weight('bias', [o], init), lora: scope.lora(shape), isFiltered };
}

function convolved({ weight, bias, lora, isFiltered }: Layer, image: Value, options: Conv2dOptions): Value {
  const { kernel, stride = 1, padding = 0 } = options;
  const x = cast(image, weight.dtype);
  const whole = stride === 1 && 2 * Number(padding) === kernel - 1;
  let y: Value;
  if (whole && kernel === 3 && isFiltered && isLarge(x, weight)) y = winogradConv2d(x, weight, bias);
  else if (whole && kernel === 1 && weight.size >= LARGE_MATRIX && weight.graph.isFrozen(weight))
    y = pointwise(x, weight, bias);
  else y = convolve(x, weight, bias, { stride, padding });
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

/** Fewer channels do not make up for the transforms. */
const FILTERED_CHANNELS = 256;

/**
 * Whether a 3x3 kernel is applied at so many places that they make up for its transformed copy, which takes four times its memory; a graph that is planned in stages has
 * no kernels in blocked layout to compare with.
 */
function isLarge(x: Value, weight: Value): boolean {
  const [, c, h, w] = x.shape as [number, number, number, number];
  const o = weight.shape[0]!;
  const places = h * w;
  return (
    h % 4 === 0 &&
    w % 4 === 0 &&
    Math.min(c, o) >= FILTERED_CHANNELS &&
    weight.size <= (weight.graph.staged ? 8192 : 4096) * places &&
    places * Math.max(c, o) < LARGEST_IMAGE
  );
}

/** The transformed image takes 9/4 of its elements: 300 MB at this size. */
const LARGEST_IMAGE = 1 << 25;
