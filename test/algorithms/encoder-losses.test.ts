import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import { contrastiveLoss } from '../../src/algorithms/contrastive.js';
import { selfDistillationLoss } from '../../src/algorithms/self-distillation.js';
import { gradients } from '../../src/autodiff/gradient.js';
import { createNodeEngine } from '../../src/engine/node.js';
import { Graph, type Value } from '../../src/onnx/graph.js';
import { float32, type Tensor } from '../../src/tensor/tensor.js';
import { goldenJson, relativeError } from '../goldens.js';

interface Recorded {
  readonly shape: number[];
  readonly data: number[];
}

const golden = goldenJson<{
  distillation: { student: Recorded[]; teacher: Recorded[]; loss: number; gradients: Recorded[] };
  contrast: {
    images: Recorded;
    texts: Recorded;
    logScale: number;
    loss: number;
    gradients: { images: Recorded; texts: Recorded; logScale: number };
  }[];
}>('encoder-losses.json');

const engine = createNodeEngine({ threads: 1 });
after(() => engine.close());

const tensorOf = ({ shape, data }: Recorded): Tensor<'float32'> => float32(shape, data);

/** The loss of these inputs and its gradients by the first `count` of them. */
async function lossAndGradients(
  inputs: readonly Tensor<'float32'>[],
  count: number,
  build: (values: Value[]) => Value,
): Promise<{ loss: number; gradients: Tensor[] }> {
  const graph = new Graph();
  const values = inputs.map((t, i) => graph.input(`x${i}`, 'float32', t.shape));
  const loss = build(values);
  graph.output('loss', loss);
  gradients(loss, values.slice(0, count)).forEach((g, i) => {
    graph.output(`g${i}`, g);
  });
  const program = await engine.compile(graph);
  const run = await program.run(Object.fromEntries(inputs.map((t, i) => [`x${i}`, t])));
  await program.release();
  return {
    loss: run.loss!.data[0] as number,
    gradients: Array.from({ length: count }, (_, i) => run[`g${i}`]!),
  };
}

test('self-distillation against PyTorch', async () => {
  const { student, teacher, loss, gradients: expected } = golden.distillation;
  const found = await lossAndGradients([...student, ...teacher].map(tensorOf), 2, ([a, b, c, d]) =>
    selfDistillationLoss([a!, b!], [c!, d!]),
  );
  assert.ok(Math.abs(found.loss / loss - 1) < 1e-5, `${found.loss} instead of ${loss}`);
  found.gradients.forEach((g, i) => {
    assert.ok(relativeError(g, tensorOf(expected[i]!)) < 1e-5, `gradient of view ${i}`);
  });
});

test('the contrastive loss against PyTorch, also where its scale is held', async () => {
  for (const { images, texts, logScale, loss, gradients: expected } of golden.contrast) {
    const inputs = [tensorOf(images), tensorOf(texts), float32([], [logScale])];
    const found = await lossAndGradients(inputs, 3, ([i, t, s]) => contrastiveLoss(i!, t!, s!));
    assert.ok(Math.abs(found.loss / loss - 1) < 1e-5, `${found.loss} instead of ${loss}`);
    const wanted = [tensorOf(expected.images), tensorOf(expected.texts), float32([], [expected.logScale])];
    found.gradients.forEach((g, i) => {
      assert.ok(relativeError(g, wanted[i]!) < 1e-5, `gradient ${i} at scale ${logScale}`);
    });
  }
});
