import { add, div, exp, mul, neg, square } from '../onnx/elementwise.js';
import type { Value } from '../onnx/graph.js';

/**
 * How several rewards become one. `sum`: sum_k w_k r_k. `harmonic`: the weighted harmonic mean of exp(r_k), sum_k w_k / sum_k (w_k exp(-r_k)), which the worst of
 * the rewards dominates; after the lambda-harmonic reward of RPO (arXiv 2407.12164), with exp so that rewards that are minus a distance become scores in (0, 1].
 */
export type Combination = 'sum' | 'harmonic';

/**
 * Combines rewards of the same rows, [I] each, with weights that are numbers or, where they are discounted, [I] values.
 *
 * Harmonic weights may be discounted too: then the mean under the discounted weights is itself discounted by their sum over the sum of the plain ones.
 */
export function combine(
  combination: Combination,
  terms: readonly { readonly value: Value; readonly weight: number; readonly discount?: Value }[],
): Value {
  const weighted = (x: Value, { weight, discount }: (typeof terms)[number]): Value =>
    discount ? mul(mul(x, discount), weight) : mul(x, weight);
  const total = (values: readonly Value[]): Value => values.reduce((a, b) => add(a, b));
  if (combination === 'sum') return total(terms.map((t) => weighted(t.value, t)));
  const inverse = total(terms.map((t) => weighted(exp(neg(t.value)), t)));
  const plain = terms.reduce((sum, t) => sum + t.weight, 0);
  const discounts = terms.flatMap((t) => (t.discount ? [mul(t.discount, t.weight)] : []));
  if (discounts.length === 0) return div(plain, inverse);
  const fixed = terms.reduce((sum, t) => sum + (t.discount ? 0 : t.weight), 0);
  const discounted = add(total(discounts), fixed);
  return div(mul(square(discounted), 1 / plain), inverse);
}
