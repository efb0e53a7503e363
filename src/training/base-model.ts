import type { Json } from '../formats/json-config.js';

/** Longest prompt of the shipped base, in tokens with start and end. */
export const BASE_PROMPT_LENGTH = 32;

/** Side of the shipped base's pictures, in pixels. */
export const BASE_RESOLUTION = 64;

/** The configuration files of the shipped base, in the layout that diffusers reads: a Stable Diffusion in small. */
export function baseModelConfigs(vocabularySize: number, scalingFactor: number): Record<string, Json> {
  const [startToken, endToken] = [vocabularySize - 2, vocabularySize - 1];
  return {
    'model_index.json': {
      _class_name: 'StableDiffusionPipeline',
      _diffusers_version: '0.35.0',
      feature_extractor: [null, null],
      image_encoder: [null, null],
      requires_safety_checker: false,
      safety_checker: [null, null],
      scheduler: ['diffusers', 'DDIMScheduler'],
      text_encoder: ['transformers', 'CLIPTextModel'],
      tokenizer: ['transformers', 'CLIPTokenizer'],
      unet: ['diffusers', 'UNet2DConditionModel'],
      vae: ['diffusers', 'AutoencoderKL'],
    },
    'unet/config.json': {
      _class_name: 'UNet2DConditionModel',
      act_fn: 'silu',
      attention_head_dim: 4,
      block_out_channels: [48, 96, 160],
      center_input_sample: false,
      cross_attention_dim: 128,
      down_block_types: ['DownBlock2D', 'CrossAttnDownBlock2D', 'DownBlock2D'],
      downsample_padding: 1,
      flip_sin_to_cos: true,
      freq_shift: 0,
      in_channels: 8,
      layers_per_block: 1,
      mid_block_scale_factor: 1,
      mid_block_type: 'UNetMidBlock2DCrossAttn',
      norm_eps: 1e-5,
      norm_num_groups: 8,
      out_channels: 8,
      sample_size: 16,
      up_block_types: ['UpBlock2D', 'CrossAttnUpBlock2D', 'UpBlock2D'],
    },
    'vae/config.json': {
      _class_name: 'AutoencoderKL',
      act_fn: 'silu',
      block_out_channels: [16, 32, 64],
      down_block_types: ['DownEncoderBlock2D', 'DownEncoderBlock2D', 'DownEncoderBlock2D'],
      in_channels: 3,
      latent_channels: 8,
      layers_per_block: 1,
      mid_block_add_attention: false,
      norm_num_groups: 8,
      out_channels: 3,
      sample_size: BASE_RESOLUTION,
      scaling_factor: scalingFactor,
      up_block_types: ['UpDecoderBlock2D', 'UpDecoderBlock2D', 'UpDecoderBlock2D'],
    },
    'text_encoder/config.json': {
      architectures: ['CLIPTextModel'],
      attention_dropout: 0,
      bos_token_id: startToken,
      eos_token_id: endToken,
      hidden_act: 'quick_gelu',
      hidden_size: 128,
      intermediate_size: 512,
      layer_norm_eps: 1e-5,
      max_position_embeddings: BASE_PROMPT_LENGTH,
      model_type: 'clip_text_model',
      num_attention_heads: 4,
      num_hidden_layers: 2,
      pad_token_id: endToken,
      vocab_size: vocabularySize,
    },
    'scheduler/scheduler_config.json': {
      _class_name: 'DDIMScheduler',
      beta_end: 0.012,
      beta_schedule: 'scaled_linear',
      beta_start: 0.00085,
      clip_sample: false,
      num_train_timesteps: 1000,
      prediction_type: 'epsilon',
      set_alpha_to_one: false,
      steps_offset: 1,
      timestep_spacing: 'leading',
      trained_betas: null,
    },
  };
}
