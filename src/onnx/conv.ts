import { float32 } from '../tensor/tensor.js';
import { GraphError, type Value } from './graph.js';

/** Padding of both spatial axes: one number for all sides, or [top, left, bottom, right]. */
export type Padding = number | readonly [number, number, number, number];

export interface ConvOptions {
  readonly stride?: number | readonly [number, number];
  readonly padding?: Padding;
  readonly dilation?: number | readonly [number, number];
  readonly groups?: number;
}

export interface ConvTransposeOptions extends ConvOptions {
  /** Extra extent at the bottom and right of the result. */
  readonly outputPadding?: number | readonly [number, number];
}

export interface PoolOptions {
  readonly kernel: number | readonly [number, number];
  /** The kernel's extents by default. */
  readonly stride?: number | readonly [number, number];
  readonly padding?: Padding;
}

const pair = (v: number | readonly [number, number]): readonly [number, number] =>
  typeof v === 'number' ? [v, v] : v;
const sides = (p: Padding): readonly [number, number, number, number] =>
  typeof p === 'number' ? [p, p, p, p] : p;

function image(x: Value, what: string): readonly [number, number, number, number] {
  if (x.rank !== 4) throw new GraphError(`${what} takes [N, C, H, W], got ${x}`);
  return x.shape as unknown as readonly [number, number, number, number];
}

function windows(
  extents: readonly [number, number],
  kernel: readonly [number, number],
  stride: readonly [number, number],
  padding: readonly [number, number, number, number],
  dilation: readonly [number, number],
): [number, number] {
  const count = (i: 0 | 1) =>
    Math.floor((extents[i] + padding[i] + padding[i + 2]! - dilation[i] * (kernel[i] - 1) - 1) / stride[i]) +
    1;
  const shape: [number, number] = [count(0), count(1)];
  if (shape[0] < 1 || shape[1] < 1) {
    throw new GraphError(`a ${kernel.join('x')} window does not fit into ${extents.join('x')}`);
  }
  return shape;
}

/** Cross-correlation. x: [N, C, H, W], weight: [O, C / groups, kH, kW], bias: [O]; result: [N, O, H', W']. */
export function conv2d(x: Value, weight: Value, bias?: Value, options: ConvOptions = {}): Value {
  const [n, c, h, w] = image(x, 'conv2d');
  const [o, cPerGroup, kh, kw] = image(weight, 'conv2d');
  const { groups = 1 } = options;
  const stride = pair(options.stride ?? 1);
  const padding = sides(options.padding ?? 0);
  const dilation = pair(options.dilation ?? 1);
  if (cPerGroup * groups !== c || o % groups !== 0 || (bias && bias.shape.join() !== `${o}`)) {
    throw new GraphError(`conv2d of ${x} with ${weight}${bias ? ` and ${bias}` : ''} in ${groups} groups`);
  }
  const shape = [n, o, ...windows([h, w], [kh, kw], stride, padding, dilation)];
  return x.graph.add('Conv', bias ? [x, weight, bias] : [x, weight], [{ dtype: x.dtype, shape }], {
    kernel_shape: { ints: [kh, kw] },
    strides: { ints: stride },
    pads: { ints: padding },
    dilations: { ints: dilation },
    group: { int: groups },
  })[0]!;
}

/** The transpose of `conv2d` in its input. x: [N, C, H, W], weight: [C, O / groups, kH, kW], bias: [O]. */
export function convTranspose2d(
  x: Value,
  weight: Value,
  bias?: Value,
  options: ConvTransposeOptions = {},
): Value {
  const [n, c, h, w] = image(x, 'convTranspose2d');
  const [c2, oPerGroup, kh, kw] = image(weight, 'convTranspose2d');
  const { groups = 1 } = options;
  const stride = pair(options.stride ?? 1);
  const padding = sides(options.padding ?? 0);
  const dilation = pair(options.dilation ?? 1);
  const outputPadding = pair(options.outputPadding ?? 0);
  const o = oPerGroup * groups;
  if (c !== c2 || c % groups !== 0 || (bias && bias.shape.join() !== `${o}`)) {
    throw new GraphError(`convTranspose2d of ${x} with ${weight} in ${groups} groups`);
  }
  const extent = (i: 0 | 1) =>
    stride[i] * ([h, w][i]! - 1) +
    outputPadding[i] +
    dilation[i] * ([kh, kw][i]! - 1) +
    1 -
    padding[i] -
    padding[i + 2]!;
  const inputs = bias ? [x, weight, bias] : [x, weight];
  return x.graph.add('ConvTranspose', inputs, [{ dtype: x.dtype, shape: [n, o, extent(0), extent(1)] }], {
    kernel_shape: { ints: [kh, kw] },
    strides: { ints: stride },
    pads: { ints: padding },
    dilations: { ints: dilation },
    output_padding: { ints: outputPadding },
    group: { int: groups },
  })[0]!;
}

function pool(operator: 'AveragePool' | 'MaxPool', x: Value, options: PoolOptions): Value {
  const [n, c, h, w] = image(x, operator);
  const kernel = pair(options.kernel);
  const stride = pair(options.stride ?? kernel);
  const padding = sides(options.padding ?? 0);
  const shape = [n, c, ...windows([h, w], kernel, stride, padding, [1, 1])];
  return x.graph.add(operator, [x], [{ dtype: x.dtype, shape }], {
    kernel_shape: { ints: kernel },
    strides: { ints: stride },
    pads: { ints: padding },
    ...(operator === 'AveragePool' ? { count_include_pad: { int: 1 } } : {}),
  })[0]!;
}

/** Mean over windows, padding counted as zeros, as PyTorch's default. */
export const averagePool2d = (x: Value, options: PoolOptions): Value => pool('AveragePool', x, options);
/** Maximum over windows, padding never chosen. */
export const maxPool2d = (x: Value, options: PoolOptions): Value => pool('MaxPool', x, options);

/** Repeats every pixel `scale` times in both directions: [N, C, H, W] -> [N, C, scale H, scale W]. */
export function resizeNearest(x: Value, scale: number): Value {
  const [n, c, h, w] = image(x, 'resizeNearest');
  if (!Number.isInteger(scale) || scale < 1) throw new GraphError(`resizeNearest by ${scale}`);
  const scales = x.graph.constant(float32([4], [1, 1, scale, scale]), 'scales');
  return x.graph.add(
    'Resize',
    [x, undefined, scales],
    [{ dtype: x.dtype, shape: [n, c, h * scale, w * scale] }],
    {
      mode: { string: 'nearest' },
      coordinate_transformation_mode: { string: 'asymmetric' },
      nearest_mode: { string: 'floor' },
    },
  )[0]!;
}
