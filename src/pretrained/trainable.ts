import { initialTensor } from '../nn/initialize.js';
import type { ParameterSpec } from '../nn/parameters.js';
import type { Random } from '../tensor/random.js';
import type { Tensor } from '../tensor/tensor.js';
import type { AppliedLora } from './lora.js';

/** Low-rank updates of the attention projections: those of the denoiser and, if asked for, of the text encoders. */
export interface LoraSettings {
  readonly rank: number;
  /** The update is scaled by alpha / rank. */
  readonly alpha: number;
  readonly textEncoder: boolean;
}

/**
 * What of a model's networks is variable: an input of their graphs, taken from the state, in place of a weight of the model's files or beside it. All else stays frozen.
 * The rows of new words are variable wherever a model has them (see `StableDiffusion.withWords`).
 */
export interface Trainable {
  readonly lora?: LoraSettings;
  /** Whole weights: of each component by its name, those with such a checkpoint name. */
  readonly weights?: Readonly<Partial<Record<'unet' | 'text_encoder' | 'text_encoder_2', RegExp>>>;
}

/** What graphs take from the state: something that trains, or a finished LoRA. */
export type Adaptation = Trainable | AppliedLora;

/** All weights of the denoiser and, if asked for, of the text encoders. */
export function allWeights(textEncoder: boolean): Trainable {
  const all = /(?:)/;
  return { weights: { unet: all, ...(textEncoder ? { text_encoder: all, text_encoder_2: all } : {}) } };
}

/** The denoiser's projections of the text to keys and values (Kumari et al., "Custom Diffusion", arXiv 2212.04488, section 3.1). */
export const crossAttentionKeysAndValues: Trainable = { weights: { unet: /\.attn2\.to_[kv]\.weight$/ } };

/** A tensor that trains: a graph input by its name. */
export interface Variable extends ParameterSpec {
  /** Reads the value that it starts from in the model's files; one without it is drawn as `init` says. */
  readonly stored?: () => Promise<Tensor<'float32'>>;
}

/** What training has made of variables. */
export interface TrainedWeights {
  /** Of the variables: `unet.conv_in.weight`. */
  readonly names: readonly string[];
  /** Reads one of them. */
  readonly read: (name: string) => Promise<Tensor>;
}

/** What a variable is before the first step. Each draws from a stream named by its path, so the order does not matter. */
export async function startValue(variable: Variable, random: Random): Promise<Tensor<'float32'>> {
  const { stored, init, shape, path } = variable;
  return stored ? stored() : initialTensor(init, shape, random.derive(path));
}
