import assert from 'node:assert/strict';
import { after, before, suite, test } from 'node:test';
import type { Engine, State } from '../../src/engine/engine.js';
import { createNodeEngine } from '../../src/engine/node.js';
import { Graph } from '../../src/onnx/graph.js';
import { adamw } from '../../src/optim/adamw.js';
import { clipByGlobalNorm } from '../../src/optim/clipping.js';
import { ema, emaName } from '../../src/optim/ema.js';
import { type Parameter, scalarFeed } from '../../src/optim/optimizer.js';
import { Random } from '../../src/tensor/random.js';
import { float32, type Tensor, zeros } from '../../src/tensor/tensor.js';
import {
  accumulatedName,
  buildPiecewiseUpdate,
  PiecewiseUpdate,
} from '../../src/training/piecewise-update.js';
import { relativeError } from '../goldens.js';

/** Small ones between large ones, which the optimiser keeps a moment each of. */
const parameters: readonly Parameter[] = [
  { name: 'a.bias', shape: [256] },
  { name: 'a.weight', shape: [256, 256] },
  { name: 'b.weight', shape: [257, 300] },
  { name: 'b.bias', shape: [300] },
  { name: 'c.weight', shape: [128, 64, 3, 3] },
];
const settings = { maxGradNorm: 1, ema: true, optimizer: adamw() };
const [RATE, DECAY] = [1e-3, 0.9];

const drawn = (seed: number, scale: number): Map<string, Tensor<'float32'>> =>
  new Map(
    parameters.map(({ name, shape }) => {
      const { data } = new Random(seed, name).normals(shape);
      return [
        name,
        float32(
          shape,
          data.map((v) => scale * v),
        ),
      ];
    }),
  );

const started = (): Map<string, Tensor> => {
  const start = drawn(1, 0.1);
  return new Map<string, Tensor>([
    ...start,
    ...[...start].map(([name, t]) => [emaName(name), t] as const),
    ...settings.optimizer.init(parameters),
  ]);
};

const feedsOf = (step: number): Record<string, Tensor> => ({
  ...settings.optimizer.feeds(step, RATE),
  'ema.decay': scalarFeed(DECAY),
});

const give = (state: State, gradients: ReadonlyMap<string, Tensor>): Promise<void> =>
  state.write(new Map([...gradients].map(([name, t]) => [accumulatedName(name), t])));

suite('an update piece by piece', () => {
  let engine: Engine;
  before(() => {
    engine = createNodeEngine({ threads: 1 });
  });
  after(() => engine.close());

  test('pieces end where the groups of the optimiser end, and follow one another', () => {
    const { pieces } = buildPiecewiseUpdate(parameters, settings, {
      half: false,
      sums: false,
      pieceBytes: 600_000,
    });
    assert.deepEqual(
      pieces.map((piece) => piece.parameters.map(({ name }) => name)),
      [['a.bias', 'b.bias', 'a.weight', 'b.weight'], ['c.weight']],
    );
    const moments = pieces.flatMap(({ graph }) =>
      [...graph.updates.keys()].filter((name) => name.startsWith('adamw.exp_avg.')),
    );
    assert.deepEqual(moments, ['adamw.exp_avg.0', 'adamw.exp_avg.1', 'adamw.exp_avg.2', 'adamw.exp_avg.3']);
  });

  for (const pieceBytes of [1, 600_000, 2 ** 30]) {
    test(`gives what one graph gives, pieces of ${pieceBytes} bytes`, async () => {
      const graph = new Graph('whole');
      const values = parameters.map(({ name, shape }) => graph.input(name, 'float32', shape));
      const given = parameters.map(({ name, shape }) => graph.input(accumulatedName(name), 'float32', shape));
      const { clipped, norm } = clipByGlobalNorm(given, settings.maxGradNorm);
      settings.optimizer.update(graph, values, clipped);
      ema(graph, values);
      graph.output('gradientNorm', norm);
      const whole = await engine.compile(graph);
      const graphs = buildPiecewiseUpdate(parameters, settings, { half: false, sums: false, pieceBytes });
      const update = await PiecewiseUpdate.compile(engine, graphs);
      const states = [await engine.state(started()), await engine.state(started())] as const;
      // The last gradients are so small that they are not clipped.
      for (const [i, scale] of [3, 1e-2, 1e-5].entries()) {
        const gradients = drawn(10 + i, scale);
        for (const state of states) await give(state, gradients);
        const expected = await whole.run(feedsOf(i + 1), states[0]);
        const found = await update.run(feedsOf(i + 1), states[1]);
        assert.ok(relativeError(found.gradientNorm!, expected.gradientNorm!) <= 1e-6);
        const all = Math.hypot(...[...gradients.values()].map(({ data }) => Math.hypot(...data)));
        assert.ok(Math.abs((found.gradientNorm!.data[0] as number) / all - 1) <= 1e-5);
      }
      const [expected, found] = [await states[0].read(), await states[1].read()];
      for (const { name } of parameters) expected.delete(accumulatedName(name));
      assert.deepEqual([...found.keys()].sort(), [...expected.keys()].sort(), 'gradients are let go of');
      for (const [name, t] of expected) assert.ok(relativeError(found.get(name)!, t) <= 1e-6, name);
      for (const held of [...states, whole, update]) await held.release();
    });
  }

  test('sums start again at zero', async () => {
    const graphs = buildPiecewiseUpdate(parameters, settings, { half: false, sums: true, pieceBytes: 1 });
    const update = await PiecewiseUpdate.compile(engine, graphs);
    const state = await engine.state(started());
    await give(state, drawn(10, 1));
    await update.run(feedsOf(1), state);
    const end = await state.read();
    for (const { name, shape } of parameters) assert.deepEqual(end.get(accumulatedName(name)), zeros(shape));
    for (const held of [state, update]) await held.release();
  });

  test('in half precision gradients are unscaled, and an overflow changes nothing', async () => {
    const plain = buildPiecewiseUpdate(parameters, settings, { half: false, sums: false, pieceBytes: 1 });
    const half = buildPiecewiseUpdate(parameters, settings, { half: true, sums: false, pieceBytes: 1 });
    const [whole, update] = [
      await PiecewiseUpdate.compile(engine, plain),
      await PiecewiseUpdate.compile(engine, half),
    ];
    const states = [await engine.state(started()), await engine.state(started())] as const;
    const before = await states[1].read();
    const feeds = { ...feedsOf(1), loss_scale: scalarFeed(2 ** 10) };

    const overflowing = drawn(10, 1);
    overflowing.get('c.weight')!.data[5] = Number.POSITIVE_INFINITY;
    await give(states[1], overflowing);
    assert.equal((await update.run(feeds, states[1])).overflowed!.data[0], 1);
    assert.deepEqual(await states[1].read(), before);

    await give(states[0], drawn(10, 1));
    await give(states[1], drawn(10, 2 ** 10));
    const expected = await whole.run(feedsOf(1), states[0]);
    const found = await update.run(feeds, states[1]);
    assert.equal(found.overflowed!.data[0], 0);
    assert.ok(relativeError(found.gradientNorm!, expected.gradientNorm!) <= 1e-6);
    const end = await states[0].read();
    for (const [name, t] of await states[1].read()) assert.ok(relativeError(t, end.get(name)!) <= 1e-6, name);
    for (const held of [...states, whole, update]) await held.release();
  });
});
