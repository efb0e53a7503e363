import { add } from '../onnx/elementwise.js';
import { GraphError, type Node, type Region, type Value } from '../onnx/graph.js';
import { sumTo } from '../onnx/reduction.js';
import { full, zeros } from '../tensor/tensor.js';
import { addToProduct } from './linalg.js';
import { afterGradient } from './order.js';
import { Replay } from './recompute.js';
import type { RuleContext } from './rule.js';
import { rules } from './rules.js';

/**
 * Reverse-mode differentiation as a graph-to-graph transform: adds to the loss's graph the nodes that compute its gradients.
 *
 * Only what was asked for is built: a node's rule is run when the loss depends on the node and the node on some `wrt`, and only for the operands on such a path.
 *
 * @param loss a scalar
 * @param wrt values of the same graph, of float types
 * @returns d loss / d wrt, each of its value's shape; zeros where the loss does not depend on it
 * @throws GraphError when the path runs through an operator without a gradient
 */
export function gradients(loss: Value, wrt: readonly Value[]): Value[] {
  const { graph } = loss;
  if (loss.size !== 1) throw new GraphError(`the loss must be a scalar, got ${loss}`);
  const path = dependents(graph.nodes, wrt);
  const pending = new Map<Value, Contribution[]>();
  const settled = new Map<Value, Value>();
  const asked = new Set(wrt);
  const nodes = [...graph.nodes];
  const byRegion = nodesByRegion(nodes);
  const walk: Walk = { path, pending, asked, readers: readers(nodes) };
  const replays = new Map<Region, Replay>();

  /** The sum of what has arrived at a value. All its consumers come later in the graph, so when its producer is reached nothing more can arrive. */
  const collect = (value: Value): Value | undefined => {
    const parts = pending.get(value);
    if (!parts) return undefined;
    pending.delete(value);
    const total = sumOf(parts);
    if (asked.has(value)) settled.set(value, total);
    return total;
  };

  return graph.outsideRegions(() => {
    pending.set(loss, [{ value: graph.constant(full(loss.shape, 1), 'seed'), own: false }]);
    for (const node of nodes.reverse()) {
      if (!node.outputs.some((v) => path.has(v) && pending.has(v))) continue;
      const grads = node.outputs.map(collect);
      const grad = grads[0] ?? grads.find((g) => g !== undefined);
      if (!grad) continue;
      let replay: Replay | undefined;
      if (node.region) {
        replay = replays.get(node.region) ?? new Replay(node.region, byRegion.get(node.region)!, grad);
        replays.set(node.region, replay);
      }
      propagate(node, grads, replay, walk);
    }
    return wrt.map(
      (value) => settled.get(value) ?? collect(value) ?? graph.constant(zeros(value.shape), 'zeros'),
    );
  });
}

/** What the walk knows at every node. */
interface Walk {
  /** The values that the gradient passes through. */
  readonly path: ReadonlySet<Value>;
  /** What has arrived at a value so far. */
  readonly pending: Map<Value, Contribution[]>;
  readonly asked: ReadonlySet<Value>;
  /** How often each value is read. */
  readonly readers: ReadonlyMap<Value, number>;
}

function readers(nodes: readonly Node[]): Map<Value, number> {
  const counts = new Map<Value, number>();
  for (const node of nodes) for (const v of node.inputs) if (v) counts.set(v, (counts.get(v) ?? 0) + 1);
  return counts;
}

function nodesByRegion(nodes: readonly Node[]): Map<Region, Node[]> {
  const regions = new Map<Region, Node[]>();
  for (const node of nodes) {
    if (!node.region) continue;
    const members = regions.get(node.region);
    if (members) members.push(node);
    else regions.set(node.region, [node]);
  }
  return regions;
}

/** Activations of fewer elements than this are not worth an ordering: a few nodes take as long as the memory is worth. */
const LARGE = 1 << 20;

function propagate(
  node: Node,
  grads: readonly (Value | undefined)[],
  replay: Replay | undefined,
  walk: Walk,
): void {
  const { path, pending } = walk;
  const rule = rules[node.operator];
  if (rule === 'not differentiable')
    throw new GraphError(`the gradient was asked for through ${node.operator}`);
  const seen = (v: Value | undefined): Value | undefined => (v && replay ? replay.of(v) : v);
  const first = grads[0];
  if (!first && node.operator !== 'Split') {
    throw new GraphError(`only the first output of ${node.operator} has a gradient`);
  }
  const inputs = node.inputs.map(seen);
  const context: RuleContext = {
    inputs,
    outputs: node.outputs.map((v) => seen(v)!),
    attributes: node.attributes,
    frugal: node.region !== undefined,
    grads,
    grad: first ?? grads.find((g) => g !== undefined)!,
  };
  let thunks = rule(context);
  const send = (input: Value, i: number): Value => {
    const thunk = thunks[i];
    if (!thunk) throw new GraphError(`${node.operator} has no gradient with respect to its input ${i}`);
    const known = input.graph.nodes.length;
    const value = sumTo(thunk(), input.shape);
    const own = input.graph.nodes.length > known && input.graph.nodes.at(-1) === value.producer;
    const parts = pending.get(input);
    if (parts) parts.push({ value, own });
    else pending.set(input, [{ value, own }]);
    return value;
  };
  // What a small parameter's gradient is made of would wait in memory until the end: the rest of the way back is made to depend on it instead.
  const parameter = inputs.findIndex((_, i) => isSmallParameter(node, i, walk));
  if (parameter >= 0) {
    const made = send(node.inputs[parameter]!, parameter);
    const later = afterGradient(inputs[parameter]!, made);
    thunks = rule({ ...context, inputs: inputs.map((v, i) => (i === parameter ? later : v)) });
  }
  node.inputs.forEach((input, i) => {
    if (input && path.has(input) && i !== parameter) send(input, i);
  });
}

/**
 * Whether a node's operand is a value whose gradient was asked for, in whatever precision it is used, read by this node alone, beside large activations on the way
 * back.
 */
function isSmallParameter(node: Node, index: number, { asked, path, readers }: Walk): boolean {
  const operand = node.inputs[index];
  const master = operand?.producer?.operator === 'Cast' ? operand.producer.inputs[0]! : operand;
  if (!operand || !master || !asked.has(master)) return false;
  if (readers.get(operand) !== 1 || readers.get(master) !== 1) return false;
  const others = node.inputs.filter((v, i) => v && i !== index && path.has(v));
  const beside = others.reduce((n, v) => n + v!.size, 0);
  return beside >= LARGE && beside >= 8 * operand.size;
}

/** What one consumer of a value sends back to it. */
interface Contribution {
  readonly value: Value;
  /** It was made for this value alone, so nothing else reads it. */
  readonly own: boolean;
}

/** The sum of what several consumers sent back. A matrix product takes the sum so far as its addend, which saves a pass over the result. */
function sumOf(parts: readonly Contribution[]): Value {
  const isProduct = ({ value, own }: Contribution): boolean =>
    own && value.producer?.operator === 'Gemm' && value.producer.inputs.length === 2;
  const [first, ...rest] = [...parts.filter((p) => !isProduct(p)), ...parts.filter(isProduct)];
  return rest.reduce(
    (total, part) => (isProduct(part) ? addToProduct(part.value, total) : add(total, part.value)),
    first!.value,
  );
}

/** The float values that depend on these, these included. */
function dependents(nodes: readonly Node[], sources: readonly Value[]): Set<Value> {
  const reached = new Set(sources);
  for (const node of nodes) {
    if (!node.inputs.some((v) => v && reached.has(v))) continue;
    for (const v of node.outputs) {
      if (v.dtype === 'float32' || v.dtype === 'float16') reached.add(v);
    }
  }
  return reached;
}
