import type { Config } from '../formats/json-config.js';
import { conv2d } from '../nn/conv2d.js';
import { groupNorm } from '../nn/norm.js';
import type { Scope } from '../nn/parameters.js';
import { clip, silu } from '../onnx/elementwise.js';
import type { Value } from '../onnx/graph.js';
import { split } from '../onnx/movement.js';
import { downsample, upsample } from './resample.js';
import { resnetBlock } from './resnet-block.js';
import { spatialAttention } from './spatial-attention.js';

const EPS = 1e-6;

/** Shape of an autoencoder, by the meaning of the keys of its `config.json`. */
export interface AutoencoderKLConfig {
  readonly inChannels: number;
  readonly outChannels: number;
  readonly latentChannels: number;
  readonly blockOutChannels: readonly number[];
  readonly layersPerBlock: number;
  readonly normGroups: number;
  readonly useQuantConv: boolean;
  readonly usePostQuantConv: boolean;
  readonly midBlockAttention: boolean;
  /** The denoiser sees latents times this number. */
  readonly scalingFactor: number;
  /** Height and width of the pictures it was trained on. Any other multiple of `downscale` works too. */
  readonly sampleSize: readonly [number, number];
}

/** A diagonal Gaussian over latents. */
export interface LatentMoments {
  /** [B, L, H/f, W/f] */
  readonly mean: Value;
  /** Logarithm of the variance, clipped to [-30, 20]; [B, L, H/f, W/f]. */
  readonly logVariance: Value;
}

/** The factor f by which latents are smaller than pictures, in each direction. */
export function downscale(config: AutoencoderKLConfig): number {
  return 2 ** (config.blockOutChannels.length - 1);
}

/**
 * Pictures [B, 3, H, W] in [-1, 1] to the posterior over latents, unscaled (Kingma and Welling, arXiv 1312.6114; Rombach et al., arXiv 2112.10752, section 3.1).
 */
export function encodeLatents(scope: Scope, config: AutoencoderKLConfig, pixels: Value): LatentMoments {
  const { blockOutChannels, layersPerBlock, latentChannels } = config;
  const encoder = scope.at('encoder');
  const last = blockOutChannels.length - 1;
  let h = conv2d(encoder.at('conv_in'), pixels, {
    in: config.inChannels,
    out: blockOutChannels[0]!,
    kernel: 3,
    padding: 1,
  });
  blockOutChannels.forEach((out, i) => {
    const block = encoder.at('down_blocks', i);
    h = resnets(block, config, h, out, layersPerBlock);
    if (i < last) h = downsample(block.at('downsamplers', 0), h, 0);
  });
  h = middle(encoder.at('mid_block'), config, h);
  h = outward(encoder, config, h, 2 * latentChannels);
  if (config.useQuantConv) {
    h = conv2d(scope.at('quant_conv'), h, { in: 2 * latentChannels, out: 2 * latentChannels, kernel: 1 });
  }
  const [mean, logVariance] = split(h, [latentChannels, latentChannels], 1) as [Value, Value];
  return { mean, logVariance: clip(logVariance, -30, 20) };
}

/** Latents [B, L, h, w], unscaled, to pictures [B, 3, f h, f w], about in [-1, 1]. */
export function decodeLatents(scope: Scope, config: AutoencoderKLConfig, latents: Value): Value {
  const { blockOutChannels, layersPerBlock, latentChannels } = config;
  const decoder = scope.at('decoder');
  const last = blockOutChannels.length - 1;
  let h = latents;
  if (config.usePostQuantConv) {
    h = conv2d(scope.at('post_quant_conv'), h, { in: latentChannels, out: latentChannels, kernel: 1 });
  }
  h = conv2d(decoder.at('conv_in'), h, {
    in: latentChannels,
    out: blockOutChannels[last]!,
    kernel: 3,
    padding: 1,
  });
  h = middle(decoder.at('mid_block'), config, h);
  [...blockOutChannels].reverse().forEach((out, i) => {
    const block = decoder.at('up_blocks', i);
    h = resnets(block, config, h, out, layersPerBlock + 1);
    if (i < last) h = upsample(block.at('upsamplers', 0), h);
  });
  return outward(decoder, config, h, config.outChannels);
}

function resnets(scope: Scope, config: AutoencoderKLConfig, x: Value, out: number, count: number): Value {
  let h = x;
  for (let i = 0; i < count; i++) {
    h = resnetBlock(scope.at('resnets', i), h, { out, groups: config.normGroups, eps: EPS });
  }
  return h;
}

function middle(scope: Scope, config: AutoencoderKLConfig, x: Value): Value {
  const options = { out: x.shape[1]!, groups: config.normGroups, eps: EPS };
  let h = resnetBlock(scope.at('resnets', 0), x, options);
  if (config.midBlockAttention) h = spatialAttention(scope.at('attentions', 0), h, options);
  return resnetBlock(scope.at('resnets', 1), h, options);
}

function outward(scope: Scope, config: AutoencoderKLConfig, x: Value, out: number): Value {
  const h = silu(groupNorm(scope.at('conv_norm_out'), x, { groups: config.normGroups, eps: EPS }));
  return conv2d(scope.at('conv_out'), h, { in: x.shape[1]!, out, kernel: 3, padding: 1 });
}

/**
 * Reads a diffusers `vae/config.json`. Absent keys take diffusers' own defaults.
 *
 * @throws ModelError naming file, key and value for anything that this autoencoder cannot compute.
 */
export function readAutoencoderKLConfig(config: Config): AutoencoderKLConfig {
  config.must('_class_name', 'AutoencoderKL', 'AutoencoderKL');
  const blockOutChannels = config.integers('block_out_channels', { fallback: [64] });
  const { length } = blockOutChannels;
  config.listOf('down_block_types', ['DownEncoderBlock2D'], { length, fallback: ['DownEncoderBlock2D'] });
  config.listOf('up_block_types', ['UpDecoderBlock2D'], { length, fallback: ['UpDecoderBlock2D'] });
  config.must('act_fn', 'silu', 'silu');
  if (config.raw('shift_factor') !== 0) config.must('shift_factor', null, null);
  config.must('latents_mean', null, null);
  config.must('latents_std', null, null);
  config.ignore('force_upcast');
  const [height, width] = config.integerOrIntegers('sample_size', 2, 32) as [number, number];
  const read: AutoencoderKLConfig = {
    inChannels: config.integer('in_channels', 3),
    outChannels: config.integer('out_channels', 3),
    latentChannels: config.integer('latent_channels', 4),
    blockOutChannels,
    layersPerBlock: config.integer('layers_per_block', 1),
    normGroups: config.integer('norm_num_groups', 32),
    useQuantConv: config.boolean('use_quant_conv', true),
    usePostQuantConv: config.boolean('use_post_quant_conv', true),
    midBlockAttention: config.boolean('mid_block_add_attention', true),
    scalingFactor: config.number('scaling_factor', 0.18215),
    sampleSize: [height, width],
  };
  config.finish();
  if (!(read.scalingFactor > 0)) throw config.unsupported('scaling_factor', 'a number above 0');
  if (blockOutChannels.some((c) => c % read.normGroups !== 0)) {
    throw config.unsupported(
      'norm_num_groups',
      `a divisor of every entry of block_out_channels (${blockOutChannels.join(', ')})`,
    );
  }
  return read;
}
