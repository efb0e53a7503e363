import { ModelError } from '../errors.js';
import type { Json } from '../formats/json-config.js';
import type { Shape } from '../tensor/tensor.js';
import type { PipelineName } from './model-folder.js';
import { type Weight, weightShape } from './weight.js';

/** The families of models that are known, as `modelspec.architecture` names them. */
export type ModelFamily = 'stable-diffusion-v1' | 'stable-diffusion-v2' | 'stable-diffusion-xl-v1-base';

/** What the denoiser predicts, in diffusers' words. */
export type PredictionType = 'epsilon' | 'v_prediction';

export const predictionTypes: readonly PredictionType[] = ['epsilon', 'v_prediction'];

type Settings = { readonly [key: string]: Json };

/** The configuration files that a diffusers folder of a model has, by component; `model_index` is that of the whole. */
export interface Configurations {
  readonly model_index: Settings;
  readonly unet: Settings;
  readonly vae: Settings;
  readonly text_encoder: Settings;
  readonly text_encoder_2?: Settings;
  readonly tokenizer: Settings;
  readonly tokenizer_2?: Settings;
  readonly scheduler: Settings;
}

/** Weights of a component under diffusers' names. */
export type ComponentWeights = ReadonlyMap<string, Weight>;

export interface FamilyWeights {
  readonly unet: ComponentWeights;
  readonly vae: ComponentWeights;
  readonly text_encoder: ComponentWeights;
  readonly text_encoder_2?: ComponentWeights;
}

/** What the shapes of a family's tensors leave open, as its published configurations have it. */
interface Constants {
  readonly name: string;
  readonly pipeline: PipelineName;
  /** Side of the latents that each kind of prediction was trained on. */
  readonly sampleSize: Readonly<Record<PredictionType, number>>;
  readonly scalingFactor: number;
  readonly activation: 'quick_gelu' | 'gelu';
  /** The text that fills the rest of a prompt. */
  readonly padToken: string;
}

const families: Readonly<Record<ModelFamily, Constants>> = {
  'stable-diffusion-v1': {
    name: 'Stable Diffusion 1',
    pipeline: 'StableDiffusionPipeline',
    sampleSize: { epsilon: 64, v_prediction: 64 },
    scalingFactor: 0.18215,
    activation: 'quick_gelu',
    padToken: '<|endoftext|>',
  },
  'stable-diffusion-v2': {
    name: 'Stable Diffusion 2',
    pipeline: 'StableDiffusionPipeline',
    sampleSize: { epsilon: 64, v_prediction: 96 },
    scalingFactor: 0.18215,
    activation: 'gelu',
    padToken: '!',
  },
  'stable-diffusion-xl-v1-base': {
    name: 'Stable Diffusion XL',
    pipeline: 'StableDiffusionXLPipeline',
    sampleSize: { epsilon: 128, v_prediction: 128 },
    scalingFactor: 0.13025,
    activation: 'quick_gelu',
    padToken: '<|endoftext|>',
  },
};

const XL = 'stable-diffusion-xl-v1-base';

/** Channels of an attention head, in all families but the first, and in every text encoder. */
const HEAD_WIDTH = 64;
/** Heads of every attention layer of the first family's UNet. */
const FIRST_FAMILY_HEADS = 8;
/** SDXL's second text encoder fills prompts with this text, which has the id 0. */
const SECOND_PAD_TOKEN = '!';

/** The family's name, as people write it. */
export function familyName(family: ModelFamily): string {
  return families[family].name;
}

/** What the family's published models multiply latents by, so that their standard deviation is about 1. */
export function familyScalingFactor(family: ModelFamily): number {
  return families[family].scalingFactor;
}

/**
 * The configurations of a model by the shapes of its tensors; what shapes do not tell is as the family's published models have it.
 *
 * @param zeroTerminalSnr trained with betas rescaled to a last step of pure noise.
 * @throws ModelError when a tensor that every such model has is missing, or when the shapes fit no member of the family.
 */
export function familyConfigurations(
  family: ModelFamily,
  weights: FamilyWeights,
  prediction: PredictionType,
  zeroTerminalSnr: boolean,
  file: string,
): Configurations {
  const constants = families[family];
  const shapes = (component: keyof FamilyWeights): Shapes => new Shapes(weights[component]!, component, file);
  const sampleSize = constants.sampleSize[prediction];
  const second = weights.text_encoder_2 !== undefined;
  const scheduler = schedulerClass(family, prediction, zeroTerminalSnr);
  return {
    model_index: modelIndex(constants.pipeline, scheduler),
    unet: unetConfig(shapes('unet'), family, sampleSize),
    vae: vaeConfig(shapes('vae'), constants, sampleSize),
    text_encoder: textConfig(shapes('text_encoder'), 'CLIPTextModel', constants.activation),
    ...(second && {
      text_encoder_2: textConfig(shapes('text_encoder_2'), 'CLIPTextModelWithProjection', 'gelu'),
    }),
    tokenizer: tokenizerConfig(constants.padToken),
    ...(second && { tokenizer_2: tokenizerConfig(SECOND_PAD_TOKEN) }),
    scheduler: schedulerConfig(scheduler, prediction, zeroTerminalSnr),
  };
}

/** Reads shapes of a component's tensors. */
class Shapes {
  constructor(
    private readonly weights: ComponentWeights,
    private readonly component: string,
    private readonly file: string,
  ) {}

  of(name: string): Shape {
    const weight = this.weights.get(name);
    if (weight === undefined) {
      throw new ModelError(
        `${this.file}: the ${this.component} has no tensor that diffusers calls ${JSON.stringify(name)}. The file is incomplete, or of a model that is not known here.`,
      );
    }
    return weightShape(weight);
  }

  has(name: string): boolean {
    return this.weights.has(name);
  }

  /** How many of `<before>0<after>`, `<before>1<after>`, … there are. */
  count(before: string, after: string): number {
    let n = 0;
    while (this.weights.has(`${before}${n}${after}`)) n++;
    return n;
  }

  /** The divisor that leaves whole heads. */
  heads(channels: number, width: number): number {
    if (channels % width === 0) return channels / width;
    throw new ModelError(
      `${this.file}: the ${this.component} has ${channels} channels, which are no multiple of the ${width} of an attention head. Such a model is not known here.`,
    );
  }
}

function modelIndex(pipeline: Constants['pipeline'], scheduler: string): Settings {
  const xl = pipeline === 'StableDiffusionXLPipeline';
  return {
    _class_name: pipeline,
    _diffusers_version: '0.30.0',
    ...(xl
      ? { force_zeros_for_empty_prompt: true, image_encoder: [null, null] }
      : { requires_safety_checker: false, safety_checker: [null, null] }),
    feature_extractor: [null, null],
    scheduler: ['diffusers', scheduler],
    text_encoder: ['transformers', 'CLIPTextModel'],
    tokenizer: ['transformers', 'CLIPTokenizer'],
    ...(xl && {
      text_encoder_2: ['transformers', 'CLIPTextModelWithProjection'],
      tokenizer_2: ['transformers', 'CLIPTokenizer'],
    }),
    unet: ['diffusers', 'UNet2DConditionModel'],
    vae: ['diffusers', 'AutoencoderKL'],
  };
}

function unetConfig(shapes: Shapes, family: ModelFamily, sampleSize: number): Settings {
  const levels = shapes.count('down_blocks.', '.resnets.0.conv1.weight');
  const all = Array.from({ length: levels }, (_, i) => i);
  const depthOf = (block: string): number =>
    shapes.count(`${block}.attentions.0.transformer_blocks.`, '.attn1.to_q.weight');
  const channels = all.map((i) => shapes.of(`down_blocks.${i}.resnets.0.conv1.weight`)[0]!);
  const depths = all.map((i) => depthOf(`down_blocks.${i}`));
  const attends = depths.map((depth) => depth > 0);
  const middle = 'mid_block.attentions.0';
  const depth = depthOf('mid_block');
  const text = shapes.of(`${middle}.transformer_blocks.0.attn2.to_k.weight`)[1]!;
  // A level without attention has no depth; the published configurations write 1, or in the last place that of the middle block.
  const written = depths.map((d, i) => d || (i === levels - 1 ? depth : 1));
  const uniform = written.every((d) => d === written[0]);
  return {
    _class_name: 'UNet2DConditionModel',
    in_channels: shapes.of('conv_in.weight')[1]!,
    out_channels: shapes.of('conv_out.weight')[0]!,
    sample_size: sampleSize,
    block_out_channels: channels,
    layers_per_block: shapes.count('down_blocks.0.resnets.', '.conv1.weight'),
    down_block_types: attends.map((a) => (a ? 'CrossAttnDownBlock2D' : 'DownBlock2D')),
    mid_block_type: 'UNetMidBlock2DCrossAttn',
    up_block_types: attends.map((a) => (a ? 'CrossAttnUpBlock2D' : 'UpBlock2D')).reverse(),
    transformer_layers_per_block: uniform ? written[0]! : written,
    attention_head_dim:
      family === 'stable-diffusion-v1'
        ? FIRST_FAMILY_HEADS
        : channels.map((c) => shapes.heads(c, HEAD_WIDTH)),
    cross_attention_dim: text,
    use_linear_projection: shapes.of(`${middle}.proj_in.weight`).length === 2,
    act_fn: 'silu',
    center_input_sample: false,
    downsample_padding: 1,
    flip_sin_to_cos: true,
    freq_shift: 0,
    mid_block_scale_factor: 1,
    norm_eps: 1e-5,
    norm_num_groups: 32,
    ...(family === XL && {
      addition_embed_type: 'text_time',
      addition_time_embed_dim: 256,
      projection_class_embeddings_input_dim: shapes.of('add_embedding.linear_1.weight')[1]!,
    }),
  };
}

function vaeConfig(shapes: Shapes, { scalingFactor }: Constants, latentSize: number): Settings {
  const levels = shapes.count('encoder.down_blocks.', '.resnets.0.conv1.weight');
  const channels = Array.from(
    { length: levels },
    (_, i) => shapes.of(`encoder.down_blocks.${i}.resnets.0.conv1.weight`)[0]!,
  );
  return {
    _class_name: 'AutoencoderKL',
    in_channels: shapes.of('encoder.conv_in.weight')[1]!,
    out_channels: shapes.of('decoder.conv_out.weight')[0]!,
    latent_channels: shapes.of('decoder.conv_in.weight')[1]!,
    block_out_channels: channels,
    down_block_types: channels.map(() => 'DownEncoderBlock2D'),
    up_block_types: channels.map(() => 'UpDecoderBlock2D'),
    layers_per_block: shapes.count('encoder.down_blocks.0.resnets.', '.conv1.weight'),
    norm_num_groups: 32,
    act_fn: 'silu',
    sample_size: latentSize * 2 ** (levels - 1),
    scaling_factor: scalingFactor,
    ...(!shapes.has('quant_conv.weight') && { use_quant_conv: false }),
    ...(!shapes.has('post_quant_conv.weight') && { use_post_quant_conv: false }),
    ...(scalingFactor === families[XL].scalingFactor && { force_upcast: true }),
  };
}

function textConfig(shapes: Shapes, architecture: string, activation: string): Settings {
  const root = shapes.has('embeddings.token_embedding.weight') ? '' : 'text_model.';
  const [vocabulary, hidden] = shapes.of(`${root}embeddings.token_embedding.weight`) as [number, number];
  const projected = shapes.has('text_projection.weight') ? shapes.of('text_projection.weight')[0]! : hidden;
  return {
    architectures: [architecture],
    model_type: 'clip_text_model',
    vocab_size: vocabulary,
    hidden_size: hidden,
    intermediate_size: shapes.of(`${root}encoder.layers.0.mlp.fc1.weight`)[0]!,
    num_hidden_layers: shapes.count(`${root}encoder.layers.`, '.mlp.fc1.weight'),
    num_attention_heads: shapes.heads(hidden, HEAD_WIDTH),
    max_position_embeddings: shapes.of(`${root}embeddings.position_embedding.weight`)[0]!,
    hidden_act: activation,
    layer_norm_eps: 1e-5,
    projection_dim: projected,
    bos_token_id: 0,
    eos_token_id: 2,
    pad_token_id: 1,
  };
}

function tokenizerConfig(padToken: string): Settings {
  return {
    tokenizer_class: 'CLIPTokenizer',
    model_max_length: 77,
    do_lower_case: true,
    bos_token: '<|startoftext|>',
    eos_token: '<|endoftext|>',
    unk_token: '<|endoftext|>',
    pad_token: padToken,
  };
}

/** The sampler that the published model names; it says nothing about how the model was trained. */
function schedulerClass(family: ModelFamily, prediction: PredictionType, zeroTerminalSnr: boolean): string {
  if (family === XL) return 'EulerDiscreteScheduler';
  return prediction === 'epsilon' && !zeroTerminalSnr ? 'PNDMScheduler' : 'DDIMScheduler';
}

/** The forward process that all three families share. */
function schedulerConfig(className: string, prediction: PredictionType, zeroTerminalSnr: boolean): Settings {
  return {
    _class_name: className,
    _diffusers_version: '0.30.0',
    beta_start: 0.00085,
    beta_end: 0.012,
    beta_schedule: 'scaled_linear',
    num_train_timesteps: 1000,
    prediction_type: prediction,
    steps_offset: 1,
    timestep_spacing: zeroTerminalSnr ? 'trailing' : 'leading',
    ...(zeroTerminalSnr && { rescale_betas_zero_snr: true }),
    ...(className === 'PNDMScheduler' && { skip_prk_steps: true }),
    ...(className !== 'EulerDiscreteScheduler' && { clip_sample: false, set_alpha_to_one: false }),
  };
}
