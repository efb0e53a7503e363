import assert from 'node:assert/strict';
import { suite, test } from 'node:test';
import { attentionGradients } from '../../src/autodiff/attention.js';
import { gradients as differentiate } from '../../src/autodiff/gradient.js';
import { createNodeEngine } from '../../src/engine/node.js';
import { attentionTile, fusedAttention } from '../../src/onnx/attention.js';
import { mul } from '../../src/onnx/elementwise.js';
import { Graph } from '../../src/onnx/graph.js';
import { sum } from '../../src/onnx/reduction.js';
import { printGraph } from '../../src/onnx/text.js';
import { goldenJson, goldenTensors, relativeError } from '../goldens.js';
import { matchSnapshot } from '../onnx/snapshot.js';

interface Case {
  readonly name: string;
  readonly op: string;
  readonly attributes: { readonly heads: number };
  readonly inputs: readonly string[];
  readonly cotangent: string;
  readonly gradients: readonly string[];
}

const cases = goldenJson<Case[]>('operators.json').filter((c) => c.op === 'fusedAttention');
const golden = goldenTensors('operators.safetensors');
const TOLERANCE = 1e-5;

suite('the backward pass of fused attention', () => {
  // 4 heads of 6 by 6 scores in the first case: some heads together, one head alone, some rows of one head, one row.
  for (const tile of [72, 36, 18, 1]) {
    test(`in tiles of ${tile} scores, against PyTorch`, async () => {
      const engine = createNodeEngine({ threads: 1 });
      try {
        assert.equal(cases.length, 3);
        for (const { name, inputs, cotangent, gradients, attributes } of cases) {
          const graph = new Graph('attention');
          const values = inputs.map((key, i) => graph.input(`${i}`, 'float32', golden.get(key)!.shape));
          const [q, k, v] = values as [(typeof values)[0], (typeof values)[0], (typeof values)[0]];
          const { heads } = attributes;
          const upstream = graph.input('upstream', 'float32', golden.get(cotangent)!.shape);
          const output = fusedAttention(q, k, v, heads, tile);
          differentiate(sum(mul(output, upstream)), values).forEach((g, i) => {
            graph.output(`gradient ${i}`, g);
          });
          const tiles = graph.liveNodes().filter(({ operator }) => operator === 'Softmax').length;
          const [batch, queries] = q.shape as [number, number, number];
          const part = attentionTile(batch * heads, queries, k.shape[1]!, tile);
          assert.equal(tiles, ((batch * heads) / part.heads) * (queries / part.rows));
          const program = await engine.compile(graph);
          const results = await program.run({
            ...Object.fromEntries(inputs.map((key, i) => [`${i}`, golden.get(key)!])),
            upstream: golden.get(cotangent)!,
          });
          gradients.forEach((key, i) => {
            const error = relativeError(results[`gradient ${i}`]!, golden.get(key)!);
            assert.ok(error <= TOLERANCE, `${name}, gradient ${i}: relative error ${error}`);
          });
          await program.release();
        }
      } finally {
        await engine.close();
      }
    });
  }

  test('every tile hangs on what the one before it gave, so that only one is held', () => {
    const graph = new Graph('tiled_attention');
    const [q, k, v] = ['q', 'k', 'v'].map((name) => graph.input(name, 'float32', [1, 4, 6]));
    const output = fusedAttention(q!, k!, v!, 2);
    const upstream = graph.input('upstream', 'float32', [1, 4, 6]);
    const found = attentionGradients(upstream, [q!, k!, v!], output, { heads: 2, tile: 8 });
    found.forEach((g, i) => {
      graph.output(['dq', 'dk', 'dv'][i]!, g);
    });
    matchSnapshot('tiled-attention', printGraph(graph));
  });
});
