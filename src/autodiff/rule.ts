import type { Attributes, Value } from '../onnx/graph.js';
import { GraphError } from '../onnx/graph.js';

/** What a gradient rule sees of a node. In a recomputed region the values are the recomputed ones. */
export interface RuleContext {
  readonly inputs: readonly (Value | undefined)[];
  readonly outputs: readonly Value[];
  readonly attributes: Attributes;
  /** The node is computed again in the backward pass: memory goes before time. */
  readonly frugal: boolean;
  /** Gradient of the loss with respect to the first output. */
  readonly grad: Value;
  /** Gradients with respect to all outputs; undefined where the loss does not depend on one. */
  readonly grads: readonly (Value | undefined)[];
}

/**
 * The vector-Jacobian product of one operator, as data: for each input a thunk that builds its gradient, or undefined where there is none. The walk calls only the
 * thunks that someone asked for. A gradient may still have the output's broadcast shape; the walk sums it down.
 */
export type Rule = (context: RuleContext) => readonly ((() => Value) | undefined)[];

/** An operator's entry in the rule table. */
export type RuleEntry = Rule | 'not differentiable';

/** The i-th input, which the operator always has. */
export function operand(context: RuleContext, index: number): Value {
  const value = context.inputs[index];
  if (!value) throw new GraphError(`a node lacks its input ${index}`);
  return value;
}

export function intAttribute(attributes: Attributes, name: string): number {
  const attribute = attributes[name];
  if (!attribute || !('int' in attribute)) throw new GraphError(`a node lacks the integer attribute ${name}`);
  return attribute.int;
}

export function intsAttribute(attributes: Attributes, name: string): readonly number[] {
  const attribute = attributes[name];
  if (!attribute || !('ints' in attribute)) throw new GraphError(`a node lacks the attribute ${name}`);
  return attribute.ints;
}

export function floatAttribute(attributes: Attributes, name: string): number {
  const attribute = attributes[name];
  if (!attribute || !('float' in attribute)) throw new GraphError(`a node lacks the attribute ${name}`);
  return attribute.float;
}

/** The integers of a constant operand, such as axes or a shape. */
export function constantInts(value: Value): readonly number[] {
  if (value.origin.kind !== 'constant') throw new GraphError(`${value} is not a constant`);
  return Array.from(value.origin.tensor.data as BigInt64Array, Number);
}
