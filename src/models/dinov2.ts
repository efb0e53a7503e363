import type { Config } from '../formats/json-config.js';
import { linear } from '../nn/linear.js';
import { layerNorm } from '../nn/norm.js';
import type { Scope } from '../nn/parameters.js';
import { add, gelu, mul, silu } from '../onnx/elementwise.js';
import type { Value } from '../onnx/graph.js';
import { split } from '../onnx/movement.js';
import { ignoreLibraryKeys } from './library-keys.js';
import { classToken, vitAttention, vitTokens } from './vit.js';

/** Shape of a DINOv2 encoder, by the meaning of the keys of its `config.json`. */
export interface Dinov2Config {
  readonly hiddenSize: number;
  readonly layers: number;
  readonly heads: number;
  readonly layerNormEps: number;
  readonly qkvBias: boolean;
  /** Side of the pictures that the positions were trained for, in pixels. */
  readonly imageSize: number;
  readonly patchSize: number;
  readonly mlpRatio: number;
  /** A gated feed-forward layer (the giant model) in place of GELU. */
  readonly swiglu: boolean;
}

/**
 * DINOv2 in the layout of transformers' Dinov2Model (Oquab et al., arXiv 2304.07193): a vision transformer whose branches are scaled by learnt vectors. Prepared
 * pictures [B, 3, H, W] to the class token after the last normalisation, [B, hiddenSize].
 */
export function dinov2(scope: Scope, config: Dinov2Config, pixels: Value): Value {
  const { hiddenSize: dim, layerNormEps: eps } = config;
  let x = vitTokens(scope.at('embeddings'), config, pixels);
  for (let i = 0; i < config.layers; i++) {
    const layer = scope.at('encoder', 'layer', i);
    const scaled = (name: string, y: Value): Value =>
      mul(y, layer.at(name).parameter('lambda1', [dim], { kind: 'ones' }));
    const attended = vitAttention(layer.at('attention'), config, layerNorm(layer.at('norm1'), x, { eps }));
    x = add(x, scaled('layer_scale1', attended));
    const fed = feedForward(layer.at('mlp'), config, layerNorm(layer.at('norm2'), x, { eps }));
    x = add(x, scaled('layer_scale2', fed));
  }
  return classToken(layerNorm(scope.at('layernorm'), x, { eps }));
}

function feedForward(scope: Scope, { hiddenSize: dim, mlpRatio, swiglu }: Dinov2Config, x: Value): Value {
  const inner = Math.floor(dim * mlpRatio);
  if (!swiglu) {
    const widened = gelu(linear(scope.at('fc1'), x, { in: dim, out: inner }));
    return linear(scope.at('fc2'), widened, { in: inner, out: dim });
  }
  // Two thirds of the width, up to the next multiple of 8: as many weights as without the gate.
  const gated = Math.floor((Math.floor((inner * 2) / 3) + 7) / 8) * 8;
  const widened = linear(scope.at('weights_in'), x, { in: dim, out: 2 * gated });
  const [gate, hidden] = split(widened, [gated, gated], -1) as [Value, Value];
  return linear(scope.at('weights_out'), mul(silu(gate), hidden), { in: gated, out: dim });
}

/**
 * Reads the `config.json` of a Dinov2Model. Absent keys take transformers' own defaults.
 *
 * @throws ModelError naming file, key and value for anything that it cannot compute.
 */
export function readDinov2Config(config: Config): Dinov2Config {
  config.oneOf('model_type', ['dinov2'], 'dinov2');
  ignoreLibraryKeys(config);
  // What a backbone would hand on, and the token for hidden patches, concern other uses of the encoder.
  config.ignore('architectures', 'apply_layernorm', 'out_features', 'out_indices', 'reshape_hidden_states');
  config.ignore('stage_names', 'use_mask_token', 'layerscale_value');
  config.must('hidden_act', 'gelu', 'gelu');
  config.must('num_channels', 3, 3);
  const read: Dinov2Config = {
    hiddenSize: config.integer('hidden_size', 768),
    layers: config.integer('num_hidden_layers', 12),
    heads: config.integer('num_attention_heads', 12),
    layerNormEps: config.number('layer_norm_eps', 1e-6),
    qkvBias: config.boolean('qkv_bias', true),
    imageSize: config.integer('image_size', 224),
    patchSize: config.integer('patch_size', 14),
    mlpRatio: config.number('mlp_ratio', 4),
    swiglu: config.boolean('use_swiglu_ffn', false),
  };
  config.finish();
  if (read.hiddenSize % read.heads !== 0) {
    throw config.unsupported('num_attention_heads', `a divisor of hidden_size (${read.hiddenSize})`);
  }
  return read;
}
