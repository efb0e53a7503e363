import { ModelError } from '../errors.js';
import type { Config } from '../formats/json-config.js';
import { conv2d } from '../nn/conv2d.js';
import { linear } from '../nn/linear.js';
import { groupNorm } from '../nn/norm.js';
import type { Scope } from '../nn/parameters.js';
import { timestepEmbedding } from '../nn/timestep-embedding.js';
import { add, cast, mul, silu, sub } from '../onnx/elementwise.js';
import type { Value } from '../onnx/graph.js';
import { concat, reshape } from '../onnx/movement.js';
import { type Conditions, downBlock, type Level, midBlock, upBlock } from './unet-blocks.js';

const DOWN_BLOCKS = ['CrossAttnDownBlock2D', 'DownBlock2D'] as const;
const MID_BLOCKS = ['UNetMidBlock2DCrossAttn', null] as const;
const UP_BLOCKS = ['CrossAttnUpBlock2D', 'UpBlock2D'] as const;

/** Shape of a UNet, by the meaning of the keys of its `config.json`. Lists hold one entry a level, in the order of the way down. */
export interface UNet2DConditionConfig {
  readonly inChannels: number;
  readonly outChannels: number;
  /** Height and width of the latents it was trained on, where the file says so. Any other extent works too. */
  readonly sampleSize?: readonly [number, number];
  /** Whether samples in [0, 1] are first mapped to [-1, 1]. */
  readonly centerInput: boolean;
  readonly flipSinToCos: boolean;
  readonly freqShift: number;
  readonly downBlockTypes: readonly (typeof DOWN_BLOCKS)[number][];
  readonly midBlockType: (typeof MID_BLOCKS)[number];
  /** In the order of the way up. */
  readonly upBlockTypes: readonly (typeof UP_BLOCKS)[number][];
  readonly blockOutChannels: readonly number[];
  readonly layersPerBlock: readonly number[];
  readonly transformerLayersPerBlock: readonly number[];
  readonly attentionHeads: readonly number[];
  readonly crossAttentionDim: number;
  readonly linearProjection: boolean;
  readonly downsamplePadding: 0 | 1;
  readonly normGroups: number;
  readonly normEps: number;
  readonly convInKernel: number;
  readonly convOutKernel: number;
  /** Where the model is told more than the time and the text: how that is embedded. */
  readonly added?: AddedEmbedding;
}

/** Embedding of `AddedConditions`: the numbers as timesteps are, `timeDim` values each, after the text vector; `inputDim` values together. */
export interface AddedEmbedding {
  readonly timeDim: number;
  readonly inputDim: number;
}

/** What a denoiser is told of the picture to make. */
export interface Condition {
  /** Text condition [B, S, crossAttentionDim]. */
  readonly encoderHiddenStates: Value;
  /** For models that take them: those whose configuration has `added`. */
  readonly added?: AddedConditions;
}

/** SDXL's conditions besides the text that is attended to (Podell et al., arXiv 2307.01952, sections 2.1 and 2.2). */
export interface AddedConditions {
  /** The text in one vector, [B, P]. */
  readonly textEmbeds: Value;
  /** Sizes and crop of the picture, float32 [B, N]; see `timeIds`. */
  readonly timeIds: Value;
}

export interface UNet2DConditionInputs extends Condition {
  /** Noisy latents [B, inChannels, H, W]. */
  readonly sample: Value;
  /** Timesteps [B] of any number type. */
  readonly timestep: Value;
}

export interface UNet2DConditionOptions {
  /** Compute the inner values of every block again in the backward pass instead of keeping them, but for what convolutions and attention over many tokens give: less memory, about a sixth more time. Default false. */
  readonly gradientCheckpointing?: boolean;
}

/**
 * The denoiser of latent diffusion (Rombach et al., arXiv 2112.10752): a UNet whose levels attend to a text condition. Gives [B, outChannels, H, W], noise or
 * velocity as the noise schedule's prediction type says.
 *
 * @throws ModelError when the conditions are not of the widths that this UNet takes.
 */
export function unet2DCondition(
  scope: Scope,
  config: UNet2DConditionConfig,
  inputs: UNet2DConditionInputs,
  options: UNet2DConditionOptions = {},
): Value {
  const width = inputs.encoderHiddenStates.shape[2];
  if (width !== config.crossAttentionDim) {
    throw new ModelError(
      `The text encoder gives ${width} features a token (hidden_size), but the UNet attends to ${config.crossAttentionDim} (cross_attention_dim). ` +
        `The folders text_encoder and unet are of different models; get both from the same one.`,
    );
  }
  const { blockOutChannels, normGroups: groups, normEps: eps, convInKernel, convOutKernel } = config;
  const base = blockOutChannels[0]!;
  const last = blockOutChannels.length - 1;
  const conditions: Conditions = {
    time: embedTime(scope, config, inputs),
    context: cast(inputs.encoderHiddenStates, scope.computation.type),
    recompute: options.gradientCheckpointing ?? false,
  };

  const sample = config.centerInput ? sub(mul(inputs.sample, 2), 1) : inputs.sample;
  let h = conv2d(scope.at('conv_in'), sample, {
    in: config.inChannels,
    out: base,
    kernel: convInKernel,
    padding: Math.floor((convInKernel - 1) / 2),
  });

  const skips = [h];
  config.downBlockTypes.forEach((type, i) => {
    const made = downBlock(
      scope.at('down_blocks', i),
      h,
      level(config, i, type === 'CrossAttnDownBlock2D'),
      conditions,
      i < last ? { downsamplePadding: config.downsamplePadding } : {},
    );
    skips.push(...made);
    h = made.at(-1)!;
  });

  if (config.midBlockType !== null) {
    h = midBlock(scope.at('mid_block'), h, level(config, last, true), conditions);
  }

  config.upBlockTypes.forEach((type, i) => {
    const up = level(config, last - i, type === 'CrossAttnUpBlock2D');
    const joined = skips.splice(-(up.layers + 1));
    const [, , height, width] = skips.at(-1)?.shape ?? [];
    const size = i < last ? ([height!, width!] as const) : undefined;
    h = upBlock(scope.at('up_blocks', i), h, joined, up, conditions, size);
  });

  h = silu(groupNorm(scope.at('conv_norm_out'), h, { groups, eps }));
  return conv2d(scope.at('conv_out'), h, {
    in: base,
    out: config.outChannels,
    kernel: convOutKernel,
    padding: Math.floor((convOutKernel - 1) / 2),
  });
}

/** Timesteps [B], and what is added to them, to the embedding [B, 4 * base], after the SiLU that every residual block applies to it first. */
function embedTime(scope: Scope, config: UNet2DConditionConfig, inputs: UNet2DConditionInputs): Value {
  const base = config.blockOutChannels[0]!;
  const width = 4 * base;
  const { flipSinToCos, freqShift } = config;
  const waves = timestepEmbedding(inputs.timestep, { dim: base, flipSinToCos, freqShift }); // [B, base]
  const time = perceptron(scope.at('time_embedding'), waves, width);
  if (!config.added) return silu(time);
  const added = joinAdded(config, config.added, inputs.added);
  return silu(add(time, perceptron(scope.at('add_embedding'), added, width)));
}

/** The text vector, then the embedded sizes: [B, inputDim]. */
function joinAdded(
  { flipSinToCos, freqShift }: UNet2DConditionConfig,
  { timeDim: dim, inputDim }: AddedEmbedding,
  conditions: AddedConditions | undefined,
): Value {
  if (!conditions) throw new Error('internal: this UNet takes added conditions, and there are none');
  const { textEmbeds, timeIds } = conditions;
  const [batch, count] = timeIds.shape as [number, number];
  const waves = timestepEmbedding(reshape(timeIds, [-1]), { dim, flipSinToCos, freqShift }); // [B * N, dim]
  const joined = concat([textEmbeds, reshape(waves, [batch, count * dim])], 1);
  if (joined.shape[1] !== inputDim) {
    throw new ModelError(
      `The text encoder gives a vector of ${textEmbeds.shape[1]} (projection_dim) and there are ${count} sizes of ${dim} values each, ${joined.shape[1]} in all, ` +
        `but the UNet takes ${inputDim} (projection_class_embeddings_input_dim). The folders text_encoder_2 and unet are of different models; get both from the same one.`,
    );
  }
  return joined;
}

/** [B, in] to [B, width] through a hidden layer of that width. */
function perceptron(scope: Scope, x: Value, width: number): Value {
  const hidden = silu(linear(scope.at('linear_1'), x, { in: x.shape[1]!, out: width }));
  return linear(scope.at('linear_2'), hidden, { in: width, out: width });
}

function level(config: UNet2DConditionConfig, i: number, attends: boolean): Level {
  return {
    channels: config.blockOutChannels[i]!,
    layers: config.layersPerBlock[i]!,
    groups: config.normGroups,
    eps: config.normEps,
    ...(attends && {
      attention: {
        heads: config.attentionHeads[i]!,
        depth: config.transformerLayersPerBlock[i]!,
        linearProjection: config.linearProjection,
      },
    }),
  };
}

/**
 * Reads a diffusers `unet/config.json`. Absent keys take diffusers' own defaults.
 *
 * @throws ModelError naming file, key and value for anything that this UNet cannot compute.
 */
export function readUNet2DConditionConfig(config: Config): UNet2DConditionConfig {
  config.must('_class_name', 'UNet2DConditionModel', 'UNet2DConditionModel');
  const blockOutChannels = config.integers('block_out_channels', { fallback: [320, 640, 1280, 1280] });
  const length = blockOutChannels.length;
  for (const [key, expected] of FIXED) config.must(key, expected, expected);
  config.ignore('dropout', 'upcast_attention', 'attention_type', 'addition_embed_type_num_heads');

  const read: UNet2DConditionConfig = {
    inChannels: config.integer('in_channels', 4),
    outChannels: config.integer('out_channels', 4),
    ...readSampleSize(config),
    centerInput: config.boolean('center_input_sample', false),
    flipSinToCos: config.boolean('flip_sin_to_cos', true),
    freqShift: config.number('freq_shift', 0),
    downBlockTypes: config.listOf('down_block_types', DOWN_BLOCKS, {
      length,
      fallback: ['CrossAttnDownBlock2D', 'CrossAttnDownBlock2D', 'CrossAttnDownBlock2D', 'DownBlock2D'],
    }),
    midBlockType: config.oneOf('mid_block_type', MID_BLOCKS, 'UNetMidBlock2DCrossAttn'),
    upBlockTypes: config.listOf('up_block_types', UP_BLOCKS, {
      length,
      fallback: ['UpBlock2D', 'CrossAttnUpBlock2D', 'CrossAttnUpBlock2D', 'CrossAttnUpBlock2D'],
    }),
    blockOutChannels,
    layersPerBlock: config.integerOrIntegers('layers_per_block', length, 2),
    transformerLayersPerBlock: config.integerOrIntegers('transformer_layers_per_block', length, 1),
    // The key's name says otherwise, but it holds the number of heads.
    attentionHeads: config.integerOrIntegers('attention_head_dim', length, 8),
    crossAttentionDim: config.integer('cross_attention_dim', 1280),
    linearProjection: config.boolean('use_linear_projection', false),
    downsamplePadding: config.oneOf('downsample_padding', [0, 1], 1),
    normGroups: config.integer('norm_num_groups', 32),
    normEps: config.number('norm_eps', 1e-5),
    convInKernel: config.integer('conv_in_kernel', 3),
    convOutKernel: config.integer('conv_out_kernel', 3),
    ...readAddedEmbedding(config),
  };
  config.finish();
  requireDivisors(config, read);
  return read;
}

/** Keys that change the computation and have one supported value, which is also diffusers' default. */
const FIXED = [
  ['act_fn', 'silu'],
  ['mid_block_scale_factor', 1],
  ['only_cross_attention', false],
  ['mid_block_only_cross_attention', null],
  ['dual_cross_attention', false],
  ['cross_attention_norm', null],
  ['reverse_transformer_layers_per_block', null],
  ['num_attention_heads', null],
  ['encoder_hid_dim', null],
  ['encoder_hid_dim_type', null],
  ['class_embed_type', null],
  ['class_embeddings_concat', false],
  ['num_class_embeds', null],
  ['resnet_time_scale_shift', 'default'],
  ['resnet_skip_time_act', false],
  ['resnet_out_scale_factor', 1],
  ['time_embedding_type', 'positional'],
  ['time_embedding_dim', null],
  ['time_embedding_act_fn', null],
  ['timestep_post_act', null],
  ['time_cond_proj_dim', null],
] as const;

function readAddedEmbedding(config: Config): { added?: AddedEmbedding } {
  const kind = config.oneOf('addition_embed_type', ['text_time', null], null);
  if (kind === null) {
    config.must('projection_class_embeddings_input_dim', null, null);
    config.must('addition_time_embed_dim', null, null);
    return {};
  }
  return {
    added: {
      timeDim: config.integer('addition_time_embed_dim'),
      inputDim: config.integer('projection_class_embeddings_input_dim'),
    },
  };
}

function readSampleSize(config: Config): { sampleSize?: readonly [number, number] } {
  if (!config.has('sample_size')) {
    config.ignore('sample_size');
    return {};
  }
  const [height, width] = config.integerOrIntegers('sample_size', 2) as [number, number];
  return { sampleSize: [height, width] };
}

function requireDivisors(config: Config, read: UNet2DConditionConfig): void {
  const { blockOutChannels, normGroups, attentionHeads } = read;
  const channels = blockOutChannels.join(', ');
  if (blockOutChannels.some((c) => c % normGroups !== 0)) {
    throw config.unsupported(
      'norm_num_groups',
      `a divisor of every entry of block_out_channels (${channels})`,
    );
  }
  if (blockOutChannels.some((c, i) => c % attentionHeads[i]! !== 0)) {
    throw config.unsupported(
      'attention_head_dim',
      `a number of heads that divides the level's entry of block_out_channels (${channels})`,
    );
  }
}
