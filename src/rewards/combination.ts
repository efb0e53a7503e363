import { add, div, exp, mul, neg } from '../onnx/elementwise.js';
import type { Value } from '../onnx/graph.js';

/**
 * How several rewards become one. `sum`: sum_k w_k r_k. `harmonic`: the weighted harmonic mean of exp(r_k), sum_k w_k / sum_k (w_k exp(-r_k)), which the worst of
 * the rewards dominates; after the lambda-harmonic reward of RPO (arXiv 2407.12164), with exp so that rewards that are minus a distance become scores in (0, 1].
 */
export type Combination = 'sum' | 'harmonic';

/** One reward of some rows, [I]. */
export interface Term {
  readonly value: Value;
  readonly weight: number;
  /** [I]; none without it. */
  readonly discount?: Value;
  /** 1 on the rows that it says something of and 0 on the others, where it is left out, [I]; all rows without it. */
  readonly counts?: Value;
}

/**
 * Combines rewards of the same rows to [I].
 *
 * Harmonic weights may be discounted too: then the mean under the discounted weights is itself discounted by their sum over the sum of the plain ones. On each row some
 * reward has to count.
 */
export function combine(combination: Combination, terms: readonly Term[]): Value {
  const total = (values: readonly Value[]): Value => values.reduce((a, b) => add(a, b));
  const factors = terms.map(({ discount, counts }) =>
    discount && counts ? mul(discount, counts) : (discount ?? counts),
  );
  const weighted = (x: Value, t: number): Value => {
    const factor = factors[t];
    return mul(factor ? mul(x, factor) : x, terms[t]!.weight);
  };
  if (combination === 'sum') return total(terms.map(({ value }, t) => weighted(value, t)));
  const inverse = total(terms.map(({ value }, t) => weighted(exp(neg(value)), t)));
  const plain = weightsOf(terms, ({ counts }) => counts);
  if (terms.every(({ discount }) => discount === undefined)) return div(plain, inverse);
  const discounted = weightsOf(terms, (_, t) => factors[t]);
  return div(div(mul(discounted, discounted), plain), inverse);
}

/** The sum of all weights, each times its factor on the rows; a number where no term has one. */
function weightsOf(
  terms: readonly Term[],
  factorOf: (term: Term, index: number) => Value | undefined,
): Value | number {
  let fixed = 0;
  let varying: Value | undefined;
  for (const [t, term] of terms.entries()) {
    const factor = factorOf(term, t);
    if (!factor) {
      fixed += term.weight;
      continue;
    }
    const part = mul(factor, term.weight);
    varying = varying ? add(varying, part) : part;
  }
  if (!varying) return fixed;
  return fixed > 0 ? add(varying, fixed) : varying;
}
