import assert from 'node:assert/strict';
import { test } from 'node:test';
import { exp, mul } from '../../src/onnx/elementwise.js';
import { Graph, type Value } from '../../src/onnx/graph.js';
import { reshape, transpose } from '../../src/onnx/movement.js';
import { stagesOf } from '../../src/onnx/stages.js';
import { zeros } from '../../src/tensor/tensor.js';

test('a stage reads what earlier ones hand on, makes their views again, and leaves what follows from weights alone to all', () => {
  const graph = new Graph();
  const x = graph.input('x', 'float32', [4, 4]);
  const weight = transpose(graph.constant(zeros([4, 4])), [1, 0]);
  const first = exp(x);
  const view = reshape(reshape(first, [16]), [2, 8]);
  const unread = exp(view);
  let h: Value = mul(first, weight);
  for (let i = 0; i < 800; i++) h = exp(h);
  graph.output('y', mul(reshape(mul(exp(view), unread), [4, 4]), h));

  const nodes = graph.liveNodes();
  const { frozen, stages } = stagesOf(graph, nodes);
  assert.deepEqual(frozen, [weight.producer]);
  assert.equal(stages.length, 3);
  const [begin, middle, end] = stages as [(typeof stages)[0], (typeof stages)[0], (typeof stages)[0]];
  assert.deepEqual([...frozen, ...stages.flatMap((s) => s.nodes)].length, nodes.length);
  assert.deepEqual(begin.incoming, []);
  assert.ok(begin.outgoing.includes(first), 'what a view is of');
  assert.ok(begin.outgoing.includes(unread));
  assert.ok(!begin.outgoing.includes(view), 'not the view');
  assert.deepEqual(middle.incoming, [begin.nodes.at(-1)!.outputs[0]]);
  assert.deepEqual(middle.views, []);
  assert.deepEqual(end.views, [reshapeOf(view), view.producer]);
  assert.deepEqual(new Set(end.incoming), new Set([first, unread, middle.nodes.at(-1)!.outputs[0]]));
  assert.deepEqual(end.outgoing, [graph.outputs.get('y')]);
});

const reshapeOf = (view: Value) => view.producer!.inputs[0]!.producer;
