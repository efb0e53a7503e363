import type { Config } from '../formats/json-config.js';
import { multiHeadAttention } from '../nn/attention.js';
import { linear } from '../nn/linear.js';
import { layerNorm } from '../nn/norm.js';
import type { Initializer, Scope } from '../nn/parameters.js';
import { add, gelu } from '../onnx/elementwise.js';
import type { Value } from '../onnx/graph.js';
import { reshape, slice } from '../onnx/movement.js';
import { ignoreLibraryKeys } from './library-keys.js';
import { patchTokens } from './patch-tokens.js';

const init: Initializer = { kind: 'normal', std: 0.02 };
const zero: Initializer = { kind: 'zeros' };

/** Shape of a vision transformer, by the meaning of the keys of its `config.json`. */
export interface ViTConfig {
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly layers: number;
  readonly heads: number;
  readonly layerNormEps: number;
  readonly qkvBias: boolean;
  /** Side of the pictures that it was trained on, in pixels. */
  readonly imageSize: number;
  readonly patchSize: number;
}

/**
 * A vision transformer in the layout of transformers' ViTModel, which google/vit-* and facebook/dino-vit* use (Dosovitskiy et al., arXiv 2010.11929; Caron et
 * al., arXiv 2104.14294). Prepared pictures [B, 3, H, W] to the class token after the last normalisation, [B, hiddenSize]: DINO's embedding.
 */
export function vit(scope: Scope, config: ViTConfig, pixels: Value): Value {
  const { hiddenSize: dim, intermediateSize: inner, layerNormEps: eps } = config;
  let x = vitTokens(scope.at('embeddings'), config, pixels);
  for (let i = 0; i < config.layers; i++) {
    const layer = scope.at('encoder', 'layer', i);
    const normed = layerNorm(layer.at('layernorm_before'), x, { eps });
    x = add(x, vitAttention(layer.at('attention'), config, normed));
    const widened = linear(
      layer.at('intermediate', 'dense'),
      layerNorm(layer.at('layernorm_after'), x, { eps }),
      {
        in: dim,
        out: inner,
        weightInit: init,
        biasInit: zero,
      },
    );
    x = add(
      x,
      linear(layer.at('output', 'dense'), gelu(widened), {
        in: inner,
        out: dim,
        weightInit: init,
        biasInit: zero,
      }),
    );
  }
  return classToken(layerNorm(scope.at('layernorm'), x, { eps }));
}

/** Tokens [B, T, D] of a picture, from the parameters that ViT and DINOv2 both keep below `embeddings`. */
export function vitTokens(
  scope: Scope,
  config: Pick<ViTConfig, 'hiddenSize' | 'imageSize' | 'patchSize'>,
  pixels: Value,
): Value {
  const { hiddenSize: dim, imageSize, patchSize: patch } = config;
  const projection = scope.at('patch_embeddings', 'projection');
  const grid = Math.floor(imageSize / patch);
  return patchTokens(pixels, patch, {
    weight: projection.parameter('weight', [dim, 3, patch, patch], init),
    bias: projection.parameter('bias', [dim], zero),
    classToken: scope.parameter('cls_token', [1, 1, dim], init),
    positions: scope.parameter('position_embeddings', [1, 1 + grid * grid, dim], init),
  });
}

/** Self-attention of tokens [B, T, D], with the names of ViT and DINOv2. */
export function vitAttention(
  scope: Scope,
  config: Pick<ViTConfig, 'hiddenSize' | 'heads' | 'qkvBias'>,
  x: Value,
): Value {
  const { hiddenSize: dim, heads, qkvBias: bias } = config;
  const project = (name: string): Value =>
    linear(scope.at('attention', name), x, { in: dim, out: dim, bias, weightInit: init, biasInit: zero });
  const mixed = multiHeadAttention(project('query'), project('key'), project('value'), { heads });
  return linear(scope.at('output', 'dense'), mixed, { in: dim, out: dim, weightInit: init, biasInit: zero });
}

/** The first token of [B, T, D], as [B, D]. */
export function classToken(x: Value): Value {
  return reshape(slice(x, 1, 0, 1), [x.shape[0]!, x.shape[2]!]);
}

/**
 * Reads the `config.json` of a ViTModel. Absent keys take transformers' own defaults.
 *
 * @throws ModelError naming file, key and value for anything that it cannot compute.
 */
export function readViTConfig(config: Config): ViTConfig {
  config.oneOf('model_type', ['vit'], 'vit');
  ignoreLibraryKeys(config);
  // The pooling layer was trained for classes; DINO has none, and the embedding is what comes before it.
  config.ignore('architectures', 'pooler_act', 'pooler_output_size');
  config.must('hidden_act', 'gelu', 'gelu');
  config.must('num_channels', 3, 3);
  const read: ViTConfig = {
    hiddenSize: config.integer('hidden_size', 768),
    intermediateSize: config.integer('intermediate_size', 3072),
    layers: config.integer('num_hidden_layers', 12),
    heads: config.integer('num_attention_heads', 12),
    layerNormEps: config.number('layer_norm_eps', 1e-12),
    qkvBias: config.boolean('qkv_bias', true),
    imageSize: config.integer('image_size', 224),
    patchSize: config.integer('patch_size', 16),
  };
  config.finish();
  if (read.hiddenSize % read.heads !== 0) {
    throw config.unsupported('num_attention_heads', `a divisor of hidden_size (${read.hiddenSize})`);
  }
  return read;
}
