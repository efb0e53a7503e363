import type { Graph, Value } from '../onnx/graph.js';
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

/** Strings tensors together into one vector: the vector itself, where `unflatten` has just cut them from it. */
export function flatten(values: readonly Value[]): Value {
  const pieces = values.map(asVector);
  const first = pieces[0]!;
  const cut = first.producer;
  if (
    cut?.operator === 'Split' &&
    cut.outputs.length === pieces.length &&
    cut.outputs.every((v, i) => v === pieces[i])
  ) {
    return cut.inputs[0]!;
  }
  return concat(pieces, 0);
}

function asVector(value: Value): Value {
  const source = value.producer?.operator === 'Reshape' ? value.producer.inputs[0]! : value;
  return source.rank === 1 ? source : reshape(value, [-1]);
}

/** Cuts a vector into tensors of these shapes. */
export function unflatten(vector: Value, shapes: readonly Shape[]): Value[] {
  return split(vector, shapes.map(elementCount), 0).map((piece, i) => reshape(piece, shapes[i]!));
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
