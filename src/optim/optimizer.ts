import { cast } from '../onnx/elementwise.js';
import type { Graph, Node, Value } from '../onnx/graph.js';
import { concat, reshape, split } from '../onnx/movement.js';
import { elementCount, full, type Shape, type Tensor, zeros } from '../tensor/tensor.js';

/** A trainable tensor: its name in the state, and its shape. */
export interface Parameter {
  readonly name: string;
  readonly shape: Shape;
}

/**
 * An optimiser as an {init, update} pair. `init` lists the state it needs; `update` adds to a graph the nodes of one step and declares the new values of parameters
 * and state.
 */
export interface Optimizer {
  /** Initial optimiser state of these parameters. */
  init(parameters: readonly Parameter[]): Map<string, Tensor>;
  /**
   * Emits one step. `parameters` are graph inputs; `gradients` match them. Parameters become graph updates.
   *
   * @param firstGroup where `parameters` are some of those that `init` was told of: the number of the first of their groups, which follow one another and are whole. See
   * `groups`.
   */
  update(graph: Graph, parameters: readonly Value[], gradients: readonly Value[], firstGroup?: number): void;
  /** What to feed at step `step` (counted from 1) with this learning rate. */
  feeds(step: number, learningRate: number): Record<string, Tensor>;
}

export const scalarFeed = (value: number): Tensor => full([], value);

/** Tensors of at least this many elements are updated on their own; smaller ones are strung together, as a node costs more than their arithmetic. */
const LARGE = 1 << 16;

/** Indices of parameters that are updated together. The grouping depends on the shapes alone. */
export function groups(shapes: readonly Shape[]): number[][] {
  const small: number[] = [];
  const result: number[][] = [];
  shapes.forEach((shape, i) => {
    if (elementCount(shape) >= LARGE) result.push([i]);
    else small.push(i);
  });
  return small.length ? [small, ...result] : result;
}

/** Strings tensors together into one vector: the vector itself, where `unflatten` has just cut them from it. Those that were only cast before are strung together and then cast. */
export function flatten(values: readonly Value[]): Value {
  const sources = values.map(({ producer }) =>
    producer?.operator === 'Cast' ? producer.inputs[0]! : undefined,
  );
  const dtype = sources[0]?.dtype;
  if (values.length > 1 && sources.every((source) => source !== undefined && source.dtype === dtype))
    return cast(flatten(sources as readonly Value[]), values[0]!.dtype);
  const pieces = values.map(asVector);
  const cut = pieces[0]!.producer;
  return cut?.operator === 'Split' && areAll(cut.outputs, pieces) ? cut.inputs[0]! : concat(pieces, 0);
}

const areAll = (values: readonly Value[], others: readonly Value[]): boolean =>
  values.length === others.length && values.every((v, i) => v === others[i]);

function asVector(value: Value): Value {
  const source = reshaped(value);
  return source.rank === 1 ? source : reshape(value, [-1]);
}

/** What a value is another shape of. */
const reshaped = (value: Value): Value =>
  value.producer?.operator === 'Reshape' ? value.producer.inputs[0]! : value;

/** Cuts a vector into tensors of these shapes. */
export function unflatten(vector: Value, shapes: readonly Shape[]): Value[] {
  return split(vector, shapes.map(elementCount), 0).map((piece, i) => reshape(piece, shapes[i]!));
}

/** Indices of values by the vector that `unflatten` cut them from, in the order in which they lie there; those of any other origin by themselves. */
export function byVector(values: readonly Value[]): readonly (readonly number[])[] {
  const members = new Map<Node | Value, number[]>();
  const pieces = values.map(reshaped);
  pieces.forEach((piece, i) => {
    const { producer } = piece;
    const vector = producer?.operator === 'Split' ? producer : values[i]!;
    const others = members.get(vector);
    if (others) others.push(i);
    else members.set(vector, [i]);
  });
  const place = (i: number): number => pieces[i]!.producer?.outputs.indexOf(pieces[i]!) ?? 0;
  return [...members.values()].map((indices) => indices.sort((a, b) => place(a) - place(b)));
}

/** Zero state vectors, one a group, named `prefix.group`. */
export function zeroState(
  parameters: readonly Parameter[],
  prefixes: readonly string[],
): Map<string, Tensor> {
  const shapes = parameters.map((p) => p.shape);
  const state = new Map<string, Tensor>();
  groups(shapes).forEach((members, g) => {
    const length = members.reduce((n, i) => n + elementCount(shapes[i]!), 0);
    for (const prefix of prefixes) state.set(`${prefix}.${g}`, zeros([length]));
  });
  return state;
}
