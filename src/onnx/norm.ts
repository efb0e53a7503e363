import { full } from '../tensor/tensor.js';
import { add, cast, mul } from './elementwise.js';
import { GraphError, type Value } from './graph.js';
import { matmul } from './linalg.js';
import { matrixTranspose, reshape } from './movement.js';

/** Softmax over the last axis. */
export function softmax(x: Value): Value {
  return x.graph.add('Softmax', [x], [x], { axis: { int: -1 } })[0]!;
}

/** Normalises the last axis to mean 0 and variance 1 (biased, plus eps), then scales and shifts by [C] vectors where given. */
export function layerNorm(x: Value, scale: Value | undefined, bias: Value | undefined, eps: number): Value {
  const c = x.shape.at(-1);
  if (c === undefined) throw new GraphError('layerNorm of a scalar');
  for (const p of [scale, bias]) {
    if (p && p.shape.join() !== `${c}`) throw new GraphError(`layerNorm of ${x} with ${p}`);
  }
  const gain = scale ?? x.graph.constant(full([c], 1), 'ones');
  const statistics = { dtype: x.dtype, shape: [...x.shape.slice(0, -1), 1] } as const;
  const inputs = bias ? [x, gain, bias] : [x, gain];
  return x.graph.add('LayerNormalization', inputs, [x, statistics, statistics], {
    axis: { int: -1 },
    epsilon: { float: eps },
  })[0]!;
}

/**
 * Group normalisation of [N, C, H, W] (or [N, C, T]): each of `groups` blocks of channels is normalised over its channels and places, then each channel is scaled and
 * shifted by [C] vectors (Wu and He, ECCV 2018).
 */
export function groupNorm(x: Value, groups: number, scale: Value, bias: Value, eps: number): Value {
  const [n, c] = x.shape;
  if (n === undefined || c === undefined || c % groups !== 0)
    throw new GraphError(`groupNorm of ${x} in ${groups} groups`);
  // [N, C, ...] -> [N * groups, C / groups * ...]
  const normalized = reshape(layerNorm(reshape(x, [n * groups, -1]), undefined, undefined, eps), x.shape);
  const perChannel = [1, c, ...x.shape.slice(2).map(() => 1)];
  return add(mul(normalized, reshape(scale, perChannel)), reshape(bias, perChannel));
}

export interface AttentionOptions {
  /** 1 / sqrt(D) by default. */
  readonly scale?: number;
  /** Added to the scores; broadcasts to [..., T, S]. */
  readonly mask?: Value;
}

/**
 * softmax(scale * q k^T + mask) v over the last two axes. q: [..., T, D], k: [..., S, D], v: [..., S, E]; result: [..., T, E]. Of halves the softmax is computed in
 * float32, which is also the mask's type.
 */
export function attention(q: Value, k: Value, v: Value, options: AttentionOptions = {}): Value {
  const scale = options.scale ?? 1 / Math.sqrt(q.shape.at(-1)!);
  // The scale goes onto q, which is smaller than the scores.
  const scores = cast(matmul(mul(q, scale), matrixTranspose(k)), 'float32');
  return matmul(cast(softmax(options.mask ? add(scores, options.mask) : scores), v.dtype), v);
}
