import { mul, square, sub } from '../onnx/elementwise.js';
import type { Value } from '../onnx/graph.js';
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
  // With xhat = (x - mean) rstd and h = g scale: dx = rstd (h - mean(h) - xhat mean(h xhat)). It is written with x - mean, since
  // products with x itself lose digits where the mean is far from 0.
  LayerNormalization: (c) => {
    const [x, scale] = [operand(c, 0), operand(c, 1)];
    const [mu, rstd] = [c.outputs[1]!, c.outputs[2]!];
    const rows = (v: Value): Value => reshape(v, [-1, v.shape.at(-1)!]);
    const rowMean = (v: Value): Value => mean(v, [-1], { keepDims: true });
    return [
      () => {
        // A scale of ones is how a norm without one is written.
        const h = isOnes(scale) ? c.grad : mul(c.grad, scale);
        const centred = sub(x, mu);
        const along = mul(rowMean(mul(h, centred)), square(rstd)); // rstd mean(h xhat)
        return mul(sub(sub(h, mul(centred, along)), rowMean(h)), rstd);
      },
      () => sum(rows(mul(c.grad, mul(sub(x, mu), rstd))), [0]),
      () => sum(rows(c.grad), [0]),
    ];
  },
} satisfies Record<string, Rule>;

function isOnes({ origin }: Value): boolean {
  return origin.kind === 'constant' && (origin.tensor.data as Float32Array).every((v) => v === 1);
}
