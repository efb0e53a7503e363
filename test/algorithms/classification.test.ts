import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { crossEntropy, UNKNOWN_CLASS } from '../../src/algorithms/classification.js';
import { gradients } from '../../src/autodiff/gradient.js';
import { createNodeEngine } from '../../src/engine/node.js';
import { Graph } from '../../src/onnx/graph.js';
import { float32, int64 } from '../../src/tensor/tensor.js';

const engine = createNodeEngine({ threads: 1 });
after(() => engine.close());

async function lossOf(rows: readonly (readonly number[])[], classes: readonly number[]) {
  const shape = [rows.length, rows[0]!.length];
  const graph = new Graph('cross entropy');
  const logits = graph.input('logits', 'float32', shape);
  const loss = crossEntropy(logits, graph.input('classes', 'int64', [rows.length]));
  graph.output('loss', loss);
  graph.output('gradient', gradients(loss, [logits])[0]!);
  const program = await engine.compile(graph);
  const found = await program.run({
    logits: float32(shape, rows.flat()),
    classes: int64([classes.length], [...classes]),
  });
  await program.release();
  return { loss: found.loss!.data[0] as number, gradient: [...(found.gradient!.data as Float32Array)] };
}

/** In double precision: the mean of log sum exp x - x of the true class, and its derivative (softmax - one hot) / B; both are 0 for a row whose class is not known. */
function expected(rows: readonly (readonly number[])[], classes: readonly number[]) {
  let loss = 0;
  const gradient = rows.flatMap((row, b) => {
    if (classes[b] === UNKNOWN_CLASS) return row.map(() => 0);
    const largest = Math.max(...row);
    const total = row.reduce((sum, x) => sum + Math.exp(x - largest), 0);
    loss += (largest + Math.log(total) - row[classes[b]!]!) / rows.length;
    return row.map((x, k) => (Math.exp(x - largest) / total - (k === classes[b] ? 1 : 0)) / rows.length);
  });
  return { loss, gradient };
}

for (const [name, rows, classes] of [
  [
    'ordinary scores',
    [
      [0.3, -1.2, 2.5, 0.1],
      [-0.7, 0.9, 0.4, -2.2],
      [1.5, 1.4, -0.3, 0.8],
    ],
    [2, 3, 0],
  ],
  [
    'scores whose exponentials overflow',
    [
      [1000, 998, -1000, 0],
      [-500, -501.5, -502, -900],
    ],
    [1, 2],
  ],
  [
    'a row whose class is not known',
    [
      [0.3, -1.2, 2.5],
      [-0.7, 0.9, 0.4],
      [1.5, 1.4, -0.3],
    ],
    [2, UNKNOWN_CLASS, 0],
  ],
] as const) {
  test(`cross-entropy and its gradient: ${name}`, async () => {
    const found = await lossOf(rows, classes);
    const wanted = expected(rows, classes);
    assert.ok(Math.abs(found.loss - wanted.loss) <= 1e-6 * Math.abs(wanted.loss), `${found.loss}`);
    found.gradient.forEach((g, i) => {
      assert.ok(Math.abs(g - wanted.gradient[i]!) <= 1e-6, `${i}: ${g}, not ${wanted.gradient[i]}`);
    });
  });
}
