import { abs, cast, less, mul, where } from '../onnx/elementwise.js';
import type { Graph, Value } from '../onnx/graph.js';
import { min } from '../onnx/reduction.js';
import { byVector, flatten, groups, unflatten } from './optimizer.js';

/** The factor that a loss is multiplied by before it is differentiated, so that small gradients do not vanish in half precision, and what decides the next one. */
export interface LossScale {
  readonly scale: number;
  /** Steps in a row, since the scale last changed, whose gradients were finite. */
  readonly cleanSteps: number;
}

/** Where the scale starts. The constants are those of PyTorch's torch.amp.GradScaler. */
export const initialLossScale: LossScale = { scale: 2 ** 16, cleanSteps: 0 };
const GROWTH_FACTOR = 2;
const BACKOFF_FACTOR = 0.5;
const GROWTH_INTERVAL = 2000;

/** The scale after a step, by GradScaler's rule: half of it when the gradients overflowed, twice after 2000 steps in a row when they did not. */
export function nextLossScale({ scale, cleanSteps }: LossScale, overflowed: boolean): LossScale {
  if (overflowed) return { scale: Math.fround(scale * BACKOFF_FACTOR), cleanSteps: 0 };
  if (cleanSteps + 1 < GROWTH_INTERVAL) return { scale, cleanSteps: cleanSteps + 1 };
  const grown = Math.fround(scale * GROWTH_FACTOR);
  return { scale: Number.isFinite(grown) ? grown : scale, cleanSteps: 0 };
}

/** Whether every element of every tensor is a finite number: a bool scalar. */
export function allFinite(tensors: readonly Value[]): Value {
  const finite = groups(tensors.map((t) => t.shape)).map((members) => {
    const values = flatten(members.map((i) => tensors[i]!));
    return min(cast(less(abs(values), Number.POSITIVE_INFINITY), 'float32'));
  });
  return less(
    0.5,
    finite.reduce((a, b) => mul(a, b)),
  );
}

/**
 * Declares the updates that `build` declares so that the state keeps its values, to the bit, where an element of the gradients is not a finite number.
 *
 * @returns whether all are finite, a bool scalar
 */
export function updateWhereFinite(graph: Graph, gradients: readonly Value[], build: () => void): Value {
  const finite = allFinite(gradients);
  const before = new Set(graph.updates.keys());
  build();
  const updated = graph.inputs.filter(({ name }) => graph.updates.has(name) && !before.has(name));
  const nexts = updated.map(({ name }) => graph.updates.get(name)!);
  for (const members of byVector(nexts)) {
    const inputs = members.map((i) => updated[i]!);
    const own = members.map((i) => nexts[i]!);
    const chosen =
      members.length === 1
        ? [where(finite, own[0]!, inputs[0]!)]
        : unflatten(
            where(finite, flatten(own), flatten(inputs)),
            inputs.map(({ shape }) => shape),
          );
    inputs.forEach(({ name }, i) => {
      graph.updates.set(name, chosen[i]!);
    });
  }
  return finite;
}
