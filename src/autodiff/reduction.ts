import { cast, div, equal, mul } from '../onnx/elementwise.js';
import { expand, reshape } from '../onnx/movement.js';
import { sum } from '../onnx/reduction.js';
import { constantInts, operand, type Rule, type RuleContext } from './rule.js';

const reducedAxes = (c: RuleContext): readonly number[] => constantInts(operand(c, 1));

/** A reduced value with its lost axes put back with extent 1, so that it broadcasts against the operand. */
function keptShape(c: RuleContext): number[] {
  const axes = reducedAxes(c);
  return operand(c, 0).shape.map((d, i) => (axes.includes(i) ? 1 : d));
}

const extremum: Rule = (c) => [
  () => {
    const x = operand(c, 0);
    const shape = keptShape(c);
    const hits = cast(equal(x, reshape(c.outputs[0]!, shape)), x.dtype);
    const ties = sum(hits, reducedAxes(c), { keepDims: true });
    return mul(hits, div(reshape(c.grad, shape), ties));
  },
];

export const reductionRules = {
  ReduceSum: (c) => [() => expand(reshape(c.grad, keptShape(c)), operand(c, 0).shape)],
  ReduceMean: (c) => [
    () => {
      const x = operand(c, 0);
      return expand(mul(reshape(c.grad, keptShape(c)), c.grad.size / x.size), x.shape);
    },
  ],
  ReduceMax: extremum,
  ReduceMin: extremum,
  ArgMax: 'not differentiable',
} satisfies Record<string, Rule | 'not differentiable'>;
