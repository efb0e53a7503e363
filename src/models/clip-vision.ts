import type { Config } from '../formats/json-config.js';
import { linear } from '../nn/linear.js';
import { layerNorm } from '../nn/norm.js';
import type { Initializer, Scope } from '../nn/parameters.js';
import type { Value } from '../onnx/graph.js';
import {
  type ClipLayerConfig,
  type ClipTextProjectionConfig,
  clipLayer,
  readClipTextHalf,
} from './clip-text.js';
import { ignoreLibraryKeys } from './library-keys.js';
import { patchTokens } from './patch-tokens.js';
import { classToken } from './vit.js';

/** Shape of CLIP's vision half, by the meaning of the keys of its configuration. */
export interface ClipVisionConfig extends ClipLayerConfig {
  /** Side of the pictures that it was trained on, in pixels. */
  readonly imageSize: number;
  readonly patchSize: number;
}

/** Both halves of CLIP and the size of the space that they share. */
export interface ClipConfig {
  readonly text: ClipTextProjectionConfig;
  readonly vision: ClipVisionConfig;
  readonly projectionDim: number;
}

const init: Initializer = { kind: 'normal', std: 0.02 };

/**
 * The vision half of CLIP (Radford et al., arXiv 2103.00020) with its projection: prepared pictures [B, 3, H, W] to embeddings [B, projectionDim], not normalised.
 *
 * @param scope the place of the whole CLIPModel
 */
export function clipImageEmbedding(
  scope: Scope,
  { vision, projectionDim }: ClipConfig,
  pixels: Value,
): Value {
  const { hiddenSize: dim, imageSize, patchSize: patch, layerNormEps: eps } = vision;
  const model = scope.at('vision_model');
  const embeddings = model.at('embeddings');
  const count = 1 + Math.floor(imageSize / patch) ** 2;
  let x = patchTokens(pixels, patch, {
    weight: embeddings.at('patch_embedding').parameter('weight', [dim, 3, patch, patch], init),
    classToken: embeddings.parameter('class_embedding', [dim], init),
    positions: embeddings.at('position_embedding').parameter('weight', [count, dim], init),
  });
  // The misspelt name is the checkpoint's.
  x = layerNorm(model.at('pre_layrnorm'), x, { eps });
  for (let i = 0; i < vision.layers; i++) x = clipLayer(model.at('encoder', 'layers', i), vision, x);
  const pooled = layerNorm(model.at('post_layernorm'), classToken(x), { eps });
  return linear(scope.at('visual_projection'), pooled, {
    in: dim,
    out: projectionDim,
    bias: false,
    weightInit: init,
  });
}

/**
 * Reads the `config.json` of a CLIPModel. Absent keys take transformers' own defaults.
 *
 * @throws ModelError naming file, key and value for anything that it cannot compute.
 */
export function readClipConfig(config: Config): ClipConfig {
  config.must('model_type', 'clip', 'clip');
  ignoreLibraryKeys(config);
  config.ignore('architectures', 'logit_scale_init_value');
  // Early files carry the parts twice; the second copies are only read where they say something.
  for (const part of ['text_config_dict', 'vision_config_dict']) config.must(part, null, null);
  const projectionDim = config.integer('projection_dim', 512);
  const text = config.object('text_config', true);
  const vision = config.object('vision_config', true);
  ignoreLibraryKeys(text);
  text.ignore('architectures');
  config.finish();
  return {
    text: readClipTextHalf(text, projectionDim),
    vision: readClipVisionConfig(vision),
    projectionDim,
  };
}

function readClipVisionConfig(config: Config): ClipVisionConfig {
  config.oneOf('model_type', ['clip_vision_model', 'clip_vision'], 'clip_vision_model');
  ignoreLibraryKeys(config);
  config.ignore('projection_dim', 'bos_token_id', 'eos_token_id', 'pad_token_id');
  config.must('num_channels', 3, 3);
  const read: ClipVisionConfig = {
    hiddenSize: config.integer('hidden_size', 768),
    intermediateSize: config.integer('intermediate_size', 3072),
    layers: config.integer('num_hidden_layers', 12),
    heads: config.integer('num_attention_heads', 12),
    activation: config.oneOf('hidden_act', ['quick_gelu', 'gelu'], 'quick_gelu'),
    layerNormEps: config.number('layer_norm_eps', 1e-5),
    imageSize: config.integer('image_size', 224),
    patchSize: config.integer('patch_size', 32),
  };
  config.finish();
  if (read.hiddenSize % read.heads !== 0) {
    throw config.unsupported('num_attention_heads', `a divisor of hidden_size (${read.hiddenSize})`);
  }
  return read;
}
