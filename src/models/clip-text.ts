import type { Config } from '../formats/json-config.js';
import { multiHeadAttention } from '../nn/attention.js';
import { embedding } from '../nn/embedding.js';
import { linear } from '../nn/linear.js';
import { layerNorm } from '../nn/norm.js';
import { type Initializer, Scope } from '../nn/parameters.js';
import { add, gelu, quickGelu } from '../onnx/elementwise.js';
import type { Value } from '../onnx/graph.js';
import { slice } from '../onnx/movement.js';
import { float32 } from '../tensor/tensor.js';

/** Added to the score of a token that must not be seen: exp gives exactly 0 in float32. */
const BLOCKED = -1e9;

const activations = { quick_gelu: quickGelu, gelu } as const;

/** Shape of a CLIP text encoder, by the meaning of the keys of its `config.json`. */
export interface ClipTextConfig {
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly layers: number;
  readonly heads: number;
  /** Longest sequence, in tokens. */
  readonly maxPositions: number;
  readonly activation: keyof typeof activations;
  readonly layerNormEps: number;
}

/**
 * The text half of CLIP (Radford et al., arXiv 2103.00020): a causal pre-norm transformer. Token ids int64 [B, T], T at most `maxPositions`, to the hidden states
 * [B, T, hiddenSize] after the last layer normalisation, which is what Stable Diffusion 1 and 2 are conditioned on.
 */
export function clipText(scope: Scope, config: ClipTextConfig, tokens: Value): Value {
  const { layerNormEps: eps } = config;
  const length = tokens.shape[1]!;
  if (tokens.shape.length !== 2 || length > config.maxPositions) {
    throw new Error(`internal: CLIP takes tokens [B, T] with T <= ${config.maxPositions}, got ${tokens}`);
  }
  const model = withOrWithoutPrefix(scope);
  let x = embedTokens(model.at('embeddings'), config, tokens); // [B, T, C]
  const mask = causalMask(tokens, length);
  for (let i = 0; i < config.layers; i++) {
    const layer = model.at('encoder', 'layers', i);
    x = add(
      x,
      selfAttention(layer.at('self_attn'), config, layerNorm(layer.at('layer_norm1'), x, { eps }), mask),
    );
    x = add(x, feedForward(layer.at('mlp'), config, layerNorm(layer.at('layer_norm2'), x, { eps })));
  }
  return layerNorm(model.at('final_layer_norm'), x, { eps });
}

/**
 * All published checkpoints name the parameters below `text_model`; files written by newer libraries leave that out. Low-rank updates keep the prefix in both
 * cases, as it is part of the names that other tools look for.
 */
function withOrWithoutPrefix(scope: Scope): Scope {
  const { source, path } = scope;
  const prefixed = scope.at('text_model');
  if (!scope.has('embeddings.token_embedding.weight')) return prefixed;
  const stored = (name: string): string => `${path}${path && '.'}${name.slice(prefixed.path.length + 1)}`;
  return new Scope(
    {
      parameter: (name, shape, init) => source.parameter(stored(name), shape, init),
      lora: (name, inFeatures, outFeatures) => source.lora?.(name, inFeatures, outFeatures),
    },
    prefixed.path,
  );
}

function embedTokens(scope: Scope, config: ClipTextConfig, tokens: Value): Value {
  const { vocabSize, hiddenSize, maxPositions } = config;
  const init: Initializer = { kind: 'normal', std: 0.02 };
  const words = embedding(scope.at('token_embedding'), tokens, { count: vocabSize, dim: hiddenSize, init });
  const places = positions(scope.at('position_embedding'), maxPositions, hiddenSize, tokens.shape[1]!, init);
  return add(words, places); // [B, T, C] + [T, C]
}

function positions(scope: Scope, count: number, dim: number, length: number, init: Initializer): Value {
  const table = scope.parameter('weight', [count, dim], init);
  return length === count ? table : slice(table, 0, 0, length);
}

function causalMask(tokens: Value, length: number): Value {
  const mask = Float32Array.from({ length: length * length }, (_, i) =>
    i % length > Math.floor(i / length) ? BLOCKED : 0,
  );
  return tokens.graph.constant(float32([length, length], mask), 'causal_mask'); // [T, T]
}

function selfAttention(scope: Scope, config: ClipTextConfig, x: Value, mask: Value): Value {
  const { hiddenSize: dim, heads, layers } = config;
  const biasInit: Initializer = { kind: 'zeros' };
  const inward: Initializer = { kind: 'normal', std: dim ** -0.5 * (2 * layers) ** -0.5 };
  const project = (name: string, from: Value, weightInit: Initializer): Value =>
    linear(scope.at(name), from, { in: dim, out: dim, weightInit, biasInit });
  const mixed = multiHeadAttention(
    project('q_proj', x, inward),
    project('k_proj', x, inward),
    project('v_proj', x, inward),
    { heads, mask },
  );
  return project('out_proj', mixed, { kind: 'normal', std: dim ** -0.5 });
}

function feedForward(scope: Scope, config: ClipTextConfig, x: Value): Value {
  const { hiddenSize: dim, intermediateSize: inner, layers, activation } = config;
  const biasInit: Initializer = { kind: 'zeros' };
  const widened = linear(scope.at('fc1'), x, {
    in: dim,
    out: inner,
    weightInit: { kind: 'normal', std: (2 * dim) ** -0.5 },
    biasInit,
  });
  return linear(scope.at('fc2'), activations[activation](widened), {
    in: inner,
    out: dim,
    weightInit: { kind: 'normal', std: dim ** -0.5 * (2 * layers) ** -0.5 },
    biasInit,
  });
}

/**
 * Reads a transformers `text_encoder/config.json`. Absent keys take transformers' own defaults.
 *
 * @throws ModelError naming file, key and value for anything that this encoder cannot compute.
 */
export function readClipTextConfig(config: Config): ClipTextConfig {
  config.must('architectures', ['CLIPTextModel'], ['CLIPTextModel']);
  config.oneOf('model_type', ['clip_text_model', 'clip_text'], 'clip_text_model');
  // These place special tokens or concern training; the last hidden state does not depend on them.
  config.ignore('bos_token_id', 'eos_token_id', 'pad_token_id', 'projection_dim');
  config.ignore('attention_dropout', 'dropout', 'initializer_factor', 'initializer_range');
  config.ignore('torch_dtype', 'dtype', 'transformers_version');
  const read: ClipTextConfig = {
    vocabSize: config.integer('vocab_size', 49408),
    hiddenSize: config.integer('hidden_size', 512),
    intermediateSize: config.integer('intermediate_size', 2048),
    layers: config.integer('num_hidden_layers', 12),
    heads: config.integer('num_attention_heads', 8),
    maxPositions: config.integer('max_position_embeddings', 77),
    activation: config.oneOf('hidden_act', ['quick_gelu', 'gelu'], 'quick_gelu'),
    layerNormEps: config.number('layer_norm_eps', 1e-5),
  };
  config.finish();
  if (read.hiddenSize % read.heads !== 0) {
    throw config.unsupported('num_attention_heads', `a divisor of hidden_size (${read.hiddenSize})`);
  }
  return read;
}
