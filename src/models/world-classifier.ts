import type { Config } from '../formats/json-config.js';
import { conv2d } from '../nn/conv2d.js';
import { linear } from '../nn/linear.js';
import { groupNorm } from '../nn/norm.js';
import type { Scope } from '../nn/parameters.js';
import { silu } from '../onnx/elementwise.js';
import type { Value } from '../onnx/graph.js';
import { reshape } from '../onnx/movement.js';

const EPS = 1e-5;

/** Shape of the classifier, by the meaning of the keys of its `config.json`. */
export interface WorldClassifierConfig {
  /** Side of its pictures, in pixels. */
  readonly resolution: number;
  /** Channels of each block; each halves height and width. */
  readonly blockOutChannels: readonly number[];
  /** Convolutions of each block: the first halves. More of them where the picture is still large tell fine patterns apart. */
  readonly layersPerBlock: readonly number[];
  readonly normGroups: number;
  /** Features that all answers are read from. */
  readonly hiddenSize: number;
  /** How many nouns, scenes, colours and patterns it tells apart. */
  readonly nouns: number;
  readonly scenes: number;
  readonly colours: number;
  readonly patterns: number;
}

/** One score a class, [B, classes]; the largest is the answer. */
export interface WorldLogits {
  readonly noun: Value;
  readonly scene: Value;
  readonly colour: Value;
  readonly pattern: Value;
}

/** Tells what pictures [B, 3, R, R] in [-1, 1] show: blocks of convolutions that halve it, one hidden layer over all places, and a linear answer to each question. */
export function worldClassifier(scope: Scope, config: WorldClassifierConfig, pixels: Value): WorldLogits {
  const { blockOutChannels, layersPerBlock, normGroups, hiddenSize } = config;
  let h = pixels;
  blockOutChannels.forEach((out, i) => {
    for (let j = 0; j < layersPerBlock[i]!; j++) {
      const layer = scope.at('blocks', i, 'layers', j);
      const stride = j === 0 ? 2 : 1;
      h = conv2d(layer.at('conv'), h, { in: h.shape[1]!, out, kernel: 3, stride, padding: 1 });
      h = silu(groupNorm(layer.at('norm'), h, { groups: normGroups, eps: EPS }));
    }
  });
  const flat = reshape(h, [h.shape[0]!, -1]); // [B, C h w]
  const features = silu(linear(scope.at('hidden'), flat, { in: flat.shape[1]!, out: hiddenSize }));
  const answer = (name: string, out: number) =>
    linear(scope.at('answers', name), features, { in: hiddenSize, out });
  return {
    noun: answer('noun', config.nouns),
    scene: answer('scene', config.scenes),
    colour: answer('colour', config.colours),
    pattern: answer('pattern', config.patterns),
  };
}

/**
 * Reads the classifier's `config.json`.
 *
 * @throws ModelError naming file, key and value for anything that it cannot compute.
 */
export function readWorldClassifierConfig(config: Config): WorldClassifierConfig {
  config.must('_class_name', 'WorldClassifier');
  const blockOutChannels = config.integers('block_out_channels');
  const read: WorldClassifierConfig = {
    resolution: config.integer('resolution'),
    blockOutChannels,
    layersPerBlock: config.integers('layers_per_block', { length: blockOutChannels.length }),
    normGroups: config.integer('norm_num_groups'),
    hiddenSize: config.integer('hidden_size'),
    nouns: config.integer('num_nouns'),
    scenes: config.integer('num_scenes'),
    colours: config.integer('num_colours'),
    patterns: config.integer('num_patterns'),
  };
  config.finish();
  const { resolution, normGroups } = read;
  if (blockOutChannels.some((c) => c % normGroups !== 0))
    throw config.unsupported('norm_num_groups', 'a divisor of every entry of block_out_channels');
  if (resolution % 2 ** blockOutChannels.length !== 0)
    throw config.unsupported('resolution', `a multiple of ${2 ** blockOutChannels.length}`);
  return read;
}
