import assert from 'node:assert/strict';
import { suite, test } from 'node:test';
import { add, exp, mul } from '../../src/onnx/elementwise.js';
import { Graph, GraphError } from '../../src/onnx/graph.js';
import { reshape } from '../../src/onnx/movement.js';
import { sum } from '../../src/onnx/reduction.js';
import { float32, type Shape } from '../../src/tensor/tensor.js';

const refused = (build: () => unknown, message: string) =>
  assert.throws(build, (error) => error instanceof GraphError && error.message === message);

suite('graph', () => {
  test('a value prints its name, type and shape', () => {
    const x = new Graph().input('x', 'float16', [2, 3]);
    assert.equal(`${x}`, '%x: float16[2, 3]');
    assert.equal(x.rank, 2);
    assert.equal(x.size, 6);
    assert.equal(x.producer, undefined);
  });

  test('names are unique, and a taken input name is refused', () => {
    const graph = new Graph();
    const x = graph.input('add', 'float32', [1]);
    const names = [add(x, x), add(x, x), graph.constant(float32([2], [1, 2]), 'add')].map((v) => v.name);
    assert.deepEqual(names, ['add_1', 'add_2', 'add_3']);
    refused(() => graph.input('add', 'float32', [1]), 'input name add is taken');
  });

  test('what follows from initializers alone is computed once, outside regions; what follows from inputs is not', () => {
    const graph = new Graph();
    const w = graph.external('w', 'float32', [2, 4], { path: 'weights', offset: 0 });
    const x = graph.input('x', 'float32', [4, 2]);
    // Each call brings a shape constant of its own, which holds the same.
    const copy = (shape: Shape) => exp(reshape(w, shape));
    const [first, other] = [copy([4, 2]), copy([8, 1])];
    assert.equal(copy([4, 2]), first);
    assert.notEqual(other, first);
    assert.equal(
      graph.inRegion({ name: 'block' }, () => copy([2, 2, 2])),
      copy([2, 2, 2]),
    );
    assert.equal(copy([2, 2, 2]).producer!.region, undefined);
    assert.notEqual(add(x, first), add(x, first));
    graph.output('y', add(add(x, first), copy([4, 2])));
    assert.equal(graph.liveNodes().filter(({ operator }) => operator === 'Exp').length, 1);
  });

  test('a value of another graph is refused', () => {
    const x = new Graph().input('x', 'float32', [2]);
    const y = new Graph().input('y', 'float32', [2]);
    refused(() => add(x, y), 'Add: %y belongs to another graph');
  });

  test('outputs have one name each, updates fit their input', () => {
    const graph = new Graph();
    const x = graph.input('x', 'float32', [2]);
    const y = exp(x);
    graph.output('y', y);
    refused(() => graph.output('y', y), 'output name y is taken');
    refused(() => graph.update(y, y), '%exp is not an input');
    refused(() => graph.update(x, sum(y)), '%x: float32[2] cannot be updated with %reducesum: float32[]');
    graph.update(x, y);
    refused(() => graph.update(x, y), '%x already has an update');
  });

  test('what no output or update needs is not live', () => {
    const graph = new Graph();
    const [x, unused, kept] = ['x', 'unused', 'kept'].map((n) => graph.input(n, 'float32', [2]));
    const weight = graph.constant(float32([2], [1, 2]), 'weight');
    graph.constant(float32([2], [3, 4]), 'unread');
    exp(unused!);
    const y = mul(x!, weight);
    const next = exp(kept!);
    graph.output('y', y);
    graph.update(kept!, next);
    assert.deepEqual(
      graph.liveNodes().map((n) => n.operator),
      ['Mul', 'Exp'],
    );
    const { inputs, initializers } = graph.liveSources();
    assert.deepEqual(
      inputs.map((v) => v.name),
      ['x', 'kept'],
    );
    assert.deepEqual(initializers, [weight]);
  });

  test('regions mark the nodes added inside; an inner region belongs to the outer one', () => {
    const graph = new Graph();
    const x = graph.input('x', 'float32', [2]);
    const [outer, inner] = [{ name: 'outer' }, { name: 'inner' }];
    graph.inRegion(outer, () => {
      exp(x);
      graph.inRegion(inner, () => exp(x));
      graph.outsideRegions(() => exp(x));
      exp(x);
    });
    exp(x);
    assert.deepEqual(
      graph.nodes.map((n) => n.region?.name),
      ['outer', 'outer', undefined, 'outer', undefined],
    );
  });

  test('a region ends when its builder throws', () => {
    const graph = new Graph();
    const x = graph.input('x', 'float32', [2]);
    assert.throws(() =>
      graph.inRegion({ name: 'broken' }, () => {
        throw new Error('no');
      }),
    );
    assert.equal(exp(x).producer!.region, undefined);
  });
});
