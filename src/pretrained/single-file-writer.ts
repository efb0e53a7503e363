import { isDeepStrictEqual } from 'node:util';
import { readScheduler } from '../diffusion/scheduler-config.js';
import { ModelError } from '../errors.js';
import { Config } from '../formats/json-config.js';
import type { TensorStream } from '../formats/safetensors.js';
import { readAutoencoderKLConfig } from '../models/autoencoder-kl.js';
import { readClipTextConfig, readClipTextProjectionConfig } from '../models/clip-text.js';
import { readUNet2DConditionConfig } from '../models/unet-2d-condition.js';
import {
  type ComponentWeights,
  type FamilyWeights,
  familyConfigurations,
  familyName,
} from './architectures.js';
import { textToOpenClip, unetToLdm, vaeToLdm } from './ldm-names.js';
import { modelFamily } from './model-family.js';
import type { ComponentName, ModelFolder } from './model-folder.js';
import { singleFilePrefixes } from './single-file.js';
import { reshapedWeight, type Weight, weightShape, weightStream } from './weight.js';
import { openWeights, type Variant } from './weights.js';

/** A single file's tensors and its header. */
export interface SingleFileContents {
  readonly tensors: TensorStream[];
  readonly metadata: ReadonlyMap<string, string>;
}

/** Settings that a reader finds again in a single file, by component; each is what the configuration means to the network. */
const readers = {
  unet: (config: Config) => ({ ...readUNet2DConditionConfig(config), sampleSize: undefined }),
  vae: (config: Config) => ({ ...readAutoencoderKLConfig(config), sampleSize: undefined }),
  text_encoder: readClipTextConfig,
  text_encoder_2: readClipTextProjectionConfig,
} as const;

/**
 * What a model's folder is as a single file, with the names that the family's original checkpoints have.
 *
 * @param variant the weights to take where the folder has both; the full ones by default.
 * @throws ModelError when the model has settings that do not follow from names and shapes, so that a reader of the single file would compute something else.
 */
export async function singleFileContents(
  folder: ModelFolder,
  variant?: Variant,
): Promise<SingleFileContents> {
  const family = modelFamily(folder);
  const weights: Partial<Record<keyof FamilyWeights, ComponentWeights>> = {};
  for (const name of ['unet', 'vae', 'text_encoder', 'text_encoder_2'] as const) {
    const component = folder.components[name];
    if (component !== undefined) weights[name] = (await openWeights(component, variant)).weights;
  }
  const { unet, vae, text_encoder: text, text_encoder_2: second } = weights as FamilyWeights;
  const { predictionType: prediction } = readScheduler(folder.components.scheduler.config).schedule;
  const zeroTerminalSnr = folder.components.scheduler.config.raw('rescale_betas_zero_snr') === true;
  const current = { unet, vae, text_encoder: text, ...(second && { text_encoder_2: second }) };
  const derived = familyConfigurations(family, current, prediction, zeroTerminalSnr, folder.path);
  for (const [name, read] of Object.entries(readers)) {
    const component = folder.components[name as ComponentName];
    if (component === undefined) continue;
    const own = read(component.config) as Record<string, unknown>;
    const found = read(new Config(folder.path, derived[name as 'unet'])) as Record<string, unknown>;
    const key = Object.keys(own).find((k) => !isDeepStrictEqual(own[k], found[k]));
    if (key !== undefined) {
      throw new ModelError(
        `${component.config.file}: ${key} is ${JSON.stringify(own[key])}; in a single file of ${familyName(family)} it would be read as ${JSON.stringify(found[key])}, as such files hold no configuration. Keep this model as a folder.`,
      );
    }
  }

  const layers = derived.unet.layers_per_block as number;
  const attends = (derived.unet.down_block_types as string[]).map((type) => type.startsWith('CrossAttn'));
  const levels = (derived.vae.block_out_channels as number[]).length;
  const {
    unet: unetPrefix,
    vae: vaePrefix,
    clip,
    openClip,
    first,
    second: secondPrefix,
  } = singleFilePrefixes;
  const tensors: TensorStream[] = [];
  for (const [name, weight] of unet) {
    const path = unetToLdm(name, { layers, attends });
    if (path === undefined) throw unknown(folder, name);
    tensors.push(weightStream(unetPrefix + path, weight));
  }
  for (const [name, weight] of vae) {
    const path = vaeToLdm(name, levels);
    const isProjection = /\.mid\.attn_1\.(q|k|v|proj_out)\.weight$/.test(path);
    const convolution = isProjection
      ? reshapedWeight(weight, [...weightShape(weight).slice(0, 2), 1, 1])
      : weight;
    tensors.push(weightStream(vaePrefix + path, convolution));
  }
  if (family === 'stable-diffusion-v2') tensors.push(...openClipStreams(openClip, text, folder));
  else {
    const prefix = second ? first : clip;
    for (const [name, weight] of text) {
      if (!name.endsWith('position_ids')) tensors.push(weightStream(prefix + withTextModel(name), weight));
    }
  }
  if (second) tensors.push(...openClipStreams(secondPrefix, second, folder));
  if (zeroTerminalSnr) tensors.push(marker('v_pred'), marker('ztsnr'));
  tensors.sort((a, b) => (a.name < b.name ? -1 : 1));
  const metadata = new Map([
    ['format', 'pt'],
    ['modelspec.sai_model_spec', '1.0.0'],
    ['modelspec.architecture', family],
    ['modelspec.prediction_type', prediction === 'v_prediction' ? 'v' : 'epsilon'],
  ]);
  return { tensors, metadata };
}

/** An empty tensor whose name is what it says, as ComfyUI reads it. */
function marker(name: string): TensorStream {
  return { name, dtype: 'uint8', shape: [0], async *bytes() {} };
}

const withTextModel = (name: string): string =>
  name.startsWith('text_model.') ? name : `text_model.${name}`;

/** A transformers text encoder under OpenCLIP's names, with its attention's projections as one tensor. */
function openClipStreams(prefix: string, weights: ComponentWeights, folder: ModelFolder): TensorStream[] {
  const streams: TensorStream[] = [];
  for (const [name, weight] of weights) {
    if (name.endsWith('position_ids')) continue;
    const joint = /^(.*layers\.(\d+)\.self_attn\.)([qkv])_proj\.(weight|bias)$/.exec(name);
    if (joint !== null) {
      const [, place, layer, projection, kind] = joint as unknown as [string, string, string, string, string];
      if (projection !== 'q') continue;
      const parts = ['q', 'k', 'v'].map((p) => weights.get(`${place}${p}_proj.${kind}`));
      if (parts.some((part) => part === undefined || part.entry.dtype !== weight.entry.dtype))
        throw unknown(folder, name);
      streams.push(joined(`${prefix}transformer.resblocks.${layer}.attn.in_proj_${kind}`, parts as Weight[]));
    } else if (name === 'text_projection.weight') {
      streams.push(weightStream(`${prefix}text_projection`, { ...weight, transposed: !weight.transposed }));
    } else {
      const path = textToOpenClip(name);
      if (path === undefined) throw unknown(folder, name);
      streams.push(weightStream(prefix + path, weight));
    }
  }
  return streams;
}

/** Tensors one below the other. */
function joined(name: string, parts: readonly Weight[]): TensorStream {
  const streams = parts.map((part) => weightStream(name, part));
  const [rows, ...rest] = streams[0]!.shape;
  return {
    name,
    dtype: streams[0]!.dtype,
    shape: [parts.length * rows!, ...rest],
    async *bytes() {
      for (const stream of streams) yield* stream.bytes();
    },
  };
}

function unknown(folder: ModelFolder, name: string): ModelError {
  return new ModelError(
    `${folder.path}: the tensor ${JSON.stringify(name)} has no place in a single file. Keep this model as a folder.`,
  );
}
