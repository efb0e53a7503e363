import type { Value } from '../graph.js';
import { matmul } from '../linalg.js';
import { reshape, transpose } from '../movement.js';
import { sum } from '../reduction.js';
import { ImportFault } from './node-context.js';

/** Einstein's sum of one or two operands, such as "bhqd,bhkd->bhqk". Letters may not repeat within an operand; there is no ellipsis. */
export function einsum(equation: string, operands: readonly Value[]): Value {
  const [, left, right] = /^([a-zA-Z,]+)(?:->([a-zA-Z]*))?$/.exec(equation.replace(/\s/g, '')) ?? [];
  const terms = left?.split(',').map((t) => [...t]) ?? [];
  const plain = terms.every((t) => new Set(t).size === t.length);
  if (!left || !plain || terms.length !== operands.length || operands.length > 2) {
    throw new ImportFault(
      `equation is ${JSON.stringify(equation)}; supported: one or two operands of distinct letters`,
    );
  }
  const letters = terms.flat();
  const output =
    right !== undefined
      ? [...right]
      : letters.filter((l) => letters.indexOf(l) === letters.lastIndexOf(l)).sort();
  // What one operand has alone and nobody asks for is summed at once.
  const reduced = operands.map((x, i) => {
    const others = terms.filter((_, j) => j !== i).flat();
    const gone = terms[i]!.flatMap((l, axis) => (output.includes(l) || others.includes(l) ? [] : [axis]));
    return {
      x: gone.length > 0 ? sum(x, gone) : x,
      letters: terms[i]!.filter((_, axis) => !gone.includes(axis)),
    };
  });
  const [a, b] = reduced;
  if (!b) return arranged(a!.x, a!.letters, output);
  const extent = new Map(
    reduced.flatMap(({ x, letters: own }) => own.map((l, i) => [l, x.shape[i]!] as const)),
  );
  const shared = a!.letters.filter((l) => b.letters.includes(l));
  const batch = shared.filter((l) => output.includes(l));
  const contracted = shared.filter((l) => !output.includes(l));
  const [rows, columns] = [a!, b].map(({ letters: own }) => own.filter((l) => !shared.includes(l)));
  const size = (own: readonly string[]): number => own.reduce((n, l) => n * extent.get(l)!, 1);
  const grouped = (x: Value, own: readonly string[], order: readonly (readonly string[])[]): Value =>
    reshape(arranged(x, own, order.flat()), order.map(size));
  const product = matmul(
    grouped(a!.x, a!.letters, [batch, rows!, contracted]),
    grouped(b.x, b.letters, [batch, contracted, columns!]),
  );
  const order = [...batch, ...rows!, ...columns!];
  return arranged(
    reshape(
      product,
      order.map((l) => extent.get(l)!),
    ),
    order,
    output,
  );
}

function arranged(x: Value, letters: readonly string[], order: readonly string[]): Value {
  return transpose(
    x,
    order.map((l) => letters.indexOf(l)),
  );
}
