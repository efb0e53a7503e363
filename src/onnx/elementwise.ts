import type { DType } from '../tensor/dtype.js';
import { storageConstructors } from '../tensor/dtype.js';
import { halfBits } from '../tensor/half.js';
import { type Shape, type Tensor, tensor } from '../tensor/tensor.js';
import { type Attributes, GraphError, type Value } from './graph.js';
import type { Operator } from './operators.js';

/** A value, or a number that becomes a scalar constant of the other operand's type. */
export type Operand = Value | number;

/** The shape of a NumPy-style broadcast. Throws a GraphError where two extents differ and neither is 1. */
export function broadcastShapes(...shapes: readonly Shape[]): Shape {
  const rank = Math.max(...shapes.map((s) => s.length));
  return Array.from({ length: rank }, (_, axis) => {
    let extent = 1;
    for (const shape of shapes) {
      const d = shape[axis - rank + shape.length] ?? 1;
      if (d === 1 || d === extent) continue;
      if (extent !== 1) {
        throw new GraphError(
          `shapes ${shapes.map((s) => `[${s.join(', ')}]`).join(' and ')} do not broadcast`,
        );
      }
      extent = d;
    }
    return extent;
  });
}

/** A scalar tensor of any element type; halves are rounded to nearest even. */
export function scalar(dtype: DType, value: number): Tensor {
  if (dtype === 'int64') return tensor(dtype, [], BigInt64Array.of(BigInt(value)));
  if (dtype === 'bfloat16') throw new GraphError('there are no bfloat16 scalars');
  const storage = new storageConstructors[dtype](new ArrayBuffer(8), 0, 1);
  storage[0] = dtype === 'float16' ? halfBits(value) : value;
  return tensor(dtype, [], storage);
}

function lift(a: Operand, b: Operand): [Value, Value] {
  if (typeof a !== 'number') return [a, typeof b === 'number' ? a.graph.constant(scalar(a.dtype, b)) : b];
  if (typeof b === 'number') throw new GraphError('one operand must be a value');
  return [b.graph.constant(scalar(b.dtype, a)), b];
}

function unary(operator: Operator, x: Value, attributes: Attributes = {}): Value {
  return x.graph.add(operator, [x], [x], attributes)[0]!;
}

function binary(operator: Operator, left: Operand, right: Operand, result?: DType): Value {
  const [a, b] = lift(left, right);
  if (a.dtype !== b.dtype) throw new GraphError(`${operator}: ${a} and ${b} differ in type`);
  const shape = broadcastShapes(a.shape, b.shape);
  return a.graph.add(operator, [a, b], [{ dtype: result ?? a.dtype, shape }])[0]!;
}

export const add = (a: Operand, b: Operand): Value => binary('Add', a, b);
export const sub = (a: Operand, b: Operand): Value => binary('Sub', a, b);
export const mul = (a: Operand, b: Operand): Value => binary('Mul', a, b);
export const div = (a: Operand, b: Operand): Value => binary('Div', a, b);
/** a to the power b; the gradient needs a > 0 where b varies. */
export const pow = (a: Operand, b: Operand): Value => binary('Pow', a, b);
export const maximum = (a: Operand, b: Operand): Value => binary('Max', a, b);
export const minimum = (a: Operand, b: Operand): Value => binary('Min', a, b);
export const equal = (a: Operand, b: Operand): Value => binary('Equal', a, b, 'bool');
export const less = (a: Operand, b: Operand): Value => binary('Less', a, b, 'bool');
export const greater = (a: Operand, b: Operand): Value => binary('Greater', a, b, 'bool');
export const and = (a: Value, b: Value): Value => binary('And', a, b);
export const or = (a: Value, b: Value): Value => binary('Or', a, b);

export const neg = (x: Value): Value => unary('Neg', x);
export const abs = (x: Value): Value => unary('Abs', x);
export const sign = (x: Value): Value => unary('Sign', x);
export const exp = (x: Value): Value => unary('Exp', x);
export const log = (x: Value): Value => unary('Log', x);
export const sqrt = (x: Value): Value => unary('Sqrt', x);
export const reciprocal = (x: Value): Value => unary('Reciprocal', x);
export const sigmoid = (x: Value): Value => unary('Sigmoid', x);
export const tanh = (x: Value): Value => unary('Tanh', x);
export const erf = (x: Value): Value => unary('Erf', x);
export const sin = (x: Value): Value => unary('Sin', x);
export const cos = (x: Value): Value => unary('Cos', x);
export const relu = (x: Value): Value => unary('Relu', x);
export const not = (x: Value): Value => unary('Not', x);
export const square = (x: Value): Value => mul(x, x);
export const leakyRelu = (x: Value, slope = 0.01): Value =>
  unary('LeakyRelu', x, { alpha: { float: slope } });
/** x * Phi(x) with the exact normal distribution function, as PyTorch's default GELU. */
export const gelu = (x: Value): Value => unary('Gelu', x, { approximate: { string: 'none' } });
/** x * sigmoid(1.702 x), the activation of OpenAI's CLIP. */
export const quickGelu = (x: Value): Value => unary('QuickGelu', x, { alpha: { float: 1.702 } });
/** x * sigmoid(x). */
export const silu = (x: Value): Value => unary('QuickGelu', x, { alpha: { float: 1 } });

/** Limits to [low, high]; the gradient is 1 inside and on the bounds, as in PyTorch. */
export function clip(x: Value, low: number, high: number): Value {
  const bounds = [low, high].map((v) => x.graph.constant(scalar(x.dtype, v)));
  return x.graph.add('Clip', [x, ...bounds], [x])[0]!;
}

/** Elementwise choice; all three operands broadcast. */
export function where(condition: Value, a: Operand, b: Operand): Value {
  const [x, y] = lift(a, b);
  if (condition.dtype !== 'bool' || x.dtype !== y.dtype) {
    throw new GraphError(`where takes a bool and two values of one type, got ${condition}, ${x}, ${y}`);
  }
  const shape = broadcastShapes(condition.shape, x.shape, y.shape);
  return x.graph.add('Where', [condition, x, y], [{ dtype: x.dtype, shape }])[0]!;
}

/** Float types whose every value float32 has too. */
const isHalf = (dtype: DType): boolean => dtype === 'float16' || dtype === 'bfloat16';

/** Numbers of `DType` in ONNX's TensorProto. */
export const onnxTypeCodes: Readonly<Record<DType, number>> = {
  float32: 1,
  uint8: 2,
  int32: 6,
  int64: 7,
  bool: 9,
  float16: 10,
  bfloat16: 16,
};

/** Changes the element type; the same value when it already has it, and the value itself that was only widened before. */
export function cast(x: Value, dtype: DType): Value {
  if (x.dtype === dtype) return x;
  const source = x.producer?.operator === 'Cast' ? x.producer.inputs[0]! : undefined;
  if (source?.dtype === dtype && isHalf(dtype) && x.dtype === 'float32') return source;
  return x.graph.add('Cast', [x], [{ dtype, shape: x.shape }], { to: { int: onnxTypeCodes[dtype] } })[0]!;
}
