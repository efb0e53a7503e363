import { averagePool2d, conv2d, convTranspose2d } from '../onnx/conv.js';
import { and, cast, equal, mul, not, or } from '../onnx/elementwise.js';
import type { Attributes, Value } from '../onnx/graph.js';
import { gemm, matmul } from '../onnx/linalg.js';
import { concat, flip, matrixTranspose, pad, reshape, slice, transpose } from '../onnx/movement.js';
import { sum } from '../onnx/reduction.js';
import { full, tensor, zeros } from '../tensor/tensor.js';
import { dilateAxis, padAxis } from './axes.js';
import { intAttribute, intsAttribute, operand, type Rule, type RuleContext } from './rule.js';

type Pair = readonly [number, number];
type Sides = readonly [number, number, number, number];

interface Geometry {
  readonly kernel: Pair;
  readonly stride: Pair;
  readonly padding: Sides;
  readonly dilation: Pair;
  readonly groups: number;
}

function geometry(attributes: Attributes): Geometry {
  return {
    kernel: intsAttribute(attributes, 'kernel_shape') as unknown as Pair,
    stride: intsAttribute(attributes, 'strides') as unknown as Pair,
    padding: intsAttribute(attributes, 'pads') as unknown as Sides,
    dilation: intsAttribute(attributes, 'dilations') as unknown as Pair,
    groups: intAttribute(attributes, 'group'),
  };
}

/** [G * A, B, kH, kW] -> [G * B, A, kH, kW], kernels turned by half a turn: the kernel that carries a gradient back through a convolution. */
function flippedKernel(w: Value, groups: number): Value {
  const [o, i, kh, kw] = w.shape as unknown as [number, number, number, number];
  const split = reshape(w, [groups, o / groups, i, kh, kw]);
  const swapped = reshape(transpose(split, [0, 2, 1, 3, 4]), [groups * i, o / groups, kh, kw]);
  return flip(swapped, [2, 3]);
}

const extents = (x: Value): Pair => [x.shape[2]!, x.shape[3]!];

/**
 * Whether a copy of a stored kernel, flipped and in the engine's blocked layout, would cost more memory than it is worth: many weights that are used at few places.
 */
function keepsStored(w: Value, grad: Value, frugal: boolean): boolean {
  const places = grad.shape[0]! * grad.shape[2]! * grad.shape[3]!;
  return (
    w.origin.kind === 'external' && w.size >= LARGE_KERNEL && w.size >= places * (frugal ? 1 << 11 : 1 << 14)
  );
}

/** 8 MiB of weights. */
const LARGE_KERNEL = 1 << 21;

/** d loss / d x of conv2d(x, w). */
function convDataGradient(grad: Value, w: Value, input: Pair, g: Geometry, stored = false): Value {
  const reach = [0, 1].map((i) => g.dilation[i]! * (g.kernel[i]! - 1));
  const back = g.padding.map((p, i) => reach[i % 2]! - p) as unknown as Sides;
  // With stride 1 the gradient is a plain convolution with the flipped kernel, which the engine prepares once when the weight is constant.
  if (!stored && g.stride.every((s) => s === 1) && back.every((p) => p >= 0)) {
    return conv2d(grad, flippedKernel(w, g.groups), undefined, {
      padding: back,
      dilation: g.dilation,
      groups: g.groups,
    });
  }
  // Where the windows cover the input exactly, its gradient is the transpose with the same padding.
  const covered = (i: 0 | 1): number =>
    (extents(grad)[i] - 1) * g.stride[i] + reach[i]! + 1 - g.padding[i] - g.padding[i + 2]!;
  if (covered(0) === input[0] && covered(1) === input[1]) return convTranspose2d(grad, w, undefined, g);
  // All that the windows reach, padding included; then the input's own part of it, zeros where no window reached.
  const full = convTranspose2d(grad, w, undefined, {
    stride: g.stride,
    dilation: g.dilation,
    groups: g.groups,
  });
  return [0, 1].reduce((x, i) => {
    const axis = 2 + i;
    const first = g.padding[i]!;
    const reached = x.shape[axis]!;
    const kept = slice(x, axis, first, Math.min(reached, first + input[i]!));
    return padAxis(kept, axis, 0, input[i]! - kept.shape[axis]!);
  }, full);
}

/**
 * d loss / d w of conv2d(x, w) as one matrix product: the gradient, moved down by each kernel row, times the input, moved left by each kernel column:
 * [kH O, L] [L, kW C] with L = (H + p) W' N. Copying kW + kH planes costs less than unfolding kH kW patches, and with the batch innermost every copy is
 * of long runs.
 */
function convWeightGradient(x: Value, grad: Value, g: Geometry): Value {
  const [n, c] = x.shape as unknown as [number, number, number, number];
  const [, o, , ow] = grad.shape as unknown as [number, number, number, number];
  const [kh, kw] = g.kernel;
  const [top, left, bottom, right] = g.padding;
  const [perGroup, outPerGroup] = [c / g.groups, o / g.groups];
  const padded = pad(transpose(x, [1, 2, 3, 0]), [
    [0, 0],
    [top, bottom],
    [left, right],
    [0, 0],
  ]); // [C, H + p, W + p, N]
  const height = padded.shape[1]!;
  const inputs = Array.from({ length: kw }, (_, j) => {
    const first = j * g.dilation[1];
    const seen = slice(padded, 2, first, first + (ow - 1) * g.stride[1] + 1, g.stride[1]);
    return reshape(seen, [g.groups, 1, perGroup, height * ow * n]);
  });
  const columns = reshape(concat(inputs, 1), [g.groups, kw * perGroup, height * ow * n]);
  // [O, H', W', N], rows spread out to where they lie in the input
  const upstream = dilateAxis(transpose(grad, [1, 2, 3, 0]), 1, g.stride[0] - 1);
  const reach = upstream.shape[1]!;
  const rows = Array.from({ length: kh }, (_, i) => {
    const first = i * g.dilation[0];
    return reshape(padAxis(upstream, 1, first, height - reach - first), [
      g.groups,
      1,
      outPerGroup,
      height * ow * n,
    ]);
  });
  const moved = reshape(concat(rows, 1), [g.groups, kh * outPerGroup, height * ow * n]);
  const product =
    g.groups === 1
      ? gemm(reshape(moved, [kh * o, -1]), reshape(columns, [kw * c, -1]), { transB: true })
      : matmul(moved, matrixTranspose(columns));
  // [G, kH, O', kW, C'] -> [O, C', kH, kW]
  const parts = reshape(product, [g.groups, kh, outPerGroup, kw, perGroup]);
  return reshape(transpose(parts, [0, 2, 4, 1, 3]), [o, perGroup, kh, kw]);
}

const biasGradient = (grad: Value): Value => sum(grad, [0, 2, 3]);

/** Spreads each window's value over its kernel places by these weights: [N, C * K, H', W'] -> [N, C, H, W], K = kH kW planes a channel or 1. */
function scatterWindows(x: Value, planes: Value, c: RuleContext, weights: 'uniform' | 'one-hot'): Value {
  const kernel = intsAttribute(c.attributes, 'kernel_shape') as unknown as Pair;
  const stride = intsAttribute(c.attributes, 'strides') as unknown as Pair;
  const padding = intsAttribute(c.attributes, 'pads') as unknown as Sides;
  const channels = x.shape[1]!;
  const places = kernel[0] * kernel[1];
  let kernelValue: Value;
  if (weights === 'uniform') {
    kernelValue = x.graph.constant(full([channels, 1, ...kernel], 1 / places), 'pool_kernel');
  } else {
    const oneHot = zeros([channels * places, 1, ...kernel]);
    for (let i = 0; i < channels * places; i++) oneHot.data[i * places + (i % places)] = 1;
    kernelValue = x.graph.constant(tensor('float32', oneHot.shape, oneHot.data), 'pool_kernel');
  }
  const g: Geometry = { kernel, stride, padding, dilation: [1, 1], groups: channels };
  return convDataGradient(planes, kernelValue, extents(x), g);
}

export const convRules = {
  Conv: (c) => {
    const g = geometry(c.attributes);
    const [x, w] = [operand(c, 0), operand(c, 1)];
    return [
      () => {
        const stored = keepsStored(w, c.grad, c.frugal);
        if (stored) w.graph.keepAsStored(w);
        return convDataGradient(c.grad, w, extents(x), g, stored);
      },
      () => convWeightGradient(x, c.grad, g),
      () => biasGradient(c.grad),
    ];
  },
  ConvTranspose: (c) => {
    const g = geometry(c.attributes);
    const [x, w] = [operand(c, 0), operand(c, 1)];
    return [
      // The weight [C, O / G, kH, kW] reads as a convolution's kernel from O to C channels.
      () => crop(conv2d(c.grad, w, undefined, g), extents(x)),
      () => convWeightGradient(c.grad, x, g),
      () => biasGradient(c.grad),
    ];
  },
  AveragePool: (c) => [() => scatterWindows(operand(c, 0), c.grad, c, 'uniform')],
  MaxPool: (c) => [
    () => {
      const x = operand(c, 0);
      const y = c.outputs[0]!;
      const [n, channels, oh, ow] = y.shape as unknown as [number, number, number, number];
      const [kh, kw] = intsAttribute(c.attributes, 'kernel_shape') as unknown as Pair;
      const [sh, sw] = intsAttribute(c.attributes, 'strides') as unknown as Pair;
      const [top, left, bottom, right] = intsAttribute(c.attributes, 'pads') as unknown as Sides;
      const padded = pad(
        x,
        [
          [0, 0],
          [0, 0],
          [top, bottom],
          [left, right],
        ],
        Number.NEGATIVE_INFINITY,
      );
      // The first element of the window that attains the maximum takes the gradient, as in PyTorch.
      let taken: Value | undefined;
      const planes: Value[] = [];
      for (let i = 0; i < kh; i++) {
        for (let j = 0; j < kw; j++) {
          const rows = slice(padded, 2, i, i + (oh - 1) * sh + 1, sh);
          const places = slice(rows, 3, j, j + (ow - 1) * sw + 1, sw);
          const hit = equal(places, y);
          const first: Value = taken ? and(hit, not(taken)) : hit;
          taken = taken ? or(taken, hit) : hit;
          planes.push(reshape(mul(c.grad, cast(first, x.dtype)), [n, channels, 1, oh, ow]));
        }
      }
      return scatterWindows(x, reshape(concat(planes, 2), [n, channels * kh * kw, oh, ow]), c, 'one-hot');
    },
  ],
  Resize: (c) => [
    () => {
      // Nearest by a whole number: every pixel was repeated scale * scale times.
      const x = operand(c, 0);
      const scale = c.grad.shape[2]! / x.shape[2]!;
      return mul(averagePool2d(c.grad, { kernel: scale }), scale * scale);
    },
  ],
} satisfies Record<string, Rule>;

/** The leading rows and columns: what a strided convolution yields beyond an input shows up only with output padding. */
function crop(x: Value, [h, w]: Pair): Value {
  return slice(slice(x, 2, 0, h), 3, 0, w);
}
