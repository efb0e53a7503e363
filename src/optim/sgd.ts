import { mul, sub } from '../onnx/elementwise.js';
import { type Optimizer, scalarFeed } from './optimizer.js';

/** Plain stochastic gradient descent. `name` prefixes the fed learning rate. */
export function sgd({ name = 'sgd' }: { readonly name?: string } = {}): Optimizer {
  return {
    init: () => new Map(),
    update(graph, parameters, gradients) {
      const learningRate = graph.input(`${name}.learning_rate`, 'float32', []);
      parameters.forEach((p, i) => {
        graph.update(p, sub(p, mul(gradients[i]!, learningRate)));
      });
    },
    feeds: (_step, learningRate) => ({ [`${name}.learning_rate`]: scalarFeed(learningRate) }),
  };
}
