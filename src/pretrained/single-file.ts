import { readdir } from 'node:fs/promises';
import { resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { ModelError } from '../errors.js';
import { Config } from '../formats/json-config.js';
import { openSafetensors, type SafetensorsFile } from '../formats/safetensors-file.js';
import { toFloat32 } from '../tensor/tensor.js';
import {
  type ComponentWeights,
  type Configurations,
  type FamilyWeights,
  familyConfigurations,
  familyName,
  type ModelFamily,
  type PredictionType,
} from './architectures.js';
import { textFromOpenClip, unetFromLdm, vaeFromLdm } from './ldm-names.js';
import type { Component, ComponentName, Components, ModelFolder, PipelineName } from './model-folder.js';
import { readWeightTensor, reshapedWeight, type Weight, weightPart } from './weight.js';

/** A checkpoint that is one `.safetensors` file: its tensors under diffusers' names, and the configurations that follow from them. */
export interface SingleFile {
  readonly file: SafetensorsFile;
  readonly family: ModelFamily;
  readonly prediction: PredictionType;
  readonly weights: FamilyWeights;
  readonly configurations: Configurations;
}

/** The prefixes under which single files keep their parts. */
export const singleFilePrefixes = {
  unet: 'model.diffusion_model.',
  vae: 'first_stage_model.',
  /** CLIP as transformers names it, in Stable Diffusion 1. */
  clip: 'cond_stage_model.transformer.',
  /** OpenCLIP under its own names, in Stable Diffusion 2. */
  openClip: 'cond_stage_model.model.',
  /** SDXL's two text encoders; files in the layout of sgm have other models' single one under the first name. */
  first: 'conditioner.embedders.0.transformer.',
  firstOpenClip: 'conditioner.embedders.0.model.',
  second: 'conditioner.embedders.1.model.',
} as const;

/** Parameters of a text encoder that no picture depends on: the other half of CLIP's training, and buffers of positions. */
const idleTextParameters = /^logit_scale$|position_ids$|^attn_mask$/;

/** Stable Diffusion 2 is conditioned on what comes out of the last block but one, so its 24th is never computed. */
const OPEN_CLIP_LAYERS = 23;

/** Above this standard deviation of one bias, a Stable Diffusion 2 model is taken to predict velocity. */
const VELOCITY_DEVIATION = 0.09;

/**
 * Opens a single-file checkpoint of Stable Diffusion 1, 2 or XL. Family and sizes follow from the tensors' names and shapes. What the denoiser predicts does
 * not; it is, in this order: `prediction`, if given; the file's metadata (`modelspec.prediction_type`); velocity where there is a tensor `v_pred`; for Stable
 * Diffusion 2 what a statistic of its weights says, as in ComfyUI; noise.
 *
 * @throws ModelError when the file cannot be read, or says what the file is when it is no such checkpoint.
 */
export async function readSingleFile(path: string, prediction?: PredictionType): Promise<SingleFile> {
  const file = await openSafetensors(path);
  const family = detectFamily(file);
  const weights = familyWeights(file, family);
  requireTextToImage(file, weights);
  const kind = prediction ?? (await detectPrediction(file, family, weights));
  const zeroTerminalSnr = kind === 'v_prediction' && file.entries.has('ztsnr');
  const configurations = familyConfigurations(family, weights, kind, zeroTerminalSnr, path);
  return { file, family, prediction: kind, weights, configurations };
}

/** A single-file checkpoint as the components of a pipeline; see {@link readSingleFile}. */
export async function openSingleFile(path: string, prediction?: PredictionType): Promise<ModelFolder> {
  const { configurations, weights } = await readSingleFile(path, prediction);
  const { model_index: index, ...parts } = configurations;
  const vocabulary = (await readdir(shippedTokenizerPath())).sort();
  const components = Object.entries(parts).map(([name, values]): [string, Component] => {
    const [, className] = index[name] as [string, string];
    const isTokenizer = name.startsWith('tokenizer');
    return [
      name,
      {
        name: name as ComponentName,
        className,
        folder: isTokenizer ? shippedTokenizerPath() : path,
        files: isTokenizer ? vocabulary : [],
        config: new Config(`${path} (${name})`, values),
        ...(name in weights && { weights: weights[name as keyof FamilyWeights] }),
      },
    ];
  });
  return {
    path: resolve(path),
    pipeline: index._class_name as PipelineName,
    index: new Config(path, index),
    components: Object.fromEntries(components) as unknown as Components,
  };
}

/** CLIP's vocabulary, which ships with the package as no single file holds it: a tokenizer folder. */
export function shippedTokenizerPath(): string {
  return fileURLToPath(new URL('../../../models/clip-tokenizer', import.meta.url));
}

function detectFamily(file: SafetensorsFile): ModelFamily {
  const names = [...file.entries.keys()];
  const has = (prefix: string): boolean => names.some((name) => name.startsWith(prefix));
  const { unet, vae, clip, openClip, first, firstOpenClip, second } = singleFilePrefixes;
  if (!has(unet)) throw notACheckpoint(file, names);
  const missing = [
    ...(has(vae) ? [] : [`the autoencoder (${vae}*)`]),
    ...([clip, openClip, first, firstOpenClip].some(has) ? [] : [`the text encoder (cond_stage_model.*)`]),
  ];
  if (missing.length > 0) {
    throw (
      otherModel(unet, names, file) ??
      new ModelError(
        `${file.path} lacks ${missing.join(' and ')}. Expected a whole checkpoint: UNet, autoencoder and text encoder in one file. Get the full version of the file.`,
      )
    );
  }
  if (has(first) && has(second)) return 'stable-diffusion-xl-v1-base';
  const classes = has(`${unet}label_emb.`);
  if (has(openClip) || has(firstOpenClip)) {
    if (classes) throw unsupported(file, 'a refiner or an unCLIP model');
    return 'stable-diffusion-v2';
  }
  return 'stable-diffusion-v1';
}

/** Kinds of models that share prefixes with what can be read. */
function otherModel(unet: string, names: readonly string[], file: SafetensorsFile): ModelError | undefined {
  const kind = [
    { key: 'joint_blocks.', what: 'a Stable Diffusion 3 model' },
    { key: 'double_blocks.', what: 'a Flux model' },
  ].find(({ key }) => names.some((name) => name.startsWith(unet + key)));
  return kind && unsupported(file, kind.what);
}

function unsupported(file: SafetensorsFile, what: string): ModelError {
  return new ModelError(
    `${file.path} is ${what}, which is not supported; supported: text-to-image checkpoints of Stable Diffusion 1, 2 and XL.`,
  );
}

/** What a file is that holds no UNet under the names of a single-file checkpoint. */
const otherKinds: readonly { readonly key: RegExp; readonly what: string }[] = [
  {
    key: /\.lora_(up|down|A|B)\.|\.lora\.(up|down)\.|_lora\.(up|down)\.|lora_linear_layer|\.hada_w|\.lokr_w/,
    what: 'a LoRA, which changes a model and is none itself; give the model with --model and this file with --lora',
  },
  { key: /^(control_model|controlnet_)|input_hint_block/, what: 'a ControlNet, which is not supported' },
  { key: /^(double_blocks|single_blocks)\./, what: 'a Flux model, which is not supported' },
  { key: /^joint_blocks\./, what: 'a Stable Diffusion 3 model, which is not supported' },
  {
    key: /^(emb_params|clip_[lg]|string_to_param)/,
    what: 'a learned embedding (textual inversion), not a model',
  },
  {
    key: /^(first_stage_model\.)?(encoder|decoder)\.(conv_in|mid|mid_block|down|up)\b/,
    what: 'an autoencoder (VAE) alone; a whole checkpoint is needed, with UNet and text encoder',
  },
  {
    key: /^(down_blocks|up_blocks|mid_block)\./,
    what: "a UNet alone, one component of a model under diffusers' names; give the folder that holds model_index.json",
  },
  {
    key: /^(text_model\.)?(encoder\.layers|embeddings)\.|^cond_stage_model\.|^conditioner\./,
    what: 'a text encoder alone; a whole checkpoint is needed, with UNet and autoencoder',
  },
];

function notACheckpoint(file: SafetensorsFile, names: readonly string[]): ModelError {
  const kind = otherKinds.find(({ key }) => names.some((name) => key.test(name)));
  if (kind !== undefined) return new ModelError(`${file.path} is ${kind.what}.`);
  const some = names.slice(0, 3).map((name) => JSON.stringify(name));
  return new ModelError(
    `${file.path} is no checkpoint of Stable Diffusion: it has no tensor ${singleFilePrefixes.unet}*. ` +
      (some.length > 0
        ? `It holds ${some.join(', ')}${names.length > 3 ? ', …' : ''}.`
        : 'It holds no tensors.'),
  );
}

function familyWeights(file: SafetensorsFile, family: ModelFamily): FamilyWeights {
  const { unet, vae, clip, openClip, first, firstOpenClip, second } = singleFilePrefixes;
  const below = (prefix: string): ReadonlyMap<string, Weight> =>
    new Map(
      [...file.entries.values()]
        .filter((entry) => entry.name.startsWith(prefix))
        .map((entry) => [entry.name.slice(prefix.length), { file, entry }]),
    );
  const either = (one: string, other: string): ReadonlyMap<string, Weight> => {
    const found = below(one);
    return found.size > 0 ? found : below(other);
  };
  const image = { unet: unetWeights(below(unet), file), vae: vaeWeights(below(vae)) };
  switch (family) {
    case 'stable-diffusion-v1':
      return { ...image, text_encoder: clipWeights(either(clip, first)) };
    case 'stable-diffusion-v2':
      return { ...image, text_encoder: openClipWeights(either(openClip, firstOpenClip), OPEN_CLIP_LAYERS) };
    case 'stable-diffusion-xl-v1-base':
      return {
        ...image,
        text_encoder: clipWeights(below(first)),
        text_encoder_2: openClipWeights(below(second)),
      };
  }
}

function unetWeights(found: ReadonlyMap<string, Weight>, file: SafetensorsFile): ComponentWeights {
  // The first downsampling convolution ends the first level.
  const ends = [...found.keys()].flatMap(
    (name) => /^input_blocks\.(\d+)\.0\.op\.weight$/.exec(name)?.[1] ?? [],
  );
  const blocks = new Set([...found.keys()].flatMap((name) => /^input_blocks\.(\d+)\./.exec(name)?.[1] ?? []));
  const layers = (ends.length > 0 ? Math.min(...ends.map(Number)) : blocks.size) - 1;
  return renamedWeights(found, (name) => {
    const path = unetFromLdm(name, layers);
    if (path !== undefined) return path;
    throw new ModelError(
      `${file.path}: the tensor ${JSON.stringify(singleFilePrefixes.unet + name)} belongs to no layer of a Stable Diffusion UNet. Such a model is not supported.`,
    );
  });
}

function vaeWeights(found: ReadonlyMap<string, Weight>): ComponentWeights {
  const levels =
    1 + Math.max(...[...found.keys()].map((name) => Number(/^encoder\.down\.(\d+)\./.exec(name)?.[1] ?? 0)));
  const weights = new Map<string, Weight>();
  for (const [name, weight] of renamedWeights(found, (path) => vaeFromLdm(path, levels))) {
    const { shape } = weight.entry;
    // The attention's projections are 1x1 convolutions in these files and linear layers in diffusers.
    const isProjection = /\.attentions\.0\.to_(q|k|v|out\.0)\.weight$/.test(name) && shape.length === 4;
    weights.set(name, isProjection ? reshapedWeight(weight, shape.slice(0, 2)) : weight);
  }
  return weights;
}

function clipWeights(found: ReadonlyMap<string, Weight>): ComponentWeights {
  return new Map([...found].filter(([name]) => !idleTextParameters.test(name)));
}

function openClipWeights(
  found: ReadonlyMap<string, Weight>,
  layers = Number.POSITIVE_INFINITY,
): ComponentWeights {
  const weights = new Map<string, Weight>();
  for (const [name, weight] of found) {
    const layer = /^transformer\.resblocks\.(\d+)\.(.+)$/.exec(name);
    const joint = /^attn\.in_proj_(weight|bias)$/.exec(layer?.[2] ?? '');
    if (layer !== null && Number(layer[1]) >= layers) continue;
    if (layer !== null && joint !== null) {
      ['q_proj', 'k_proj', 'v_proj'].forEach((projection, i) => {
        const path = `text_model.encoder.layers.${layer[1]}.self_attn.${projection}.${joint[1]}`;
        weights.set(path, weightPart(weight, i, 3));
      });
    } else if (name === 'text_projection') {
      // Stable Diffusion 2 takes the text before its projection.
      if (layers === Number.POSITIVE_INFINITY) {
        weights.set('text_projection.weight', { ...weight, transposed: true });
      }
    } else {
      const path = textFromOpenClip(name);
      if (path !== undefined) weights.set(path, weight);
    }
  }
  return weights;
}

function renamedWeights(
  found: ReadonlyMap<string, Weight>,
  rename: (name: string) => string,
): ReadonlyMap<string, Weight> {
  return new Map([...found].map(([name, weight]) => [rename(name), weight]));
}

function requireTextToImage(file: SafetensorsFile, { unet, vae }: FamilyWeights): void {
  const channels = unet.get('conv_in.weight')?.entry.shape[1];
  const latents = vae.get('decoder.conv_in.weight')?.entry.shape[1];
  if (channels === undefined || latents === undefined || channels === latents) return;
  throw unsupported(
    file,
    `an in-painting, editing or up-scaling model (its UNet takes ${channels} channels, its autoencoder gives ${latents})`,
  );
}

async function detectPrediction(
  file: SafetensorsFile,
  family: ModelFamily,
  { unet }: FamilyWeights,
): Promise<PredictionType> {
  const { entries, metadata } = file;
  if (entries.has('edm_mean') || entries.has('edm_vpred.sigma_max')) {
    throw unsupported(file, `a ${familyName(family)} model with the EDM noise schedule`);
  }
  const declared = metadata.get('modelspec.prediction_type')?.toLowerCase();
  if (declared !== undefined) return declared.startsWith('v') ? 'v_prediction' : 'epsilon';
  if (entries.has('v_pred')) return 'v_prediction';
  if (family !== 'stable-diffusion-v2') return 'epsilon';
  const last = Math.max(
    ...[...unet.keys()].map((name) => Number(/^up_blocks\.(\d+)\./.exec(name)?.[1] ?? -1)),
  );
  const attentions = [...unet.keys()].filter(
    (name) =>
      name.startsWith(`up_blocks.${last}.attentions.`) && name.endsWith('.transformer_blocks.0.norm1.bias'),
  );
  const bias = unet.get(attentions.sort().at(-1) ?? '');
  if (bias === undefined) return 'epsilon';
  return deviation(toFloat32(await readWeightTensor(bias)).data) > VELOCITY_DEVIATION
    ? 'v_prediction'
    : 'epsilon';
}

function deviation(values: Float32Array): number {
  const mean = values.reduce((sum, v) => sum + v, 0) / values.length;
  return Math.sqrt(values.reduce((sum, v) => sum + (v - mean) ** 2, 0) / values.length);
}
