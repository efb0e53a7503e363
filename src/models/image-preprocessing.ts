import type { Config } from '../formats/json-config.js';
import { add, clip, mul } from '../onnx/elementwise.js';
import type { Value } from '../onnx/graph.js';
import { pad, slice } from '../onnx/movement.js';
import {
  cubicKernel,
  linearKernel,
  mapPlanes,
  type ResamplingKernel,
  resamplingMatrix,
} from '../onnx/resampling.js';
import { float32 } from '../tensor/tensor.js';

/** How an encoder wants its pictures, by the meaning of the keys of `preprocessor_config.json`. */
export interface ImagePreprocessing {
  readonly resize?: { readonly size: ResizeTarget; readonly kernel: ResamplingKernel };
  /** Height and width of the middle part that is kept. */
  readonly crop?: readonly [number, number];
  /** Values in [0, 1] times `scale`, less `mean`, over `std`, a channel each. */
  readonly scale: number;
  readonly mean: readonly number[];
  readonly std: readonly number[];
}

/** Mean and deviation of ImageNet's channels, in [0, 1]: what DINO was trained with. */
export const imagenetStatistics = {
  mean: [0.485, 0.456, 0.406],
  std: [0.229, 0.224, 0.225],
} as const;

/** Mean and deviation that CLIP was trained with. */
export const clipStatistics = {
  mean: [0.48145466, 0.4578275, 0.40821073],
  std: [0.26862954, 0.26130258, 0.27577711],
} as const;

/** An exact height and width, or the length of the shorter side. */
type ResizeTarget = readonly [number, number] | number;

/** Pillow's numbers for its filters, those that can be a linear map. */
const kernels: Readonly<Record<number, ResamplingKernel>> = { 2: linearKernel, 3: cubicKernel(-0.5) };

/**
 * Prepares pictures [B, 3, H, W] in [-1, 1] inside the graph, differentiably: values beyond the range are clipped, as they are when a picture is saved; resizing
 * is Pillow's antialiased bilinear or bicubic filter as two constant matrices; then the middle is cut out and the channels are normalised.
 *
 * Unlike Pillow it does not round to whole bytes between the steps, and bicubic overshoot is kept.
 */
export function preprocess(p: ImagePreprocessing, pixels: Value): Value {
  let x = add(mul(clip(pixels, -1, 1), 0.5), 0.5);
  if (p.resize) {
    const [height, width] = x.shape.slice(2) as [number, number];
    const [h, w] = resizedTo(p.resize.size, height, width);
    const options = { kernel: p.resize.kernel, antialias: true };
    x = mapPlanes(x, resamplingMatrix(height, h, options), resamplingMatrix(width, w, options));
  }
  if (p.crop) x = centerCrop(x, p.crop);
  const perChannel = (values: readonly number[], name: string): Value =>
    x.graph.constant(float32([1, 3, 1, 1], values), name);
  const gain = p.std.map((s) => p.scale / s);
  const offset = p.mean.map((m, i) => -m / p.std[i]!);
  return add(mul(x, perChannel(gain, 'image_gain')), perChannel(offset, 'image_offset'));
}

function resizedTo(size: ResizeTarget, height: number, width: number): readonly [number, number] {
  if (typeof size !== 'number') return size;
  const long = Math.floor((size * Math.max(height, width)) / Math.min(height, width));
  return height <= width ? [size, long] : [long, size];
}

/** The middle of a picture; one that is too small is laid on black first. */
function centerCrop(x: Value, crop: readonly [number, number]): Value {
  return crop.reduce((y, extent, i) => {
    const axis = 2 + i;
    const lack = Math.max(0, extent - y.shape[axis]!);
    const before = Math.ceil(lack / 2);
    const whole = pad(
      y,
      y.shape.map((_, a) => (a === axis ? ([before, lack - before] as const) : ([0, 0] as const))),
    );
    const start = Math.floor((whole.shape[axis]! - extent) / 2);
    return slice(whole, axis, start, start + extent);
  }, x);
}

/** Image processors that do no more than resize, crop, rescale and normalise. */
const PROCESSORS = ['ViT', 'CLIP', 'Bit', 'DeiT', 'ConvNext'].flatMap((name) => [
  `${name}ImageProcessor`,
  `${name}ImageProcessorFast`,
  `${name}ImageProcessorPil`,
  `${name}FeatureExtractor`,
]);

/**
 * Reads a transformers `preprocessor_config.json`.
 *
 * @throws ModelError naming file, key and value for anything that cannot be done inside a graph.
 */
export function readImagePreprocessing(config: Config): ImagePreprocessing {
  for (const key of ['image_processor_type', 'feature_extractor_type', 'processor_class']) {
    if (key !== 'processor_class' && config.has(key)) config.oneOf(key, PROCESSORS);
    else config.ignore(key);
  }
  config.ignore('do_convert_rgb', 'data_format', 'input_data_format', 'default_to_square', 'use_square_size');
  config.must('do_pad', false, false);
  const resizing = config.boolean('do_resize', true);
  const resample = config.oneOf('resample', [2, 3], 2);
  const size = resizing ? readSize(config, 'size') : undefined;
  if (!resizing) config.ignore('size');
  const cropping = config.boolean('do_center_crop', false);
  const crop = cropping ? readSize(config, 'crop_size') : undefined;
  if (!cropping) config.ignore('crop_size');
  const rescaling = config.boolean('do_rescale', true);
  const factor = config.number('rescale_factor', 1 / 255);
  const normalizing = config.boolean('do_normalize', true);
  const channels = (key: string, neutral: number): number[] => {
    if (normalizing) return config.numbers(key, { length: 3 });
    config.ignore(key);
    return [neutral, neutral, neutral];
  };
  const read: ImagePreprocessing = {
    ...(size === undefined ? {} : { resize: { size, kernel: kernels[resample]! } }),
    ...(crop === undefined ? {} : { crop: typeof crop === 'number' ? ([crop, crop] as const) : crop }),
    // A picture's bytes are 255 times its values in [0, 1].
    scale: rescaling ? 255 * factor : 255,
    mean: channels('image_mean', 0),
    std: channels('image_std', 1),
  };
  config.finish();
  if (read.std.some((s) => !(s > 0))) throw config.unsupported('image_std', 'numbers above 0');
  return read;
}

/** A size as the files give it: a number, {height, width}, or {shortest_edge}. A bare number is the shorter side where a crop follows, a square otherwise. */
function readSize(config: Config, key: string): ResizeTarget {
  const value = config.raw(key);
  if (typeof value === 'number') {
    const side = config.integer(key);
    return key === 'size' && config.raw('do_center_crop') === true ? side : [side, side];
  }
  const size = config.object(key);
  const read = size.has('shortest_edge')
    ? size.integer('shortest_edge')
    : ([size.integer('height'), size.integer('width')] as const);
  size.finish();
  return read;
}
