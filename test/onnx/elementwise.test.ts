import assert from 'node:assert/strict';
import { suite, test } from 'node:test';
import {
  add,
  and,
  broadcastShapes,
  cast,
  clip,
  div,
  equal,
  exp,
  gelu,
  greater,
  leakyRelu,
  less,
  maximum,
  mul,
  not,
  pow,
  quickGelu,
  scalar,
  silu,
  sub,
  where,
} from '../../src/onnx/elementwise.js';
import { Graph } from '../../src/onnx/graph.js';
import { inferenceTests, refusalTests } from './inference.js';

suite('elementwise: types and shapes', () => {
  inferenceTests({
    'equal shapes': [(x) => add(x([2, 3]), x([2, 3])), 'float32[2, 3]'],
    'extents of 1 stretch on both sides': [(x) => mul(x([2, 1, 4]), x([3, 1])), 'float32[2, 3, 4]'],
    'a lower rank is filled up in front': [(x) => sub(x([5]), x([2, 3, 5])), 'float32[2, 3, 5]'],
    'a number takes the other operand’s type': [(x) => maximum(x([2], 'int64'), 3), 'int64[2]'],
    'a number may come first': [(x) => div(1, x([2, 2])), 'float32[2, 2]'],
    'a scalar against an empty shape': [(x) => pow(x([]), 2), 'float32[]'],
    'comparison gives bool': [(x) => less(x([2, 1]), x([3])), 'bool[2, 3]'],
    'comparison of integers': [(x) => equal(x([4], 'int64'), 0), 'bool[4]'],
    logic: [(x) => and(not(greater(x([2]), 0)), less(x([2]), 1)), 'bool[2]'],
    'unary keeps type and shape': [(x) => exp(x([2, 3], 'float16')), 'float16[2, 3]'],
    'where broadcasts all three': [(x) => where(x([3, 1], 'bool'), x([2, 1, 1]), x([4])), 'float32[2, 3, 4]'],
    'where with a number': [(x) => where(x([3], 'bool'), 0, x([3])), 'float32[3]'],
    'clip, activations': [(x) => clip(leakyRelu(silu(quickGelu(gelu(x([2, 2]))))), -1, 1), 'float32[2, 2]'],
    'cast changes the type': [(x) => cast(x([2], 'int64'), 'float32'), 'float32[2]'],
  });

  refusalTests({
    'shapes that do not broadcast': [
      (x) => add(x([2, 3]), x([2, 4])),
      'shapes [2, 3] and [2, 4] do not broadcast',
    ],
    'operands of two types': [
      (x) => mul(x([2]), x([2], 'int64')),
      'Mul: %x0: float32[2] and %x1: int64[2] differ in type',
    ],
    'a condition that is not bool': [
      (x) => where(x([2]), x([2]), x([2])),
      'where takes a bool and two values of one type, got %x0: float32[2], %x1: float32[2], %x2: float32[2]',
    ],
    'branches of two types': [
      (x) => where(x([2], 'bool'), x([2]), x([2], 'int64')),
      'where takes a bool and two values of one type, got %x0: bool[2], %x1: float32[2], %x2: int64[2]',
    ],
    'two numbers': [() => add(1, 2), 'one operand must be a value'],
    'a bfloat16 scalar': [(x) => add(x([2], 'bfloat16'), 1), 'there are no bfloat16 scalars'],
  });
});

test('broadcasting of many shapes', () => {
  assert.deepEqual(broadcastShapes([], [1]), [1]);
  assert.deepEqual(broadcastShapes([2, 1], [1, 3], [4, 1, 1]), [4, 2, 3]);
  assert.deepEqual(broadcastShapes([0], [1]), [0]);
});

test('a cast to the type that is there is the value itself', () => {
  const x = new Graph().input('x', 'float32', [2]);
  assert.equal(cast(x, 'float32'), x);
});

test('scalars of every type hold the number', () => {
  assert.deepEqual([...scalar('float32', 0.5).data], [0.5]);
  assert.deepEqual([...scalar('float16', 1).data], [0x3c00]);
  assert.deepEqual([...scalar('int64', -3).data], [-3n]);
  assert.deepEqual([...scalar('int32', 7).data], [7]);
  assert.deepEqual([...scalar('uint8', 255).data], [255]);
  assert.deepEqual([...scalar('bool', 1).data], [1]);
});

test('numbers of equal value share one constant, 0 and -0 do not', () => {
  const graph = new Graph();
  const x = graph.input('x', 'float32', [2]);
  const constantOf = (v: ReturnType<typeof add>) => v.producer!.inputs[1];
  assert.equal(constantOf(add(x, 2)), constantOf(mul(x, 2)));
  assert.notEqual(constantOf(add(x, 0)), constantOf(add(x, -0)));
});
