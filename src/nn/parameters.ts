import { cast } from '../onnx/elementwise.js';
import type { Graph, Value } from '../onnx/graph.js';
import type { Shape } from '../tensor/tensor.js';

/**
 * What a network computes in. With float16 the products (linear layers, convolutions, attention) and the activations between them are halves; normalisations
 * and softmax are computed in float32 all the same, from halves to halves, and parameters that learn stay float32 and are rounded where they are used
 * (Micikevicius et al., "Mixed precision training", arXiv 1710.03740).
 */
export type ComputeType = 'float32' | 'float16';

/** How the layers of a network are written. */
export interface Computation {
  readonly type: ComputeType;
  /** Whether wide 3x3 kernels go by minimal filtering: fewer multiplications for a processor, but many small operations in place of one that a graphics card is made for. */
  readonly minimalFiltering: boolean;
  /** How many scores of attention are held at once in the backward pass; what suits a processor where it is left out. Larger tiles make fewer nodes, which is what costs a graphics card time. */
  readonly attentionTile?: number | undefined;
  /** Whether the class's rows of a training step, where rows are large, go forwards and back after the subject's. One keeps a processor busy by itself; on a card a second pass would be as many nodes again. */
  readonly rowsInTurn: boolean;
}

const ON_PROCESSOR: Computation = { type: 'float32', minimalFiltering: true, rowsInTurn: true };

/** How a parameter starts when a model is trained from nothing. `uniform` draws from [-bound, bound]. */
export type Initializer =
  | { readonly kind: 'zeros' }
  | { readonly kind: 'ones' }
  | { readonly kind: 'normal'; readonly std: number }
  | { readonly kind: 'uniform'; readonly bound: number };

/** The two factors of a low-rank update of a layer: y += scale * up(down(x)). */
export interface LoraFactors {
  /** [rank, in]; of a convolution [rank, in, height, width] */
  readonly down: Value;
  /** [out, rank]; of a convolution [out, rank, 1, 1] */
  readonly up: Value;
  readonly scale: number;
}

/** Where a model's parameters come from: a checkpoint on disk, inputs of the graph, or both. */
export interface ParameterSource {
  /** The float32 value of the parameter at `path`, its full checkpoint name. The same path always gives the same value. */
  parameter(path: string, shape: Shape, init: Initializer): Value;
  /** Whether a checkpoint holds this name. Sources without names of their own leave it out; models then use the current names. */
  has?(path: string): boolean;
  /** The low-rank update of the layer at `path`, whose weight has this shape, when there is one. */
  lora?(path: string, weight: Shape): LoraFactors | undefined;
  /** Rows [N, dim] that come after those of the table [count, dim] at `path`, when there are any. */
  addedRows?(path: string, table: Shape): Value | undefined;
}

/** Another source as it is; what changes some of it overrides that. */
export class DerivedParameters implements ParameterSource {
  constructor(protected readonly base: ParameterSource) {}

  parameter(path: string, shape: Shape, init: Initializer): Value {
    return this.base.parameter(path, shape, init);
  }

  has(path: string): boolean {
    return this.base.has?.(path) ?? false;
  }

  lora(path: string, weight: Shape): LoraFactors | undefined {
    return this.base.lora?.(path, weight);
  }

  addedRows(path: string, table: Shape): Value | undefined {
    return this.base.addedRows?.(path, table);
  }
}

/** A place in a model's tree of parameters, for example `down_blocks.0.resnets.1`. */
export class Scope {
  readonly source: ParameterSource;
  readonly path: string;
  /** Layers follow the types of what they are given; only those that read `weight` bring in this one's. */
  readonly computation: Computation;

  constructor(source: ParameterSource, path = '', computation = ON_PROCESSOR) {
    this.source = source;
    this.path = path;
    this.computation = computation;
  }

  /** The place below this one: `scope.at('resnets', 0)`. */
  at(...segments: readonly (string | number)[]): Scope {
    return new Scope(this.source, this.#join(segments), this.computation);
  }

  /** A parameter in the type that the model computes in. */
  weight(name: string, shape: Shape, init: Initializer): Value {
    return cast(this.parameter(name, shape, init), this.computation.type);
  }

  /** A parameter in float32. */
  parameter(name: string, shape: Shape, init: Initializer): Value {
    return this.source.parameter(this.#join([name]), shape, init);
  }

  /** Whether the source is known to hold a parameter of this name here. */
  has(name: string): boolean {
    return this.source.has?.(this.#join([name])) ?? false;
  }

  lora(weight: Shape): LoraFactors | undefined {
    return this.source.lora?.(this.path, weight);
  }

  addedRows(name: string, table: Shape): Value | undefined {
    return this.source.addedRows?.(this.#join([name]), table);
  }

  #join(segments: readonly (string | number)[]): string {
    return [...(this.path === '' ? [] : [this.path]), ...segments].join('.');
  }
}

/** A parameter that a model asked for. */
export interface ParameterSpec {
  /** Name of the graph input that stands for it. */
  readonly input: string;
  /** Its checkpoint name. */
  readonly path: string;
  readonly shape: Shape;
  readonly init: Initializer;
}

/**
 * Makes every parameter an input of the graph, named `prefix + path`, and records what was asked for: the way to train all parameters, or to list a model's
 * parameters without any weights. A model that is called twice shares its parameters.
 */
export class InputParameters implements ParameterSource {
  readonly #graph: Graph;
  readonly #prefix: string;
  readonly #known: ReadonlyMap<string, Value>;
  readonly #specs = new Map<string, ParameterSpec>();
  readonly #values = new Map<string, Value>();

  /** @param known inputs that are there already, by their names: for a model that is built into the graph once more, with the same parameters */
  constructor(graph: Graph, prefix = '', known: ReadonlyMap<string, Value> = new Map()) {
    this.#graph = graph;
    this.#prefix = prefix;
    this.#known = known;
  }

  /** Everything asked for so far, in the order of asking. */
  get specs(): readonly ParameterSpec[] {
    return [...this.#specs.values()];
  }

  /** The graph inputs by checkpoint name, in the order of `specs`. */
  get values(): ReadonlyMap<string, Value> {
    return this.#values;
  }

  parameter(path: string, shape: Shape, init: Initializer): Value {
    const known = this.#values.get(path);
    if (known !== undefined) {
      requireSameShape(path, known.shape, shape);
      return known;
    }
    const input = this.#prefix + path;
    const value = this.#known.get(input) ?? this.#graph.input(input, 'float32', shape);
    this.#specs.set(path, { input, path, shape: [...shape], init });
    this.#values.set(path, value);
    return value;
  }
}

function requireSameShape(path: string, known: Shape, asked: Shape): void {
  if (known.length !== asked.length || known.some((d, i) => d !== asked[i])) {
    throw new Error(
      `internal: parameter ${path} is [${known.join(', ')}] but was asked for again as [${asked.join(', ')}]`,
    );
  }
}
