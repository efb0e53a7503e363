import { readScheduler, type Scheduler } from '../diffusion/scheduler-config.js';
import type { Device } from '../engine/device.js';
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
import { FixedLora, LoraParameters } from '../nn/lora.js';
import {
  type Computation,
  type ComputeType,
  InputParameters,
  type ParameterSource,
  Scope,
} from '../nn/parameters.js';
import { AddedRows, VariableWeights } from '../nn/variables.js';
import { cast } from '../onnx/elementwise.js';
import type { Graph, Value } from '../onnx/graph.js';
import { Graph as NewGraph } from '../onnx/graph.js';
import { concat } from '../onnx/movement.js';
import { float32, int64, type Shape, type Tensor, toFloat32 } from '../tensor/tensor.js';
import type { ModelFamily, PredictionType } from './architectures.js';
import { fittedLora, type Lora, loraFromFactors } from './lora.js';
import { modelFamily } from './model-family.js';
import type { ModelFolder } from './model-folder.js';
import { encodeNewWords, type NewWord } from './new-words.js';
import { openModel } from './open-model.js';
import {
  pipelineKinds,
  type TextEmbedding,
  type TextEncoderRole,
  type TextNetwork,
} from './pipeline-kind.js';
import { scalingFactorWarning } from './scaling-factor.js';
import { type ClipTokenizer, openTokenizer } from './tokenizer.js';
import type { Adaptation, Trainable, TrainedWeights, Variable } from './trainable.js';
import { squaredUpdate } from './update-norm.js';
import { readWeightTensor, type Weight, weightShape } from './weight.js';
import {
  assertFiniteWeights,
  layerWeight,
  openWeights,
  readWeight,
  type Variant,
  type WeightSet,
  weightSource,
} from './weights.js';
import { digestWeights } from './weights-digest.js';

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
  /** Where it will run, which decides how its layers are written; the processor by default. */
  readonly device?: Device | undefined;
}

const denoiserTargets = /\.attn[12]\.(to_q|to_k|to_v|to_out\.0)$/;
/** How many scores of attention suit a card: 256 MiB in 32-bit floats, and on WebGPU the 128 MiB that it promises to bind at once. */
const attentionTiles: Partial<Record<Device, number>> = { cuda: 1 << 26, webgpu: 1 << 25 };

const computationOn = (device: Device, type: ComputeType): Computation => ({
  type,
  minimalFiltering: device === 'cpu',
  attentionTile: attentionTiles[device],
  rowsInTurn: device === 'cpu',
});

/** The text encoders' table of tokens. */
const tokenTable = /(^|\.)token_embedding\.weight$/;
const textTargets = /\.self_attn\.(q_proj|k_proj|v_proj|out_proj)$/;

/** What a graph builder of a model yields besides its value: the variables that became inputs of the graph. */
export interface Adapted<T> {
  readonly result: T;
  /** By state name, the component's name and the path of a weight or of a low-rank factor: `unet.….lora_A.weight`. */
  readonly inputs: ReadonlyMap<string, Value>;
  readonly variables: readonly Variable[];
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
  /** For each row that new words add to its table of tokens, the row that it starts as. */
  readonly addedRows: readonly number[];
}

export interface DenoiserOptions {
  readonly adaptation?: Adaptation | undefined;
  readonly gradientCheckpointing?: boolean;
  /** The variables of a denoiser that is in the graph already, to be shared with it. */
  readonly inputs?: ReadonlyMap<string, Value>;
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
    /** How the denoiser and the text encoders are written. */
    private readonly computation: Computation,
    /** Words that it has beside those of its vocabulary. */
    readonly words: readonly NewWord[] = [],
  ) {}

  /**
   * Opens a diffusers model folder, or a checkpoint in a single `.safetensors` file.
   *
   * @param options.variant the weights to take where a folder has both; the full ones by default.
   * @param options.predictionType what the denoiser predicts, where the model does not say it, or says it wrongly.
   * @param options.computeType what the denoiser and the text encoders compute in.
   * @param options.device where it will run, which decides how its layers are written.
   * @throws ModelError naming the file, when the path is not a model, or one with parts, settings or weights that cannot be used.
   */
  static async open(path: string, options: ModelOptions = {}): Promise<StableDiffusion> {
    const folder = await openModel(path, options.predictionType);
    const kind = pipelineKinds[folder.pipeline];
    const { variant, computeType = 'float32', device = 'cpu' } = options;
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
      computationOn(device, computeType),
    );
    model.#checkWeights();
    return model;
  }

  /** What the denoiser and the text encoders compute in. */
  get computeType(): ComputeType {
    return this.computation.type;
  }

  /** Whether the class's rows of a training step, where rows are large, go forwards and back after the subject's where it runs. */
  get rowsInTurn(): boolean {
    return this.computation.rowsInTurn;
  }

  /** The weights of each component with weights. */
  get weightSets(): readonly WeightSet[] {
    return [this.weights.unet, this.weights.vae, ...this.textEncoders.map((e) => e.weights)];
  }

  /** Tells the weights of each component from those of another model, wherever they lie. */
  async digests(): Promise<Readonly<Record<string, string>>> {
    const digests = new Map<string, string>();
    for (const set of this.weightSets) digests.set(set.component, await digestWeights(set));
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
    const tokens = this.textEncoders.map(({ role, config, addedRows }, i) => {
      const { ids } = encoded[i]!;
      if (ids.some((id) => id >= config.vocabSize + addedRows.length)) {
        throw new InputError(
          `The prompt ${JSON.stringify(prompt)} has tokens that the text encoder has no embedding for.`,
        );
      }
      return [role.tokens, int64([1, ids.length], ids)] as const;
    });
    const cut = encoded.find((e) => e.truncatedText !== undefined)?.truncatedText;
    return { tokens: Object.fromEntries(tokens), ...(cut === undefined ? {} : { truncatedText: cut }) };
  }

  /**
   * The same model with words that it has to learn: more rows after those of its tables of tokens, variables of every graph of the text encoders.
   *
   * @throws InputError for words that it cannot be given; see `encodeNewWords`.
   */
  withWords(words: readonly NewWord[]): StableDiffusion {
    if (words.length === 0) return this;
    const textEncoders = this.textEncoders.map((encoder) => {
      const { tokenizer, startRows } = encodeNewWords(encoder.tokenizer, words, encoder.config.vocabSize);
      return { ...encoder, tokenizer, addedRows: startRows };
    });
    return this.#with(textEncoders, this.weights, words);
  }

  /** The same model with some of its weights from elsewhere, by component and checkpoint name: `unet.conv_in.weight`. */
  withWeights(others: ReadonlyMap<string, Weight>): StableDiffusion {
    if (others.size === 0) return this;
    const replaced = (set: WeightSet): WeightSet => ({
      ...set,
      weights: new Map(
        [...set.weights].map(([name, w]) => [name, others.get(`${set.component}.${name}`) ?? w]),
      ),
    });
    const { unet, vae } = this.weights;
    return this.#with(
      this.textEncoders.map((encoder) => ({ ...encoder, weights: replaced(encoder.weights) })),
      { unet: replaced(unet), vae },
      this.words,
    );
  }

  #with(
    textEncoders: readonly TextEncoder[],
    weights: Readonly<Record<'unet' | 'vae', WeightSet>>,
    words: readonly NewWord[],
  ): StableDiffusion {
    const { folder, unetConfig, vaeConfig, scheduler, zerosForEmptyPrompt, warnings, computation } = this;
    return new StableDiffusion(
      folder,
      unetConfig,
      vaeConfig,
      scheduler,
      zerosForEmptyPrompt,
      warnings,
      textEncoders,
      weights,
      computation,
      words,
    );
  }

  /** Adds inputs for the tokens of B prompts, named as `tokenize` names them, and gives the embedding of those prompts. */
  textEncoder(graph: Graph, batch: number, adaptation: Adaptation = {}): Adapted<TextEmbedding<Value>> {
    const adapted = 'modules' in adaptation ? adaptation : textPart(adaptation);
    const parts = this.textEncoders.map(({ role, weights, embed, addedRows }) => {
      const tokens = graph.input(role.tokens, 'int64', [batch, this.promptLength]);
      const build = (scope: Scope) => embed(scope, tokens);
      return this.#adapt(graph, weights, textTargets, adapted, build, { addedRows });
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
      inputs: new Map(parts.flatMap(({ inputs }) => [...inputs])),
      variables: parts.flatMap(({ variables }) => variables),
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
    const { adaptation = {}, gradientCheckpointing = false, inputs } = options;
    return this.#adapt(
      graph,
      this.weights.unet,
      denoiserTargets,
      adaptation,
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
      inputs ? { inputs } : {},
    );
  }

  /** Pictures [B, 3, R, R] in [-1, 1] to the posterior over unscaled latents. */
  encoder(graph: Graph, pixels: Value): LatentMoments {
    return encodeLatents(this.#autoencoder(graph), this.vaeConfig, pixels);
  }

  /** Unscaled latents to pictures [B, 3, R, R], about [-1, 1]. */
  decoder(graph: Graph, latents: Value): Value {
    return decodeLatents(this.#autoencoder(graph), this.vaeConfig, latents);
  }

  #autoencoder(graph: Graph): Scope {
    return new Scope(weightSource(graph, this.weights.vae), '', { ...this.computation, type: 'float32' });
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

  /** How much what was learnt changes the weights that it is about: the Frobenius norm of all updates over that of these weights. */
  async relativeUpdate(trainable: Trainable, { names, read }: TrainedWeights): Promise<number> {
    let [changed, whole] = [0, 0];
    if (trainable.lora) {
      const factors = new Map<string, Tensor>();
      for (const name of names) if (/\.lora_[AB]\.weight$/.test(name)) factors.set(name, await read(name));
      const lora = loraFromFactors(factors, trainable.lora.alpha);
      changed += squaredUpdate(lora);
      for (const module of lora.keys()) {
        const weight = layerWeight(this.weightSets, module);
        if (weight === undefined) throw new Error(`internal: no weight of ${module}`);
        for (const v of toFloat32(await readWeightTensor(weight)).data) whole += v * v;
      }
    }
    for (const { input, stored } of this.variables(trainable)) {
      if (!stored) continue;
      const now = (await read(input)).data as Float32Array;
      (await stored()).data.forEach((v, i) => {
        changed += (now[i]! - v) ** 2;
        whole += v * v;
      });
    }
    return Math.sqrt(changed / whole);
  }

  /** Whether the text encoders have variables, so that what they say of a prompt changes with training. */
  trainsText(trainable: Trainable): boolean {
    return this.textEncoder(new NewGraph('shapes'), 1, trainable).variables.length > 0;
  }

  /** All that is variable in this model, without building more than shapes: the denoiser's, then the text encoders'. */
  variables(trainable: Trainable): Variable[] {
    const graph = new NewGraph('shapes');
    const [c, h, w] = this.latentShape(this.downscale * 2 ** this.unetConfig.blockOutChannels.length);
    const unet = this.denoiser(
      graph,
      {
        sample: graph.input('sample', 'float32', [1, c, h, w]),
        timestep: graph.input('timestep', 'int64', [1]),
        condition: this.condition(graph, 1),
      },
      { adaptation: trainable },
    );
    return [...unet.variables, ...this.textEncoder(graph, 1, trainable).variables];
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
    set: WeightSet,
    targets: RegExp,
    adaptation: Adaptation,
    build: (scope: Scope) => T,
    {
      addedRows = [],
      inputs,
    }: { readonly addedRows?: readonly number[]; readonly inputs?: ReadonlyMap<string, Value> },
  ): Adapted<T> {
    const prefix = `${set.component}.`;
    const variables = (): InputParameters => new InputParameters(graph, prefix, inputs);
    const [factors, weights, rows] = [variables(), variables(), variables()];
    let source: ParameterSource = weightSource(graph, set);
    if (addedRows.length > 0) {
      source = new AddedRows(source, rows, (path) => tokenTable.test(path), addedRows.length);
    }
    if ('modules' in adaptation) source = new FixedLora(source, graph, adaptation.modules, set.component);
    else {
      const { lora, weights: all = {} } = adaptation;
      const chosen = all[set.component as keyof typeof all];
      if (chosen) source = new VariableWeights(source, weights, (path) => chosen.test(path));
      if (lora) {
        const { rank, alpha } = lora;
        source = new LoraParameters(source, factors, { rank, alpha, targets: (path) => targets.test(path) });
      }
    }
    const result = build(new Scope(source, '', this.computation));
    const all = [factors, weights, rows].flatMap((kind) => [...kind.values.values()]);
    return {
      result,
      inputs: new Map(all.map((value) => [value.name, value])),
      variables: [
        ...factors.specs,
        ...weights.specs.map((spec) => ({ ...spec, stored: () => readFloat32(set, spec.path) })),
        ...rows.specs.map((spec) => ({ ...spec, stored: () => readRows(set, addedRows) })),
      ],
    };
  }

  /** Builds every network once, so that a tensor that is missing or of another shape is found before any work is done. */
  #checkWeights(): void {
    this.#checkText();
    this.variables({});
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
    addedRows: [],
  };
}

/** What of a training set concerns the text encoders. */
function textPart({ lora, weights }: Trainable): Trainable {
  return { ...(lora?.textEncoder ? { lora } : {}), ...(weights ? { weights } : {}) };
}

async function readFloat32(set: WeightSet, name: string): Promise<Tensor<'float32'>> {
  return toFloat32(await readWeight(set, name));
}

/** Copies of rows of the table of tokens. */
async function readRows(set: WeightSet, rows: readonly number[]): Promise<Tensor<'float32'>> {
  const name = [...set.weights.keys()].find((path) => tokenTable.test(path))!;
  const { shape, data } = await readFloat32(set, name);
  const dim = shape[1]!;
  const copy = new Float32Array(rows.length * dim);
  rows.forEach((row, i) => {
    copy.set(data.subarray(row * dim, (row + 1) * dim), i * dim);
  });
  return float32([rows.length, dim], copy);
}
