import type { Value } from '../onnx/graph.js';
import { pad, reshape, slice } from '../onnx/movement.js';

/** Pads one axis of x. */
export function padAxis(x: Value, axis: number, before: number, after: number): Value {
  return pad(
    x,
    x.shape.map((_, i) => (i === axis ? ([before, after] as const) : ([0, 0] as const))),
  );
}

/** Puts `gap` zeros between the entries of an axis. */
export function dilateAxis(x: Value, axis: number, gap: number): Value {
  if (gap === 0) return x;
  const extent = x.shape[axis]!;
  const [front, back] = [x.shape.slice(0, axis), x.shape.slice(axis + 1)];
  const spread = padAxis(reshape(x, [...front, extent, 1, ...back]), axis + 1, 0, gap);
  return slice(
    reshape(spread, [...front, extent * (gap + 1), ...back]),
    axis,
    0,
    (extent - 1) * (gap + 1) + 1,
  );
}
