import type { Node, Region, Value } from '../onnx/graph.js';
import { GraphError } from '../onnx/graph.js';
import { after } from './order.js';

/** A region and the values that enter it. */
interface RecomputedRegion extends Region {
  readonly boundary: ReadonlySet<Value>;
}

/**
 * Builds a block whose inner values are computed again in the backward pass instead of being kept through it (gradient checkpointing; Chen et al., "Training deep
 * nets with sublinear memory cost", 2016). What attention over many keys gives is kept, and what follows from that and from weights alone.
 *
 * @param inputs the activations that enter the block; they are kept. Weights that the block reads need not be named.
 * @param block builds the block from them.
 */
export function recompute<T extends Value | readonly Value[]>(
  inputs: readonly Value[],
  block: (...inputs: Value[]) => T,
): T {
  const graph = inputs[0]?.graph;
  if (!graph) throw new GraphError('recompute needs an input');
  // Named by the node that it starts at, so that the same graph always prints the same.
  const region: RecomputedRegion = { name: `recompute_${graph.nodes.length}`, boundary: new Set(inputs) };
  return graph.inRegion(region, () => block(...inputs));
}

/** From so many keys on, an element that attention gives costs as much as several that a linear layer gives: two multiplications a key. */
const MANY_KEYS = 512;

/** Whether what a node gives is kept all the same, as it costs more to have again than to hold. */
const isKept = ({ operator, inputs }: Node): boolean =>
  operator === 'MultiHeadAttention' && inputs[1]!.shape[1]! >= MANY_KEYS;

/** The recomputed copies of a region's values, made when the backward pass first reaches the region. */
export class Replay {
  readonly #copies = new Map<Value, Value>();

  /**
   * @param region one that `recompute` made
   * @param nodes its nodes, in order
   * @param gradient what has arrived at the region's end. The copies depend on it, so that the engine can neither merge them with the originals nor run them
   *   before the backward pass gets here.
   */
  constructor(region: Region, nodes: readonly Node[], gradient: Value) {
    const { boundary } = region as RecomputedRegion;
    const kept = [...boundary].filter((value) => value.dtype === gradient.dtype);
    after(kept, [gradient]).forEach((copy, i) => {
      this.#copies.set(kept[i]!, copy);
    });
    for (const node of nodes) {
      if (isKept(node) || !node.inputs.some((v) => v && this.#copies.has(v))) continue;
      const outputs = gradient.graph.add(
        node.operator,
        node.inputs.map((v) => v && this.of(v)),
        node.outputs,
        node.attributes,
      );
      node.outputs.forEach((value, i) => {
        this.#copies.set(value, outputs[i]!);
      });
    }
  }

  /** The recomputed copy of a value, or the value itself where it is kept. */
  of(value: Value): Value {
    return this.#copies.get(value) ?? value;
  }
}
