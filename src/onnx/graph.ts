import type { DType } from '../tensor/dtype.js';
import { elementCount, type Shape, type Tensor } from '../tensor/tensor.js';
import type { Operator } from './operators.js';

/** A shape or type that an operator cannot take. It is a bug in the code that built the graph, never the user's fault. */
export class GraphError extends Error {
  override name = 'GraphError';
}

/** Attributes of a node, tagged by their ONNX type. */
export type Attribute =
  | { readonly int: number }
  | { readonly float: number }
  | { readonly ints: readonly number[] }
  | { readonly string: string }
  /** For the rules of this project alone: the engine never sees it. */
  | { readonly hint: number };

export type Attributes = Readonly<Record<string, Attribute>>;

/** Where an initializer's bytes lie: a file and the absolute offset of its first byte. */
export interface ExternalData {
  readonly path: string;
  readonly offset: number;
}

/** What a value is, besides the output of a node. */
export type Origin =
  | { readonly kind: 'input' }
  | { readonly kind: 'constant'; readonly tensor: Tensor }
  | { readonly kind: 'external'; readonly location: ExternalData }
  | { readonly kind: 'node'; readonly node: Node; readonly index: number };

/** One tensor in the graph. Its element type and its shape are known when it is built. */
export class Value {
  constructor(
    readonly graph: Graph,
    readonly name: string,
    readonly dtype: DType,
    readonly shape: Shape,
    readonly origin: Origin,
  ) {}

  get rank(): number {
    return this.shape.length;
  }

  /** Number of elements. */
  get size(): number {
    return elementCount(this.shape);
  }

  /** The node that computes this value; undefined for inputs and initializers. */
  get producer(): Node | undefined {
    return this.origin.kind === 'node' ? this.origin.node : undefined;
  }

  toString(): string {
    return `%${this.name}: ${this.dtype}[${this.shape.join(', ')}]`;
  }
}

/** Constants up to this size are told apart by what they hold: shapes, axes, the maps of minimal filtering. */
const SMALL_CONSTANT = 1 << 12;

function identity({ name, dtype, shape, size, origin }: Value): string {
  if (origin.kind !== 'constant' || size > SMALL_CONSTANT) return name;
  return `${dtype}[${shape.join()}] ${(origin.tensor.data as Float32Array).join()}`;
}

/** A part of the graph whose inner values the backward pass computes again instead of keeping (see autodiff/recompute). */
export interface Region {
  readonly name: string;
}

export class Node {
  readonly outputs: readonly Value[];

  constructor(
    readonly operator: Operator,
    readonly inputs: readonly (Value | undefined)[],
    readonly attributes: Attributes,
    readonly region: Region | undefined,
    outputs: (node: Node) => readonly Value[],
  ) {
    this.outputs = outputs(this);
  }
}

/**
 * An ONNX graph under construction. Nodes are kept in the order in which they were added, which is a topological order, as a node can only be made from values
 * that exist. Every shape is static: a graph is built and compiled once per shape.
 */
export class Graph {
  readonly inputs: Value[] = [];
  readonly initializers: Value[] = [];
  readonly nodes: Node[] = [];
  readonly outputs = new Map<string, Value>();
  /** Resident state: the input of this name takes the value after each run. */
  readonly updates = new Map<string, Value>();
  /** Initializers that the engine reads where they lie (see `keepAsStored`). */
  readonly stored = new Set<Value>();
  /** Whether the engine is asked to plan memory in stages (see `planInStages`). */
  staged = false;
  #names = new Map<string, number>();
  #scalars = new Map<string, Value>();
  readonly #externals = new Map<string, Value>();
  /** Nodes that follow from initializers alone, by what they compute. */
  readonly #frozen = new Map<string, Node>();
  readonly #frozenNodes = new Set<Node>();
  #region: Region | undefined;

  constructor(readonly name = 'graph') {}

  /** A value that is fed at each run, or taken from the program's resident state when it is not fed. */
  input(name: string, dtype: DType, shape: Shape): Value {
    if (this.#names.has(name)) throw new GraphError(`input name ${name} is taken`);
    const value = new Value(this, this.#unique(name), dtype, [...shape], { kind: 'input' });
    this.inputs.push(value);
    return value;
  }

  /** An initializer whose bytes travel inside the graph. Scalars of equal value are shared. */
  constant(t: Tensor, name = 'const'): Value {
    const key = t.shape.length === 0 ? `${t.dtype}:${t.data[0]}:${Object.is(t.data[0], -0)}` : undefined;
    const known = key === undefined ? undefined : this.#scalars.get(key);
    if (known) return known;
    const value = new Value(this, this.#unique(name), t.dtype, t.shape, { kind: 'constant', tensor: t });
    this.initializers.push(value);
    if (key !== undefined) this.#scalars.set(key, value);
    return value;
  }

  /** An initializer whose bytes stay in a file, for example a tensor of a `.safetensors` file; the engine maps them. Asked for again, it is the same value. */
  external(name: string, dtype: DType, shape: Shape, location: ExternalData): Value {
    const key = `${dtype} [${shape.join()}] ${location.offset} ${location.path}`;
    const known = this.#externals.get(key);
    if (known) return known;
    const value = new Value(this, this.#unique(name), dtype, [...shape], { kind: 'external', location });
    this.initializers.push(value);
    this.#externals.set(key, value);
    return value;
  }

  /**
   * Asks the engine to read an initializer as it is stored instead of copying it into the layout that each of its readers likes best. It takes longer, and where two
   * readers like two layouts it saves two copies.
   */
  keepAsStored(initializer: Value): void {
    if (initializer.origin.kind !== 'external' && initializer.origin.kind !== 'constant')
      throw new GraphError(`%${initializer.name} is not an initializer`);
    this.stored.add(initializer);
  }

  /**
   * Asks the engine to plan a large graph's memory piece by piece (see `stagesOf`) rather than once for the whole: it holds less, and takes longer, as convolutions get
   * no kernels in blocked layout then.
   */
  planInStages(): void {
    this.staged = true;
  }

  /**
   * Adds a node. The operator functions of this folder are the public way: they check the operands and work out the result's type and shape.
   */
  add(
    operator: Operator,
    inputs: readonly (Value | undefined)[],
    results: readonly { readonly dtype: DType; readonly shape: Shape }[],
    attributes: Attributes = {},
  ): readonly Value[] {
    for (const input of inputs) {
      if (input && input.graph !== this)
        throw new GraphError(`${operator}: %${input.name} belongs to another graph`);
    }
    if (!inputs.every((input) => !input || this.isFrozen(input)))
      return this.#append(operator, inputs, results, attributes, this.#region).outputs;
    // The engine computes such a node once, before the first run, and keeps what it gives: a second one like it would be a second copy.
    // A result may be described by another value of its type and shape.
    const types = results.map(({ dtype, shape }) => `${dtype}[${shape.join()}]`);
    const key = JSON.stringify([
      operator,
      inputs.map((input) => input && identity(input)),
      attributes,
      types,
    ]);
    let node = this.#frozen.get(key);
    if (!node) {
      node = this.#append(operator, inputs, results, attributes, undefined);
      this.#frozen.set(key, node);
      this.#frozenNodes.add(node);
    }
    return node.outputs;
  }

  /** Whether a value follows from initializers alone, so that the engine knows it before the first run. */
  isFrozen({ origin }: Value): boolean {
    return origin.kind === 'node' ? this.#frozenNodes.has(origin.node) : origin.kind !== 'input';
  }

  #append(
    operator: Operator,
    inputs: readonly (Value | undefined)[],
    results: readonly { readonly dtype: DType; readonly shape: Shape }[],
    attributes: Attributes,
    region: Region | undefined,
  ): Node {
    const base = operator.toLowerCase();
    const node = new Node(operator, inputs, attributes, region, (made) =>
      results.map(
        (r, index) =>
          new Value(this, this.#unique(base), r.dtype, [...r.shape], { kind: 'node', node: made, index }),
      ),
    );
    this.nodes.push(node);
    return node;
  }

  /** Names a value that each run returns. */
  output(name: string, value: Value): void {
    if (this.outputs.has(name)) throw new GraphError(`output name ${name} is taken`);
    this.outputs.set(name, value);
  }

  /** Declares that after each run the resident state `input` takes the value `next`. */
  update(input: Value, next: Value): void {
    if (input.origin.kind !== 'input') throw new GraphError(`%${input.name} is not an input`);
    if (input.dtype !== next.dtype || input.shape.join() !== next.shape.join()) {
      throw new GraphError(`${input} cannot be updated with ${next}`);
    }
    if (this.updates.has(input.name)) throw new GraphError(`%${input.name} already has an update`);
    this.updates.set(input.name, next);
  }

  /** Marks the nodes that `build` adds as one region. A region inside a region belongs to the outer one. */
  inRegion<T>(region: Region, build: () => T): T {
    const outer = this.#region;
    this.#region = outer ?? region;
    try {
      return build();
    } finally {
      this.#region = outer;
    }
  }

  /** Adds nodes outside any region, whatever region is open. */
  outsideRegions<T>(build: () => T): T {
    const outer = this.#region;
    this.#region = undefined;
    try {
      return build();
    } finally {
      this.#region = outer;
    }
  }

  /** The nodes that some output or update depends on, in order. */
  liveNodes(): Node[] {
    const live = new Set<Node>();
    const pending = [...this.outputs.values(), ...this.updates.values()];
    while (pending.length > 0) {
      const node = pending.pop()?.producer;
      if (!node || live.has(node)) continue;
      live.add(node);
      for (const input of node.inputs) if (input) pending.push(input);
    }
    return this.nodes.filter((node) => live.has(node));
  }

  /** The inputs and initializers that the live nodes, outputs and updates read. */
  liveSources(): { inputs: Value[]; initializers: Value[] } {
    const used = new Set<Value>([...this.outputs.values(), ...this.updates.values()]);
    for (const node of this.liveNodes()) {
      for (const input of node.inputs) if (input) used.add(input);
    }
    return {
      inputs: this.inputs.filter((v) => used.has(v)),
      initializers: this.initializers.filter((v) => used.has(v)),
    };
  }

  #unique(base: string): string {
    const count = this.#names.get(base);
    if (count === undefined) {
      this.#names.set(base, 1);
      return base;
    }
    let n = count;
    while (this.#names.has(`${base}_${n}`)) n++;
    this.#names.set(base, n + 1);
    this.#names.set(`${base}_${n}`, 1);
    return `${base}_${n}`;
  }
}
