import { readScheduler, type Scheduler } from '../diffusion/scheduler-config.js';
import { InputError, ModelError, UsageError } from '../errors.js';
import {
  type AutoencoderKLConfig,
  decodeLatents,
  downscale,
  encodeLatents,
  type LatentMoments,
  readAutoencoderKLConfig,
} from '../models/autoencoder-kl.js';
import { type ClipTextConfig, clipText, readClipTextConfig } from '../models/clip-text.js';
import type { UNet2DConditionConfig } from '../models/unet-2d-condition.js';
import { readUNet2DConditionConfig, unet2DCondition } from '../models/unet-2d-condition.js';
import { type LoraOptions, LoraParameters } from '../nn/lora.js';
import { type ParameterSource, type ParameterSpec, Scope } from '../nn/parameters.js';
import type { Graph, Value } from '../onnx/graph.js';
import { Graph as NewGraph } from '../onnx/graph.js';
import { type ModelFolder, openModelFolder } from './model-folder.js';
import { type ClipTokenizer, type EncodedPrompt, openTokenizer } from './tokenizer.js';
import { assertFiniteWeights, openWeights, type WeightSet, weightSource } from './weights.js';

/** The layers that get a low-rank update: the attention projections of the denoiser and, if asked for, of the text encoder. */
export interface LoraSettings {
  readonly rank: number;
  /** The update is scaled by alpha / rank. */
  readonly alpha: number;
  readonly textEncoder: boolean;
}

const loraTargets = {
  unet: /\.attn[12]\.(to_q|to_k|to_v|to_out\.0)$/,
  text_encoder: /\.self_attn\.(q_proj|k_proj|v_proj|out_proj)$/,
} as const;

/** What a graph builder of a model yields besides its value: the low-rank factors that became inputs of the graph. */
export interface Adapted<T> {
  readonly result: T;
  /** The factors' inputs by state name, `unet.….lora_A.weight`; empty without a LoRA. */
  readonly factors: ReadonlyMap<string, Value>;
  readonly specs: readonly ParameterSpec[];
}

export interface DenoiserInputs {
  /** [B, C, h, w] */
  readonly sample: Value;
  /** [B] */
  readonly timestep: Value;
  /** [B, S, D] */
  readonly encoderHiddenStates: Value;
}

/**
 * A Stable Diffusion model folder, opened: its configurations read, its weights checked and ready to be referred to from graphs. Each builder adds one network to a
 * graph; weights are read from the folder by the engine.
 */
export class StableDiffusion {
  private constructor(
    readonly folder: ModelFolder,
    readonly unetConfig: UNet2DConditionConfig,
    readonly vaeConfig: AutoencoderKLConfig,
    readonly textConfig: ClipTextConfig,
    readonly scheduler: Scheduler,
    readonly tokenizer: ClipTokenizer,
    private readonly weights: Readonly<Record<'unet' | 'vae' | 'text_encoder', WeightSet>>,
  ) {}

  /** @throws ModelError naming the file, when the folder is not a model, or one with parts, settings or weights that cannot be used. */
  static async open(path: string): Promise<StableDiffusion> {
    const folder = await openModelFolder(path);
    const { unet, vae, text_encoder: text, tokenizer, scheduler } = folder.components;
    const unetConfig = readUNet2DConditionConfig(unet.config);
    const vaeConfig = readAutoencoderKLConfig(vae.config);
    const textConfig = readClipTextConfig(text.config);
    if (unetConfig.inChannels !== vaeConfig.latentChannels) {
      throw new ModelError(
        `${unet.folder}: the denoiser takes ${unetConfig.inChannels} channels, but the autoencoder beside it gives ${vaeConfig.latentChannels}. In-painting and up-scaling models are not supported; use a text-to-image model.`,
      );
    }
    const weights = {
      unet: await openWeights(unet),
      vae: await openWeights(vae),
      text_encoder: await openWeights(text),
    };
    for (const set of Object.values(weights)) await assertFiniteWeights(set);
    const model = new StableDiffusion(
      folder,
      unetConfig,
      vaeConfig,
      textConfig,
      readScheduler(scheduler.config),
      await openTokenizer(tokenizer, textConfig.maxPositions),
      weights,
    );
    model.#checkWeights();
    return model;
  }

  /** The factor between a picture's side and its latents' side. */
  get downscale(): number {
    return downscale(this.vaeConfig);
  }

  /** The side in pixels of the pictures it was trained on. */
  get resolution(): number {
    const side = this.unetConfig.sampleSize?.[0];
    return side === undefined ? 512 : side * this.downscale;
  }

  /** Latents of one square picture of this side in pixels: [C, h, w]. @throws UsageError when the model cannot take that side. */
  latentShape(resolution: number): [number, number, number] {
    const step = this.downscale * 2 ** (this.unetConfig.blockOutChannels.length - 1);
    if (!Number.isInteger(resolution) || resolution < step || resolution % step !== 0) {
      throw new UsageError(
        `--resolution ${resolution}: this model takes multiples of ${step} pixels; ${Math.max(step, Math.round(resolution / step) * step) || step} is the nearest.`,
      );
    }
    const side = resolution / this.downscale;
    return [this.vaeConfig.latentChannels, side, side];
  }

  /** Token ids of a prompt. @throws InputError when the prompt holds what the vocabulary cannot. */
  tokenize(prompt: string): EncodedPrompt {
    const encoded = this.tokenizer.encode(prompt);
    if (encoded.ids.some((id) => id >= this.textConfig.vocabSize)) {
      throw new InputError(
        `The prompt ${JSON.stringify(prompt)} has tokens that the text encoder has no embedding for.`,
      );
    }
    return encoded;
  }

  /** Token ids [B, S] (int64) to the text condition [B, S, D]. */
  textEncoder(graph: Graph, tokens: Value, lora?: LoraSettings): Adapted<Value> {
    return this.#adapt(graph, 'text_encoder', lora?.textEncoder ? lora : undefined, (scope) =>
      clipText(scope, this.textConfig, tokens),
    );
  }

  /** The prediction [B, C, h, w] for noisy latents. */
  denoiser(
    graph: Graph,
    inputs: DenoiserInputs,
    options: { readonly lora?: LoraSettings | undefined; readonly gradientCheckpointing?: boolean } = {},
  ): Adapted<Value> {
    const { lora, gradientCheckpointing = false } = options;
    return this.#adapt(graph, 'unet', lora, (scope) =>
      unet2DCondition(scope, this.unetConfig, inputs, { gradientCheckpointing }),
    );
  }

  /** Pictures [B, 3, R, R] in [-1, 1] to the posterior over unscaled latents. */
  encoder(graph: Graph, pixels: Value): LatentMoments {
    return encodeLatents(new Scope(weightSource(graph, this.weights.vae)), this.vaeConfig, pixels);
  }

  /** Unscaled latents to pictures [B, 3, R, R], about [-1, 1]. */
  decoder(graph: Graph, latents: Value): Value {
    return decodeLatents(new Scope(weightSource(graph, this.weights.vae)), this.vaeConfig, latents);
  }

  /** The low-rank factors that these settings give this model, without building more than shapes. */
  loraSpecs(settings: LoraSettings): ParameterSpec[] {
    const graph = new NewGraph('shapes');
    const [c, h, w] = this.latentShape(this.downscale * 2 ** this.unetConfig.blockOutChannels.length);
    const { specs: unet } = this.denoiser(
      graph,
      {
        sample: graph.input('sample', 'float32', [1, c, h, w]),
        timestep: graph.input('timestep', 'int64', [1]),
        encoderHiddenStates: graph.input('text', 'float32', [1, 1, this.textConfig.hiddenSize]),
      },
      { lora: settings },
    );
    const { specs: text } = this.textEncoder(graph, graph.input('tokens', 'int64', [1, 1]), settings);
    return [...unet, ...text];
  }

  #adapt<T>(
    graph: Graph,
    component: 'unet' | 'text_encoder',
    lora: LoraSettings | undefined,
    build: (scope: Scope) => T,
  ): Adapted<T> {
    const base: ParameterSource = weightSource(graph, this.weights[component]);
    if (!lora) return { result: build(new Scope(base)), factors: new Map(), specs: [] };
    const options: LoraOptions = {
      rank: lora.rank,
      alpha: lora.alpha,
      targets: (path) => loraTargets[component].test(path),
      prefix: `${component}.`,
    };
    const adapted = new LoraParameters(base, graph, options);
    const result = build(new Scope(adapted));
    return {
      result,
      factors: new Map([...adapted.values.values()].map((value) => [value.name, value])),
      specs: adapted.specs,
    };
  }

  /** Builds every network once, so that a tensor that is missing or of another shape is found before any work is done. */
  #checkWeights(): void {
    const { hiddenSize } = this.textConfig;
    const cross = this.unetConfig.crossAttentionDim;
    if (hiddenSize !== cross) {
      throw new ModelError(
        `${this.folder.path}: the text encoder gives ${hiddenSize} channels ("hidden_size"), but the denoiser takes ${cross} ("cross_attention_dim"). They are not parts of one model.`,
      );
    }
    this.loraSpecs({ rank: 1, alpha: 1, textEncoder: false });
    const graph = new NewGraph('check');
    const side = this.downscale * 2 ** this.unetConfig.blockOutChannels.length;
    const [c, h, w] = this.latentShape(side);
    this.encoder(graph, graph.input('pixels', 'float32', [1, 3, side, side]));
    this.decoder(graph, graph.input('latents', 'float32', [1, c, h, w]));
  }
}
