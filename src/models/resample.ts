import { conv2d, doubledConv } from '../nn/conv2d.js';
import type { Scope } from '../nn/parameters.js';
import type { Value } from '../onnx/graph.js';
import { gather } from '../onnx/movement.js';
import { int64 } from '../tensor/tensor.js';

/**
 * Halves height and width by a 3x3 convolution of stride 2: [B, C, H, W] -> [B, C, H', W']. Padding 1 is on all sides (the UNet's, odd extents round up);
 * padding 0 adds one row below and one column to the right instead (the autoencoder's, odd extents round down).
 */
export function downsample(scope: Scope, x: Value, padding: 0 | 1): Value {
  const channels = x.shape[1]!;
  return conv2d(scope.at('conv'), x, {
    in: channels,
    out: channels,
    kernel: 3,
    stride: 2,
    padding: padding === 1 ? 1 : [0, 0, 1, 1],
  });
}

/**
 * Enlarges to `size` [H', W'] (twice the extents by default) by repeating pixels, then a 3x3 convolution. A size other than twice the extents is what remains
 * where the matching `downsample` had to round.
 */
export function upsample(scope: Scope, x: Value, size?: readonly [number, number]): Value {
  const [, channels, height, width] = x.shape as [number, number, number, number];
  const doubled = size === undefined || (size[0] === 2 * height && size[1] === 2 * width);
  const conv = scope.at('conv');
  if (doubled) return doubledConv(conv, x, { in: channels, out: channels });
  const enlarged = repeatRows(repeatRows(x, 2, size[0]), 3, size[1]);
  return conv2d(conv, enlarged, { in: channels, out: channels, kernel: 3, padding: 1 });
}

/** Nearest-neighbour interpolation along one axis, with positions in float32 as PyTorch has them. */
function repeatRows(x: Value, axis: number, extent: number): Value {
  const scale = Math.fround(x.shape[axis]! / extent);
  const nearest = Array.from({ length: extent }, (_, i) => Math.floor(Math.fround(i * scale)));
  return gather(x, x.graph.constant(int64([extent], nearest), 'nearest'), axis);
}
