import type { Config } from '../formats/json-config.js';
import { multiHeadAttention } from '../nn/attention.js';
import { embedding } from '../nn/embedding.js';
import { linear } from '../nn/linear.js';
import { layerNorm } from '../nn/norm.js';
import { type Initializer, Scope } from '../nn/parameters.js';
import { add, cast, equal, gelu, quickGelu } from '../onnx/elementwise.js';
import type { Value } from '../onnx/graph.js';
import { gather, reshape, slice } from '../onnx/movement.js';
import { argMax } from '../onnx/reduction.js';
import { float32, int64 } from '../tensor/tensor.js';

/** Added to the score of a token that must not be seen: exp gives exactly 0 in float32. */
const BLOCKED = -1e9;

const activations = { quick_gelu: quickGelu, gelu } as const;

/** Shape of the transformer layers of either half of CLIP. */
export interface ClipLayerConfig {
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly layers: number;
  readonly heads: number;
  readonly activation: keyof typeof activations;
  readonly layerNormEps: number;
}

/** Shape of a CLIP text encoder, by the meaning of the keys of its `config.json`. */
export interface ClipTextConfig extends ClipLayerConfig {
  readonly vocabSize: number;
  /** Longest sequence, in tokens. */
  readonly maxPositions: number;
}

/** Shape of a CLIP text encoder with the projection into the space that texts and pictures share. */
export interface ClipTextProjectionConfig extends ClipTextConfig {
  readonly projectionDim: number;
  /** The token at which a text is summed up: the first of this id. */
  readonly endToken: number | 'highest';
}

/**
 * The text half of CLIP (Radford et al., arXiv 2103.00020): a causal pre-norm transformer. Token ids int64 [B, T], T at most `maxPositions`, to the hidden states
 * [B, T, hiddenSize] after the last layer normalisation, which is what Stable Diffusion 1 and 2 are conditioned on.
 */
export function clipText(scope: Scope, config: ClipTextConfig, tokens: Value): Value {
  const model = withOrWithoutPrefix(scope);
  const last = hiddenStates(model, config, tokens, config.layers).at(-1)!;
  return layerNorm(model.at('final_layer_norm'), last, { eps: config.layerNormEps });
}

/**
 * The hidden states [B, T, hiddenSize] that go into the last layer, as they are, which is what SDXL is conditioned on (Podell et al., arXiv 2307.01952, section 2.1).
 * The last layer is not built.
 */
export function clipTextPenultimate(scope: Scope, config: ClipTextConfig, tokens: Value): Value {
  return hiddenStates(withOrWithoutPrefix(scope), config, tokens, config.layers - 1).at(-1)!;
}

/** What `clipTextProjection` gives. */
export interface ClipTextProjection {
  /** The hidden states that go into the last layer, [B, T, hiddenSize]. */
  readonly penultimate: Value;
  /** The text in one vector: its end token after the last layer and normalisation, projected; [B, projectionDim]. */
  readonly projected: Value;
}

/** A CLIP text encoder with its projection (`text_projection`), run once for both of what SDXL takes from it. Token ids int64 [B, T]. */
export function clipTextProjection(
  scope: Scope,
  config: ClipTextProjectionConfig,
  tokens: Value,
): ClipTextProjection {
  const { hiddenSize, projectionDim, layerNormEps: eps } = config;
  const model = withOrWithoutPrefix(scope);
  const [penultimate, last] = hiddenStates(model, config, tokens, config.layers).slice(-2) as [Value, Value];
  const states = layerNorm(model.at('final_layer_norm'), last, { eps }); // [B, T, C]
  const ends = rowsAt(states, endPositions(tokens, config.endToken)); // [B, C]
  const projected = linear(scope.at('text_projection'), ends, {
    in: hiddenSize,
    out: projectionDim,
    bias: false,
    weightInit: { kind: 'normal', std: hiddenSize ** -0.5 },
  });
  return { penultimate, projected };
}

/** The embedded tokens, and the hidden states after each of the first `count` layers: [B, T, C] each. */
function hiddenStates(model: Scope, config: ClipTextConfig, tokens: Value, count: number): Value[] {
  const length = tokens.shape[1]!;
  if (tokens.shape.length !== 2 || length > config.maxPositions) {
    throw new Error(`internal: CLIP takes tokens [B, T] with T <= ${config.maxPositions}, got ${tokens}`);
  }
  let x = embedTokens(model.at('embeddings'), config, tokens); // [B, T, C]
  const states = [x];
  const mask = causalMask(tokens, length);
  for (let i = 0; i < count; i++) {
    x = clipLayer(model.at('encoder', 'layers', i), config, x, mask);
    states.push(x);
  }
  return states;
}

/** Where each text [B, T] ends, [B]. Configurations older than transformers' PR #24773 have no end token; there it is the highest id of the vocabulary. */
function endPositions(tokens: Value, endToken: number | 'highest'): Value {
  // Ids are far below 2^24, so that they are exact in float32, the type that every runtime can search.
  if (endToken === 'highest') return argMax(cast(tokens, 'float32'), 1);
  return argMax(cast(equal(tokens, endToken), 'float32'), 1);
}

/** Row `positions[b]` of each x[b]: [B, T, C] and int64 [B] to [B, C]. */
function rowsAt(x: Value, positions: Value): Value {
  const [batch, length, width] = x.shape as [number, number, number];
  const starts = Array.from({ length: batch }, (_, b) => b * length);
  const places = add(positions, x.graph.constant(int64([batch], starts), 'row_starts'));
  return gather(reshape(x, [batch * length, width]), places, 0);
}

/** One pre-norm transformer layer, which CLIP's text and vision halves share: [B, T, C] -> [B, T, C]. */
export function clipLayer(scope: Scope, config: ClipLayerConfig, x: Value, mask?: Value): Value {
  const { layerNormEps: eps } = config;
  const normed = layerNorm(scope.at('layer_norm1'), x, { eps });
  const y = add(x, selfAttention(scope.at('self_attn'), config, normed, mask));
  return add(y, feedForward(scope.at('mlp'), config, layerNorm(scope.at('layer_norm2'), y, { eps })));
}

/**
 * All published checkpoints name the parameters below `text_model`; files written by newer libraries leave that out. Low-rank updates keep the prefix in both
 * cases, as it is part of the names that other tools look for.
 */
function withOrWithoutPrefix(scope: Scope): Scope {
  const { source, path, computation } = scope;
  const prefixed = scope.at('text_model');
  if (!scope.has('embeddings.token_embedding.weight')) return prefixed;
  const stored = (name: string): string => `${path}${path && '.'}${name.slice(prefixed.path.length + 1)}`;
  return new Scope(
    {
      parameter: (name, shape, init) => source.parameter(stored(name), shape, init),
      lora: (name, weight) => source.lora?.(name, weight),
      addedRows: (name, table) => source.addedRows?.(name, table),
    },
    prefixed.path,
    computation,
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
  const table = scope.weight('weight', [count, dim], init);
  return length === count ? table : slice(table, 0, 0, length);
}

function causalMask(tokens: Value, length: number): Value {
  const mask = Float32Array.from({ length: length * length }, (_, i) =>
    i % length > Math.floor(i / length) ? BLOCKED : 0,
  );
  return tokens.graph.constant(float32([length, length], mask), 'causal_mask'); // [T, T]
}

function selfAttention(scope: Scope, config: ClipLayerConfig, x: Value, mask: Value | undefined): Value {
  const { hiddenSize: dim, heads, layers } = config;
  const biasInit: Initializer = { kind: 'zeros' };
  const inward: Initializer = { kind: 'normal', std: dim ** -0.5 * (2 * layers) ** -0.5 };
  const project = (name: string, from: Value, weightInit: Initializer): Value =>
    linear(scope.at(name), from, { in: dim, out: dim, weightInit, biasInit });
  const mixed = multiHeadAttention(
    project('q_proj', x, inward),
    project('k_proj', x, inward),
    project('v_proj', x, inward),
    mask ? { heads, mask } : { heads },
  );
  return project('out_proj', mixed, { kind: 'normal', std: dim ** -0.5 });
}

function feedForward(scope: Scope, config: ClipLayerConfig, x: Value): Value {
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
  // The hidden states depend on neither.
  config.ignore('eos_token_id', 'projection_dim');
  const read = readEncoder(config);
  config.finish();
  return read;
}

/**
 * Reads the `config.json` of a text encoder with a projection, SDXL's `text_encoder_2`. Absent keys take transformers' own defaults.
 *
 * @throws ModelError naming file, key and value for anything that this encoder cannot compute.
 */
export function readClipTextProjectionConfig(config: Config): ClipTextProjectionConfig {
  config.must('architectures', ['CLIPTextModelWithProjection'], ['CLIPTextModelWithProjection']);
  const read = readProjection(config, config.integer('projection_dim', 512));
  config.finish();
  return read;
}

/**
 * Reads the text half of a whole CLIPModel, whose configuration keeps the shared size above its halves. Absent keys take transformers' own defaults.
 *
 * @throws ModelError naming file, key and value for anything that this encoder cannot compute.
 */
export function readClipTextHalf(config: Config, projectionDim: number): ClipTextProjectionConfig {
  config.ignore('projection_dim');
  const read = readProjection(config, projectionDim);
  config.finish();
  return read;
}

function readProjection(config: Config, projectionDim: number): ClipTextProjectionConfig {
  const endToken = config.integer('eos_token_id', 49407, 0);
  return {
    ...readEncoder(config),
    projectionDim,
    endToken: endToken === WRONG_END_TOKEN ? 'highest' : endToken,
  };
}

/** What configurations gave as `eos_token_id` before transformers' PR #24773, whatever the vocabulary. */
const WRONG_END_TOKEN = 2;

function readEncoder(config: Config): ClipTextConfig {
  config.oneOf('model_type', ['clip_text_model', 'clip_text'], 'clip_text_model');
  // These place special tokens or concern training.
  config.ignore('bos_token_id', 'pad_token_id');
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
  if (read.hiddenSize % read.heads !== 0) {
    throw config.unsupported('num_attention_heads', `a divisor of hidden_size (${read.hiddenSize})`);
  }
  return read;
}
