import { recompute } from '../autodiff/recompute.js';
import type { Scope } from '../nn/parameters.js';
import type { Value } from '../onnx/graph.js';
import { concat } from '../onnx/movement.js';
import { downsample, upsample } from './resample.js';
import { resnetBlock } from './resnet-block.js';
import { transformer2D } from './transformer-2d.js';

/** The transformers of one level of the UNet. */
export interface LevelAttention {
  readonly heads: number;
  readonly depth: number;
  readonly linearProjection: boolean;
}

/** One level of the UNet: its width, its residual blocks and, where the level attends to the text, its transformers. */
export interface Level {
  readonly channels: number;
  /** Number of residual blocks on the way down; one more on the way up. */
  readonly layers: number;
  readonly groups: number;
  readonly eps: number;
  readonly attention?: LevelAttention;
}

/** What every block is given besides the image; above all the activated time embedding [B, E] and the text condition [B, S, C]. */
export interface Conditions {
  readonly time: Value;
  readonly context: Value;
  /** Whether inner values are computed again in the backward pass: those of a transformer but for its attention over many tokens, and of a residual block what is cheap to have again. */
  readonly recompute: boolean;
}

/** Gives the values that the way up will join again, in order; the last one goes on downwards. */
export function downBlock(
  scope: Scope,
  x: Value,
  level: Level,
  conditions: Conditions,
  options: { downsamplePadding?: 0 | 1 },
): Value[] {
  const skips: Value[] = [];
  let h = x;
  for (let i = 0; i < level.layers; i++) {
    h = layer(scope, i, h, level, conditions);
    skips.push(h);
  }
  if (options.downsamplePadding !== undefined) {
    skips.push(downsample(scope.at('downsamplers', 0), h, options.downsamplePadding));
  }
  return skips;
}

/** A residual block, then a transformer and a residual block for each layer of attention (one, or none). */
export function midBlock(scope: Scope, x: Value, level: Level, conditions: Conditions): Value {
  const h = residual(scope, 0, x, level, conditions);
  return residual(scope, 1, attend(scope, 0, h, level, conditions), level, conditions);
}

/** Joins the way down's values, last first, channel by channel. `size` is the extent [H, W] to upsample to; without it the block does not upsample. */
export function upBlock(
  scope: Scope,
  x: Value,
  skips: readonly Value[],
  level: Level,
  conditions: Conditions,
  size?: readonly [number, number],
): Value {
  let h = x;
  [...skips].reverse().forEach((skip, i) => {
    h = layer(scope, i, concat([h, skip], 1), level, conditions);
  });
  return size ? upsample(scope.at('upsamplers', 0), h, size) : h;
}

/** A residual block, then a transformer where the level attends to the text. */
function layer(scope: Scope, i: number, x: Value, level: Level, conditions: Conditions): Value {
  return attend(scope, i, residual(scope, i, x, level, conditions), level, conditions);
}

function residual(scope: Scope, i: number, x: Value, level: Level, conditions: Conditions): Value {
  const { channels: out, groups, eps } = level;
  const { time, recompute: recomputed } = conditions;
  return resnetBlock(scope.at('resnets', i), x, { out, groups, eps, time, recomputed });
}

function attend(scope: Scope, i: number, x: Value, level: Level, conditions: Conditions): Value {
  const { attention, groups } = level;
  if (!attention) return x;
  const block = (h: Value, context: Value): Value =>
    transformer2D(scope.at('attentions', i), h, { ...attention, groups, context });
  return conditions.recompute ? recompute([x, conditions.context], block) : block(x, conditions.context);
}
