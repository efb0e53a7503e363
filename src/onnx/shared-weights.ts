import type { Graph, Value } from './graph.js';

/** Copies of 1 MiB in all. */
const LARGE_COPIES = 1 << 18;

/**
 * Asks the engine to read the weights as they are stored that several matrix products read, as the way forwards and the way back do: each product would keep a packed copy of
 * its own, which saves little time where a weight meets many rows.
 */
export function keepSharedWeights(graph: Graph): void {
  const readers = new Map<Value, number>();
  for (const { operator, inputs } of graph.liveNodes()) {
    const weight = inputs[1];
    if (operator === 'Gemm' && weight?.origin.kind === 'external')
      readers.set(weight, (readers.get(weight) ?? 0) + 1);
  }
  for (const [weight, count] of readers)
    if ((count - 1) * weight.size >= LARGE_COPIES) graph.keepAsStored(weight);
}
