import {
  add,
  cast,
  cos,
  div,
  equal,
  erf,
  exp,
  greater,
  less,
  log,
  mul,
  neg,
  not,
  or,
  pow,
  sigmoid,
  sign,
  sin,
  square,
  sub,
  where,
} from '../onnx/elementwise.js';
import type { Value } from '../onnx/graph.js';
import { floatAttribute, operand, type Rule, type RuleContext } from './rule.js';

const INV_SQRT_2PI = 1 / Math.sqrt(2 * Math.PI);

/** A rule for y = f(x) from dy/dx as a function of (x, y), times the incoming gradient. */
const pointwise =
  (derivative: (x: Value, y: Value) => Value): Rule =>
  (c) => [() => mul(c.grad, derivative(operand(c, 0), c.outputs[0]!))];

const masked = (c: RuleContext, mask: Value): Value => where(mask, c.grad, 0);

/** The gradient of a maximum or minimum of operands goes to the one that won, half to each where they are equal, as in PyTorch. */
const extremum =
  (wins: (a: Value, b: Value) => Value): Rule =>
  (c) => {
    const [a, b] = [operand(c, 0), operand(c, 1)];
    const share = (x: Value, other: Value): Value =>
      add(masked(c, wins(x, other)), where(equal(x, other), mul(c.grad, 0.5), 0));
    return [() => share(a, b), () => share(b, a)];
  };

export const elementwiseRules = {
  Neg: (c) => [() => neg(c.grad)],
  Abs: pointwise((x) => sign(x)),
  Sign: 'not differentiable',
  Exp: pointwise((_, y) => y),
  Log: (c) => [() => div(c.grad, operand(c, 0))],
  Sqrt: (c) => [() => div(mul(c.grad, 0.5), c.outputs[0]!)],
  Reciprocal: (c) => [() => neg(mul(c.grad, square(c.outputs[0]!)))],
  Sigmoid: pointwise((_, y) => sub(y, square(y))),
  Tanh: pointwise((_, y) => sub(1, square(y))),
  Erf: pointwise((x) => mul(exp(neg(square(x))), 2 / Math.sqrt(Math.PI))),
  Sin: pointwise((x) => cos(x)),
  Cos: pointwise((x) => neg(sin(x))),
  Relu: (c) => [() => masked(c, greater(c.outputs[0]!, 0))],
  LeakyRelu: (c) => [
    () => where(greater(operand(c, 0), 0), c.grad, mul(c.grad, floatAttribute(c.attributes, 'alpha'))),
  ],
  Clip: (c) => {
    const [x, low, high] = [operand(c, 0), operand(c, 1), operand(c, 2)];
    return [() => masked(c, not(or(less(x, low), greater(x, high))))];
  },
  // d/dx x Phi(x) = Phi(x) + x phi(x)
  Gelu: pointwise((x) =>
    add(mul(add(erf(mul(x, Math.SQRT1_2)), 1), 0.5), mul(x, mul(exp(mul(square(x), -0.5)), INV_SQRT_2PI))),
  ),
  // y = x s with s = sigmoid(a x): dy/dx = s + a y (1 - s)
  QuickGelu: (c) => {
    const alpha = floatAttribute(c.attributes, 'alpha');
    return [
      () => {
        const [x, y] = [operand(c, 0), c.outputs[0]!];
        const s = sigmoid(alpha === 1 ? x : mul(x, alpha));
        const rest = sub(y, mul(y, s));
        return mul(c.grad, add(s, alpha === 1 ? rest : mul(rest, alpha)));
      },
    ];
  },
  Cast: (c) => [() => cast(c.grad, operand(c, 0).dtype)],
  Not: 'not differentiable',
  Add: (c) => [() => c.grad, () => c.grad],
  Sub: (c) => [() => c.grad, () => neg(c.grad)],
  Mul: (c) => [() => mul(c.grad, operand(c, 1)), () => mul(c.grad, operand(c, 0))],
  Div: (c) => [() => div(c.grad, operand(c, 1)), () => neg(div(mul(c.grad, c.outputs[0]!), operand(c, 1)))],
  Pow: (c) => {
    const [x, e] = [operand(c, 0), operand(c, 1)];
    return [() => mul(c.grad, mul(e, pow(x, sub(e, 1)))), () => mul(c.grad, mul(c.outputs[0]!, log(x)))];
  },
  Max: extremum(greater),
  Min: extremum(less),
  Where: (c) => {
    const condition = operand(c, 0);
    return [undefined, () => where(condition, c.grad, 0), () => where(condition, 0, c.grad)];
  },
  Equal: 'not differentiable',
  Less: 'not differentiable',
  Greater: 'not differentiable',
  And: 'not differentiable',
  Or: 'not differentiable',
} satisfies Record<string, Rule | 'not differentiable'>;
