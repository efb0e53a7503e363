import type { Config } from '../formats/json-config.js';
import {
  type ClipTextConfig,
  clipText,
  clipTextPenultimate,
  clipTextProjection,
  readClipTextConfig,
  readClipTextProjectionConfig,
} from '../models/clip-text.js';
import type { Scope } from '../nn/parameters.js';
import type { Value } from '../onnx/graph.js';
import type { PipelineName } from './model-folder.js';

/** What the text encoders say of prompts: values of a graph, or tensors. Its names are those of the graph inputs that take it. */
export interface TextEmbedding<T> {
  /** What the denoiser attends to, [B, S, D]. */
  readonly condition: T;
  /** Each prompt in one vector, [B, P], for the kinds of model that take it. */
  readonly pooled?: T;
}

/** A text encoder's network over its configuration. */
export interface TextNetwork {
  readonly config: ClipTextConfig;
  /** Token ids int64 [B, S] to what this encoder adds to the embedding. */
  readonly embed: (scope: Scope, tokens: Value) => TextEmbedding<Value>;
}

/** The place of one text encoder in a kind of model. */
export interface TextEncoderRole {
  readonly encoder: 'text_encoder' | 'text_encoder_2';
  readonly tokenizer: 'tokenizer' | 'tokenizer_2';
  /** The graph input that takes its token ids [B, S]. */
  readonly tokens: string;
  readonly read: (config: Config) => TextNetwork;
}

/** What sets the kinds of Stable Diffusion apart. All else is the same for all, or is in the configuration of the networks. */
export interface PipelineKind {
  /** Their conditions are joined feature by feature, in this order. */
  readonly textEncoders: readonly TextEncoderRole[];
  /** Whether guidance without a negative prompt leads away from zeros rather than from the empty prompt, where `model_index.json` does not say. */
  readonly zerosForEmptyPrompt: boolean;
}

const first = { encoder: 'text_encoder', tokenizer: 'tokenizer', tokens: 'tokens' } as const;
const second = { encoder: 'text_encoder_2', tokenizer: 'tokenizer_2', tokens: 'tokens_2' } as const;

export const pipelineKinds: Readonly<Record<PipelineName, PipelineKind>> = {
  StableDiffusionPipeline: {
    textEncoders: [{ ...first, read: readLast }],
    zerosForEmptyPrompt: false,
  },
  StableDiffusionXLPipeline: {
    textEncoders: [
      { ...first, read: readPenultimate },
      { ...second, read: readProjection },
    ],
    zerosForEmptyPrompt: true,
  },
};

function readLast(file: Config): TextNetwork {
  const config = readClipTextConfig(file);
  return { config, embed: (scope, tokens) => ({ condition: clipText(scope, config, tokens) }) };
}

function readPenultimate(file: Config): TextNetwork {
  const config = readClipTextConfig(file);
  return { config, embed: (scope, tokens) => ({ condition: clipTextPenultimate(scope, config, tokens) }) };
}

function readProjection(file: Config): TextNetwork {
  const config = readClipTextProjectionConfig(file);
  return {
    config,
    embed: (scope, tokens) => {
      const { penultimate, projected } = clipTextProjection(scope, config, tokens);
      return { condition: penultimate, pooled: projected };
    },
  };
}
