import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createNodeEngine } from '../../src/engine/node.js';
import { Graph } from '../../src/onnx/graph.js';
import { adamw } from '../../src/optim/adamw.js';
import { ema } from '../../src/optim/ema.js';
import { initialLossScale, nextLossScale, updateWhereFinite } from '../../src/optim/loss-scale.js';
import { float32, full, type Tensor, zeros } from '../../src/tensor/tensor.js';
import { goldenJson, relativeError } from '../goldens.js';

/** What torch.amp.GradScaler does, as scripts/goldens/loss_scale.py writes it. */
interface Golden {
  readonly scales: {
    readonly steps: number;
    readonly overflows: number[];
    /** [scale, how many steps in a row] */
    readonly runs: [number, number][];
  }[];
  readonly adamw: {
    readonly learningRate: number;
    readonly overflows: number[];
    readonly start: number[];
    readonly gradients: number[][];
    readonly parameters: number[][];
    readonly expAvg: number[];
    readonly expAvgSq: number[];
    readonly updates: number;
  };
}

const golden = goldenJson<Golden>('loss-scale.json');

for (const { steps, overflows, runs } of golden.scales) {
  test(`the scales of ${steps} steps with ${overflows.length} overflows are those of GradScaler`, () => {
    const overflowing = new Set(overflows);
    let state = initialLossScale;
    const found: [number, number][] = [];
    for (let step = 1; step <= steps; step++) {
      const last = found.at(-1);
      if (last?.[0] === state.scale) last[1]++;
      else found.push([state.scale, 1]);
      state = nextLossScale(state, overflowing.has(step));
    }
    assert.deepEqual(found, runs);
  });
}

test('steps whose gradients overflow change nothing, as in PyTorch, and AdamW does not count them', async () => {
  const { start, gradients, parameters, overflows, learningRate, ...end } = golden.adamw;
  const shape = [start.length];
  const graph = new Graph('guarded');
  const parameter = graph.input('p', 'float32', shape);
  const gradient = graph.input('gradient', 'float32', shape);
  const optimizer = adamw();
  const finite = updateWhereFinite(graph, [gradient], () => optimizer.update(graph, [parameter], [gradient]));
  graph.output('finite', finite);
  const engine = createNodeEngine({ threads: 1 });
  try {
    const program = await engine.compile(graph);
    const initial = optimizer.init([{ name: 'p', shape }]);
    const state = await engine.state(new Map<string, Tensor>([['p', float32(shape, start)], ...initial]));
    let updates = 0;
    for (const [i, values] of gradients.entries()) {
      const before = await state.read();
      const isOverflow = overflows.includes(i + 1);
      for (const bad of isOverflow ? [Infinity, -Infinity, Number.NaN] : [undefined]) {
        const given = values.map((v, k) => (k === 2 && bad !== undefined ? bad : v));
        const results = await program.run(
          { gradient: float32(shape, given), ...optimizer.feeds(updates + 1, learningRate) },
          state,
        );
        assert.equal(results.finite!.data[0], Number(!isOverflow));
      }
      const after = await state.read();
      if (isOverflow) assert.deepEqual(after, before);
      else updates++;
      assert.ok(relativeError(after.get('p')!, float32(shape, parameters[i]!)) < 2e-6, `step ${i + 1}`);
    }
    assert.equal(updates, end.updates);
    const final = await state.read();
    assert.ok(relativeError(final.get('adamw.exp_avg.0')!, float32(shape, end.expAvg)) < 2e-6);
    assert.ok(relativeError(final.get('adamw.exp_avg_sq.0')!, float32(shape, end.expAvgSq)) < 2e-6);
  } finally {
    await engine.close();
  }
});

test('parameters that are updated as one vector are kept or changed as one, to the bit', async () => {
  const graph = new Graph('guarded');
  const shapes = [[2, 3], [4]] as const;
  // Inputs of the graph in another order than they are updated in.
  const parameters = [...shapes.entries()]
    .reverse()
    .map(([i, shape]) => graph.input(`p${i}`, 'float32', shape))
    .reverse();
  const gradients = shapes.map((shape, i) => graph.input(`g${i}`, 'float32', shape));
  const optimizer = adamw();
  updateWhereFinite(graph, gradients, () => {
    optimizer.update(graph, parameters, gradients);
    ema(graph, parameters);
  });
  const nodes = graph.liveNodes();
  const choices = nodes.filter(({ operator }) => operator === 'Where').length;
  assert.equal(choices, 5, 'the parameters together, two moments, two averages');
  const rejoined = nodes.filter(
    ({ operator, inputs }) => operator === 'Concat' && inputs.some((v) => v?.producer?.operator === 'Split'),
  );
  assert.deepEqual(rejoined, [], 'what was cut stays cut');
  const engine = createNodeEngine({ threads: 1 });
  try {
    const program = await engine.compile(graph);
    const start = new Map<string, Tensor>([
      ['p0', float32([2, 3], [1, 2, 3, 4, 5, 6])],
      ['p1', float32([4], [-1, -2, -3, -4])],
      ['ema.p0', zeros([2, 3])],
      ['ema.p1', zeros([4])],
      ...optimizer.init(shapes.map((shape, i) => ({ name: `p${i}`, shape }))),
    ]);
    const state = await engine.state(start);
    const step = (last: number) =>
      program.run(
        {
          g0: float32([2, 3], [1, 1, 1, -1, -1, -1]),
          g1: float32([4], [1, -1, 1, last]),
          ...optimizer.feeds(1, 0.5),
          'ema.decay': full([], 0),
        },
        state,
      );
    await step(Number.NaN);
    assert.deepEqual(await state.read(), start);
    await step(-1);
    const after = await state.read();
    // The first step of Adam is the learning rate against the gradient's sign, besides the decay.
    const expected = (before: number, sign: number): number => before * (1 - 0.5 * 0.01) - 0.5 * sign;
    const p0 = float32(
      [2, 3],
      [1, 2, 3, 4, 5, 6].map((v, i) => expected(v, i < 3 ? 1 : -1)),
    );
    const p1 = float32(
      [4],
      [-1, -2, -3, -4].map((v, i) => expected(v, i % 2 === 0 ? 1 : -1)),
    );
    assert.ok(relativeError(after.get('p0')!, p0) < 2e-6);
    assert.ok(relativeError(after.get('p1')!, p1) < 2e-6);
    assert.deepEqual(after.get('ema.p0'), after.get('p0'));
    assert.deepEqual(after.get('ema.p1'), after.get('p1'));
  } finally {
    await engine.close();
  }
});
