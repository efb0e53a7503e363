import assert from 'node:assert/strict';
import { test } from 'node:test';
import { gradients } from '../../src/autodiff/gradient.js';
import { recompute } from '../../src/autodiff/recompute.js';
import { fusedAttention } from '../../src/onnx/attention.js';
import { exp, mul } from '../../src/onnx/elementwise.js';
import { Graph } from '../../src/onnx/graph.js';
import { sum } from '../../src/onnx/reduction.js';

test('a region is computed again in the backward pass, but for attention over many keys, whose result is kept with what follows from it alone', () => {
  const counts = (keys: number): Record<string, number> => {
    const graph = new Graph('region');
    const x = graph.input('x', 'float32', [1, 1024, 8]);
    const context = graph.input('context', 'float32', [1, keys, 8]);
    const y = recompute([x, context], (a, b) => {
      const q = exp(a);
      const mixed = fusedAttention(q, b, b, 2);
      return mul(exp(mixed), q);
    });
    graph.output('dx', gradients(sum(mul(y, y)), [x])[0]!);
    const operators = graph.liveNodes().map(({ operator }) => operator);
    const count = (name: string): number => operators.filter((o) => o === name).length;
    return { MultiHeadAttention: count('MultiHeadAttention'), Exp: count('Exp') };
  };
  assert.deepEqual(counts(77), { MultiHeadAttention: 2, Exp: 4 });
  assert.deepEqual(counts(1024), { MultiHeadAttention: 1, Exp: 3 });
});
