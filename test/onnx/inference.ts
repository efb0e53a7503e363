import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Graph, GraphError, type Value } from '../../src/onnx/graph.js';
import type { DType } from '../../src/tensor/dtype.js';
import type { Shape } from '../../src/tensor/tensor.js';

/** Makes an input of a fresh graph: float32 unless said otherwise. */
export type Make = (shape: Shape, dtype?: DType) => Value;

const maker = (graph: Graph): Make => {
  let count = 0;
  return (shape, dtype = 'float32') => graph.input(`x${count++}`, dtype, shape);
};

const told = (v: Value): string => `${v.dtype}[${v.shape.join(', ')}]`;

/** Each row: what is built, and the type and shape that the graph has to work out for it. */
export function inferenceTests(rows: Readonly<Record<string, [(x: Make) => Value, string]>>): void {
  for (const [name, [build, expected]] of Object.entries(rows)) {
    test(name, () => {
      assert.equal(told(build(maker(new Graph()))), expected);
    });
  }
}

/** Each row: what cannot be built, and what the GraphError has to say. */
export function refusalTests(rows: Readonly<Record<string, [(x: Make) => unknown, string]>>): void {
  for (const [name, [build, message]] of Object.entries(rows)) {
    test(`refused: ${name}`, () => {
      assert.throws(
        () => build(maker(new Graph())),
        (error) => {
          assert.ok(error instanceof GraphError, `not a GraphError: ${error}`);
          assert.equal(error.message, message);
          return true;
        },
      );
    });
  }
}
