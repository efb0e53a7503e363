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
import { type SizeCondition, timeIdCount, timeIds } from '../models/size-condition.js';
import {
  type AddedEmbedding,
  type Condition,
  readUNet2DConditionConfig,
  type UNet2DConditionConfig,
  unet2DCondition,
} from '../models/unet-2d-condition.js';
import { FixedLora, type LoraOptions, LoraParameters } from '../nn/lora.js';
import { type ComputeType, type ParameterSource, type ParameterSpec, Scope } from '../nn/parameters.js';
import { cast } from '../onnx/elementwise.js';
import type { Graph, Value } from '../onnx/graph.js';
import { Graph as NewGraph } from '../onnx/graph.js';
import { concat } from '../onnx/movement.js';
import { int64, type Shape, type Tensor, toFloat32 } from '../tensor/tensor.js';
import type { ModelFamily, PredictionType } from './architectures.js';
import { type AppliedLora, fittedLora, type Lora } from './lora.js';
import { modelFamily } from './model-family.js';
import type { ModelFolder } from './model-folder.js';
import { openModel } from './open-model.js';
import {
  pipelineKinds,
  type TextEmbedding,
  type TextEncoderRole,
  type TextNetwork,
} from './pipeline-kind.js';
import { scalingFactorWarning } from './scaling-factor.js';
import { type ClipTokenizer, openTokenizer } from './tokenizer.js';
import { squaredUpdate } from './update-norm.js';
import { readWeightTensor, weightShape } from './weight.js';
import {
  assertFiniteWeights,
  layerWeight,
  openWeights,
  type Variant,
  type WeightSet,
  weightSource,
} from './weights.js';
import { digestWeights } from './weights-digest.js';

/** The layers that get a low-rank update: the attention projections of the denoiser and, if asked for, of the text encoders. */
export interface LoraSettings {
  readonly rank: number;
  /** The update is scaled by alpha / rank. */
  readonly alpha: number;
  readonly textEncoder: boolean;
}

export interface ModelOptions {
  /** The weights to take where a folder has both. */
  readonly variant?: Variant | undefined;
  /** What the denoiser predicts, in place of what the model says of itself. */
  readonly predictionType?: PredictionType | undefined;
  /**
   * What the denoiser and the text encoders compute in; float32 by default. What goes in and comes out is float32 in either case. The autoencoder always computes in
   * float32: in halves that of SDXL overflows, and it takes a small part of the time.
   */
  readonly computeType?: ComputeType | undefined;
}

const denoiserTargets = /\.attn[12]\.(to_q|to_k|to_v|to_out\.0)$/;
const textTargets = /\.self_attn\.(q_proj|k_proj|v_proj|out_proj)$/;

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
  readonly condition: Condition;
}

/** A prompt as the text encoders take it. */
export interface TokenizedPrompt {
  /** Token ids [1, S], by the graph inputs that `textEncoder` makes. */
  readonly tokens: Readonly<Record<string, Tensor<'int64'>>>;
  /** The part of the prompt that did not fit, as the tokenizer sees it. */
  readonly truncatedText?: string;
}

/** A text encoder with its tokenizer and weights. */
interface TextEncoder extends TextNetwork {
  readonly role: TextEncoderRole;
  readonly tokenizer: ClipTokenizer;
  readonly weights: WeightSet;
}

export interface DenoiserOptions {
  readonly lora?: LoraSettings | AppliedLora | undefined;
  readonly gradientCheckpointing?: boolean;
  /** The low-rank factors of a denoiser that is in the graph already, to be shared with it. */
  readonly factors?: ReadonlyMap<string, Value>;
}

/**
 * A Stable Diffusion model, opened: its configurations read, its weights checked and ready to be referred to from graphs. Each builder adds one network to a
 * graph; weights are read from the model's own files by the engine.
 */
export class StableDiffusion {
  private constructor(
    readonly folder: ModelFolder,
    readonly unetConfig: UNet2DConditionConfig,
    readonly vaeConfig: AutoencoderKLConfig,
    readonly scheduler: Scheduler,
    /** Whether guidance without a negative prompt leads away from an embedding of zeros rather than from the empty prompt. */
    readonly zerosForEmptyPrompt: boolean,
    /** What is odd about the model and may be meant so, to be told. */
    readonly warnings: readonly string[],
    private readonly textEncoders: readonly TextEncoder[],
    private readonly weights: Readonly<Record<'unet' | 'vae', WeightSet>>,
    /** What the denoiser and the text encoders compute in. */
    readonly computeType: ComputeType,
  ) {}

  /**
   * Opens a diffusers model folder, or a checkpoint in a single `.safetensors` file.
   *
   * @param options.variant the weights to take where a folder has both; the full ones by default.
   * @param options.predictionType what the denoiser predicts, where the model does not say it, or says it wrongly.
   * @param options.computeType what the denoiser and the text encoders compute in.
   * @throws ModelError naming the file, when the path is not a model, or one with parts, settings or weights that cannot be used.
   */
  static async open(path: string, options: ModelOptions = {}): Promise<StableDiffusion> {
    const folder = await openModel(path, options.predictionType);
    const kind = pipelineKinds[folder.pipeline];
    const { variant, computeType = 'float32' } = options;
    const { unet, vae, scheduler } = folder.components;
    const unetConfig = readUNet2DConditionConfig(unet.config);
    const vaeConfig = readAutoencoderKLConfig(vae.config);
    if (unetConfig.inChannels !== vaeConfig.latentChannels) {
      throw new ModelError(
        `${unet.folder}: the denoiser takes ${unetConfig.inChannels} channels, but the autoencoder beside it gives ${vaeConfig.latentChannels}. In-painting and up-scaling models are not supported; use a text-to-image model.`,
      );
    }
    const warning = scalingFactorWarning(folder, vaeConfig);
    const textEncoders: TextEncoder[] = [];
    for (const role of kind.textEncoders) textEncoders.push(await openTextEncoder(folder, role, variant));
    const weights = { unet: await openWeights(unet, variant), vae: await openWeights(vae, variant) };
    for (const set of [weights.unet, weights.vae, ...textEncoders.map((e) => e.weights)]) {
      await assertFiniteWeights(set);
    }
    const model = new StableDiffusion(
      folder,
      unetConfig,
      vaeConfig,
      readScheduler(scheduler.config),
      folder.index.boolean('force_zeros_for_empty_prompt', kind.zerosForEmptyPrompt),
      warning === undefined ? [] : [warning],
      textEncoders,
      weights,
      computeType,
    );
    model.#checkWeights();
    return model;
  }

  /** Tells the weights of each component from those of another model, wherever they lie. */
  async digests(): Promise<Readonly<Record<string, string>>> {
    const sets = [this.weights.unet, this.weights.vae, ...this.textEncoders.map((e) => e.weights)];
    const digests = new Map<string, string>();
    for (const set of sets) digests.set(set.component, await digestWeights(set));
    return Object.fromEntries(digests);
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

  /** The sides of pictures are multiples of this many pixels. */
  get granularity(): number {
    return this.downscale * 2 ** (this.unetConfig.blockOutChannels.length - 1);
  }

  /** Latents of one picture of these sides in pixels, a square by default: [C, h, w]. @throws UsageError when the model cannot take them. */
  latentShape(width: number, height = width): [number, number, number] {
    const step = this.granularity;
    for (const side of [width, height]) {
      if (Number.isInteger(side) && side >= step && side % step === 0) continue;
      throw new UsageError(
        `--resolution ${side}: this model takes multiples of ${step} pixels; ${Math.max(step, Math.round(side / step) * step) || step} is the nearest.`,
      );
    }
    return [this.vaeConfig.latentChannels, height / this.downscale, width / this.downscale];
  }

  /** The number of tokens of every prompt, S: what a prompt has room for, with its start and end. */
  get promptLength(): number {
    return this.textEncoders[0]!.tokenizer.maxLength;
  }

  /** What LoRA files call this kind of model. */
  get family(): ModelFamily {
    return modelFamily(this.folder);
  }

  /** Token ids of a prompt. @throws InputError when the prompt holds what a vocabulary cannot. */
  tokenize(prompt: string): TokenizedPrompt {
    const encoded = this.textEncoders.map((e) => e.tokenizer.encode(prompt));
    const tokens = this.textEncoders.map(({ role, config }, i) => {
      const { ids } = encoded[i]!;
      if (ids.some((id) => id >= config.vocabSize)) {
        throw new InputError(
          `The prompt ${JSON.stringify(prompt)} has tokens that the text encoder has no embedding for.`,
        );
      }
      return [role.tokens, int64([1, ids.length], ids)] as const;
    });
    const cut = encoded.find((e) => e.truncatedText !== undefined)?.truncatedText;
    return { tokens: Object.fromEntries(tokens), ...(cut === undefined ? {} : { truncatedText: cut }) };
  }

  /** Adds inputs for the tokens of B prompts, named as `tokenize` names them, and gives the embedding of those prompts. */
  textEncoder(graph: Graph, batch: number, lora?: LoraSettings | AppliedLora): Adapted<TextEmbedding<Value>> {
    const adapted = lora && ('modules' in lora || lora.textEncoder) ? lora : undefined;
    const parts = this.textEncoders.map(({ role, weights, embed }) => {
      const tokens = graph.input(role.tokens, 'int64', [batch, this.promptLength]);
      return this.#adapt(graph, weights, textTargets, adapted, (scope) => embed(scope, tokens));
    });
    const pooled = parts.find(({ result }) => result.pooled !== undefined)?.result.pooled;
    return {
      result: {
        condition: cast(
          concat(
            parts.map(({ result }) => result.condition),
            2,
          ),
          'float32',
        ),
        ...(pooled === undefined ? {} : { pooled: cast(pooled, 'float32') }),
      },
      factors: new Map(parts.flatMap(({ factors }) => [...factors])),
      specs: parts.flatMap(({ specs }) => specs),
    };
  }

  /**
   * What the denoiser is conditioned on, for B pictures. Adds inputs for all that `text` does not give: the embedding of the prompts, named as the fields of
   * `TextEmbedding`, and the sizes, fed by `sizeFeeds`, for models that are told them.
   */
  condition(graph: Graph, batch: number, text = this.#embeddingInputs(graph, batch)): Condition {
    const { condition: encoderHiddenStates, pooled: textEmbeds } = text;
    if (textEmbeds === undefined) return { encoderHiddenStates };
    const timeIds = graph.input(TIME_IDS, 'float32', [batch, timeIdCount]);
    return { encoderHiddenStates, added: { textEmbeds, timeIds } };
  }

  /** What to feed for one picture's sizes, [1, ...] each; nothing for models that are not told. */
  sizeFeeds(size: SizeCondition): Readonly<Record<string, Tensor<'float32'>>> {
    return this.unetConfig.added ? { [TIME_IDS]: timeIds(size) } : {};
  }

  /** The prediction [B, C, h, w] for noisy latents. */
  denoiser(
    graph: Graph,
    { sample, timestep, condition }: DenoiserInputs,
    options: DenoiserOptions = {},
  ): Adapted<Value> {
    const { lora, gradientCheckpointing = false, factors } = options;
    return this.#adapt(
      graph,
      this.weights.unet,
      denoiserTargets,
      lora,
      (scope) =>
        cast(
          unet2DCondition(
            scope,
            this.unetConfig,
            { sample, timestep, ...condition },
            { gradientCheckpointing },
          ),
          'float32',
        ),
      factors,
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

  /**
   * A LoRA whose factors have the shapes of this model's layers.
   *
   * @param file the name that errors give.
   * @throws ModelError when it was made for another model, saying which.
   */
  fitLora(lora: Lora, file: string): Lora {
    return fittedLora(lora, (module) => this.#weightShape(module), this.family, file);
  }

  /** How much a LoRA changes the layers that it is on: the Frobenius norm of all its updates over that of these layers' weights. */
  async relativeUpdate(lora: Lora): Promise<number> {
    let whole = 0;
    const sets = [this.weights.unet, ...this.textEncoders.map((e) => e.weights)];
    for (const module of lora.keys()) {
      const weight = layerWeight(sets, module);
      if (weight === undefined) throw new Error(`internal: no weight of ${module}`);
      for (const v of toFloat32(await readWeightTensor(weight)).data) whole += v * v;
    }
    return Math.sqrt(squaredUpdate(lora) / whole);
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
        condition: this.condition(graph, 1),
      },
      { lora: settings },
    );
    const { specs: text } = this.textEncoder(graph, 1, settings);
    return [...unet, ...text];
  }

  #weightShape(module: string): Shape | undefined {
    const sets = [this.weights.unet, ...this.textEncoders.map((e) => e.weights)];
    const weight = layerWeight(sets, module);
    return weight && weightShape(weight);
  }

  #embeddingInputs(graph: Graph, batch: number): TextEmbedding<Value> {
    const { crossAttentionDim, added } = this.unetConfig;
    const condition = graph.input('condition', 'float32', [batch, this.promptLength, crossAttentionDim]);
    if (!added) return { condition };
    return { condition, pooled: graph.input('pooled', 'float32', [batch, pooledWidth(added)]) };
  }

  #adapt<T>(
    graph: Graph,
    weights: WeightSet,
    targets: RegExp,
    lora: LoraSettings | AppliedLora | undefined,
    build: (scope: Scope) => T,
    factors?: ReadonlyMap<string, Value>,
  ): Adapted<T> {
    const base: ParameterSource = weightSource(graph, weights);
    const frozen = (source: ParameterSource): Adapted<T> => ({
      result: build(new Scope(source, '', this.computeType)),
      factors: new Map(),
      specs: [],
    });
    if (!lora) return frozen(base);
    if ('modules' in lora) return frozen(new FixedLora(base, graph, lora.modules, weights.component));
    const options: LoraOptions = {
      rank: lora.rank,
      alpha: lora.alpha,
      targets: (path) => targets.test(path),
      prefix: `${weights.component}.`,
      ...(factors ? { factors } : {}),
    };
    const adapted = new LoraParameters(base, graph, options);
    const result = build(new Scope(adapted, '', this.computeType));
    return {
      result,
      factors: new Map([...adapted.values.values()].map((value) => [value.name, value])),
      specs: adapted.specs,
    };
  }

  /** Builds every network once, so that a tensor that is missing or of another shape is found before any work is done. */
  #checkWeights(): void {
    this.#checkText();
    this.loraSpecs({ rank: 1, alpha: 1, textEncoder: false });
    const graph = new NewGraph('check');
    const side = this.downscale * 2 ** this.unetConfig.blockOutChannels.length;
    const [c, h, w] = this.latentShape(side);
    this.encoder(graph, graph.input('pixels', 'float32', [1, 3, side, side]));
    this.decoder(graph, graph.input('latents', 'float32', [1, c, h, w]));
  }

  /** Whether the text encoders fit each other and the denoiser. */
  #checkText(): void {
    const { path, pipeline, components } = this.folder;
    const lengths = this.textEncoders.map((e) => e.tokenizer.maxLength);
    if (new Set(lengths).size > 1) {
      throw new ModelError(
        `${path}: the tokenizers take ${lengths.join(' and ')} tokens ("model_max_length"). What their encoders say is joined token by token, so both must take the same number.`,
      );
    }
    const { crossAttentionDim: cross, added } = this.unetConfig;
    const widths = this.textEncoders.map((e) => e.config.hiddenSize);
    if (widths.reduce((a, b) => a + b, 0) !== cross) {
      throw new ModelError(
        `${path}: the text ${widths.length > 1 ? 'encoders give' : 'encoder gives'} ${widths.join(' + ')} channels ("hidden_size"), but the denoiser takes ${cross} ("cross_attention_dim"). They are not parts of one model.`,
      );
    }
    const { pooled } = this.textEncoder(new NewGraph('check'), 1).result;
    if ((pooled !== undefined) !== (added !== undefined)) {
      throw components.unet.config.unsupported(
        'addition_embed_type',
        `${pooled ? '"text_time"' : 'null'} in a ${pipeline}`,
      );
    }
    if (pooled && added && pooled.shape[1] !== pooledWidth(added)) {
      throw components.unet.config.unsupported(
        'projection_class_embeddings_input_dim',
        `${pooled.shape[1]! + timeIdCount * added.timeDim}, the projection_dim of text_encoder_2 and ${timeIdCount} times addition_time_embed_dim`,
      );
    }
  }
}

/** The graph input of the sizes. */
const TIME_IDS = 'time_ids';

/** What the denoiser leaves for the prompt's vector beside the sizes. */
const pooledWidth = ({ inputDim, timeDim }: AddedEmbedding): number => inputDim - timeIdCount * timeDim;

async function openTextEncoder(
  folder: ModelFolder,
  role: TextEncoderRole,
  variant: Variant | undefined,
): Promise<TextEncoder> {
  const component = folder.components[role.encoder];
  const tokenizer = folder.components[role.tokenizer];
  if (!component || !tokenizer) throw new Error(`internal: a ${folder.pipeline} without ${role.encoder}`);
  const network = role.read(component.config);
  return {
    role,
    ...network,
    tokenizer: await openTokenizer(tokenizer, network.config.maxPositions),
    weights: await openWeights(component, variant),
  };
}
