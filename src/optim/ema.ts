import { add, mul, sub } from '../onnx/elementwise.js';
import type { Graph, Value } from '../onnx/graph.js';

/** The state name of a parameter's moving average. */
export const emaName = (parameter: string): string => `ema.${parameter}`;

/**
 * Keeps an exponential moving average of the parameters beside them: average += (1 - decay) (next - average), with the decay fed as the scalar `ema.decay`.
 * Call it after the optimiser's update, whose new values it follows.
 *
 * @param known averages, by state name, that the graph reads already, as a teacher does in self-distillation
 */
export function ema(
  graph: Graph,
  parameters: readonly Value[],
  known: ReadonlyMap<string, Value> = new Map(),
): void {
  const decay = graph.input('ema.decay', 'float32', []);
  const rate = sub(1, decay);
  for (const p of parameters) {
    const average = known.get(emaName(p.name)) ?? graph.input(emaName(p.name), 'float32', p.shape);
    const next = graph.updates.get(p.name) ?? p;
    graph.update(average, add(average, mul(sub(next, average), rate)));
  }
}

/** The decay at a step (from 1), as diffusers' EMAModel: 0 at first, then (1 + n) / (10 + n) after n = step - 1 updates, at most `maximum`. */
export function emaDecay(step: number, maximum: number): number {
  return step <= 1 ? 0 : Math.min(maximum, step / (9 + step));
}
