import { add, div, mul, sqrt, square, sub } from '../onnx/elementwise.js';
import { flatten, groups, type Optimizer, scalarFeed, unflatten, zeroState } from './optimizer.js';

export interface AdamWOptions {
  readonly beta1?: number;
  readonly beta2?: number;
  readonly epsilon?: number;
  readonly weightDecay?: number;
  /** Prefix of the names of state and fed scalars; two optimisers in one graph need two. */
  readonly name?: string;
}

/** Adam with decoupled weight decay (Loshchilov and Hutter, ICLR 2019), with PyTorch's defaults and order of operations. */
export function adamw(options: AdamWOptions = {}): Optimizer {
  const { beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8, weightDecay = 1e-2, name = 'adamw' } = options;
  return {
    init: (parameters) => zeroState(parameters, [`${name}.exp_avg`, `${name}.exp_avg_sq`]),
    update(graph, parameters, gradients, firstGroup = 0) {
      const stepSize = graph.input(`${name}.step_size`, 'float32', []);
      const decay = graph.input(`${name}.decay`, 'float32', []);
      const denominatorScale = graph.input(`${name}.denominator_scale`, 'float32', []);
      groups(parameters.map((p) => p.shape)).forEach((members, n) => {
        const g = firstGroup + n;
        const values = members.map((i) => parameters[i]!);
        const gradient = flatten(members.map((i) => gradients[i]!));
        const expAvg = graph.input(`${name}.exp_avg.${g}`, 'float32', gradient.shape);
        const expAvgSq = graph.input(`${name}.exp_avg_sq.${g}`, 'float32', gradient.shape);
        const first = add(mul(expAvg, beta1), mul(gradient, 1 - beta1));
        const second = add(mul(expAvgSq, beta2), mul(square(gradient), 1 - beta2));
        const denominator = add(mul(sqrt(second), denominatorScale), epsilon);
        const next = sub(mul(flatten(values), decay), mul(div(first, denominator), stepSize));
        graph.update(expAvg, first);
        graph.update(expAvgSq, second);
        unflatten(
          next,
          values.map((v) => v.shape),
        ).forEach((v, i) => {
          graph.update(values[i]!, v);
        });
      });
    },
    // The bias corrections are worked out in double precision: 1 - beta2^step loses digits in single.
    feeds: (step, learningRate) => ({
      [`${name}.step_size`]: scalarFeed(learningRate / (1 - beta1 ** step)),
      [`${name}.decay`]: scalarFeed(1 - learningRate * weightDecay),
      [`${name}.denominator_scale`]: scalarFeed(1 / Math.sqrt(1 - beta2 ** step)),
    }),
  };
}
