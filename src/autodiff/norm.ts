import { mul, sub } from '../onnx/elementwise.js';
import { reshape } from '../onnx/movement.js';
import { mean, sum } from '../onnx/reduction.js';
import { operand, type Rule } from './rule.js';

export const normRules = {
  // dx = y (g - <g, y>)
  Softmax: (c) => [
    () => {
      const y = c.outputs[0]!;
      const weighted = mul(c.grad, y);
      return sub(weighted, mul(y, sum(weighted, [-1], { keepDims: true })));
    },
  ],
  // With xhat = (x - mean) rstd and h = g scale: dx = rstd (h - mean(h) - xhat mean(h xhat))
  LayerNormalization: (c) => {
    const [x, scale] = [operand(c, 0), operand(c, 1)];
    const [, mu, rstd] = c.outputs;
    const normalized = () => mul(sub(x, mu!), rstd!);
    const rows = (v: typeof x) => reshape(v, [-1, v.shape.at(-1)!]);
    return [
      () => {
        const xhat = normalized();
        // A scale of ones is how a norm without one is written.
        const h = isOnes(scale) ? c.grad : mul(c.grad, scale);
        const along = mul(xhat, mean(mul(h, xhat), [-1], { keepDims: true }));
        return mul(sub(sub(h, mean(h, [-1], { keepDims: true })), along), rstd!);
      },
      () => sum(rows(mul(c.grad, normalized())), [0]),
      () => sum(rows(c.grad), [0]),
    ];
  },
} satisfies Record<string, Rule>;

function isOnes(value: { origin: ReturnType<typeof operand>['origin'] }): boolean {
  const { origin } = value;
  return origin.kind === 'constant' && (origin.tensor.data as Float32Array).every((v) => v === 1);
}
