import { mul } from '../onnx/elementwise.js';
import type { Value } from '../onnx/graph.js';
import { gemm, matmul, transposedMatmul } from '../onnx/linalg.js';
import { matrixTranspose, reshape } from '../onnx/movement.js';
import { floatAttribute, intAttribute, operand, type RuleEntry } from './rule.js';

export const linalgRules = {
  FusedMatMul: 'not differentiable',
  MatMul: (c) => {
    const [a, b] = [operand(c, 0), operand(c, 1)];
    return [
      () => matmul(c.grad, matrixTranspose(b)),
      () => {
        // A matrix that was shared by the whole batch: one tall product instead of a batch of small ones and a sum.
        if (b.rank === 2 && a.rank > 2) {
          const [k, n] = [a.shape.at(-1)!, c.grad.shape.at(-1)!];
          return gemm(reshape(a, [-1, k]), reshape(c.grad, [-1, n]), { transA: true });
        }
        return a.graph.isFrozen(a) ? transposedMatmul(a, c.grad) : matmul(matrixTranspose(a), c.grad);
      },
    ];
  },
  Gemm: (c) => {
    const [a, b] = [operand(c, 0), operand(c, 1)];
    const transA = intAttribute(c.attributes, 'transA') === 1;
    const transB = intAttribute(c.attributes, 'transB') === 1;
    const alpha = floatAttribute(c.attributes, 'alpha');
    const beta = floatAttribute(c.attributes, 'beta');
    return [
      () =>
        transA
          ? gemm(b, c.grad, { transA: transB, transB: true, alpha })
          : gemm(c.grad, b, { transB: !transB, alpha }),
      () =>
        transB
          ? gemm(c.grad, a, { transA: true, transB: transA, alpha })
          : gemm(a, c.grad, { transA: !transA, alpha }),
      () => (beta === 1 ? c.grad : mul(c.grad, beta)),
    ];
  },
} satisfies Record<string, RuleEntry>;

/** A Gemm without an addend, and a value of its shape: their sum as one Gemm, which takes the place of the first. */
export function addToProduct(product: Value, addend: Value): Value {
  const { operator, inputs, attributes } = product.producer!;
  return product.graph.add(operator, [...inputs, addend], [product], attributes)[0]!;
}
