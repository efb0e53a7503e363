import assert from 'node:assert/strict';
import { after, before, suite, test } from 'node:test';
import type { Engine } from '../../src/engine/engine.js';
import { createNodeEngine } from '../../src/engine/node.js';
import { cast } from '../../src/onnx/elementwise.js';
import { Graph, type Value } from '../../src/onnx/graph.js';
import { type AdamWOptions, adamw } from '../../src/optim/adamw.js';
import { clipByGlobalNorm, globalNorm } from '../../src/optim/clipping.js';
import { ema, emaDecay, emaName } from '../../src/optim/ema.js';
import { groups, type Optimizer, scalarFeed } from '../../src/optim/optimizer.js';
import { type ScheduleOptions, scheduleFactor } from '../../src/optim/schedule.js';
import { sgd } from '../../src/optim/sgd.js';
import { float32, type Shape, type Tensor } from '../../src/tensor/tensor.js';
import { goldenJson, relativeError } from '../goldens.js';

type Numbers = Record<string, number[]>;

/** A run of an optimiser, as scripts/goldens/optimizers.py writes it. */
interface Run {
  readonly options?: AdamWOptions;
  readonly maxNorm?: number;
  readonly maximum?: number;
  readonly start: Numbers;
  readonly learningRates: number[];
  readonly steps: { gradients: Numbers; parameters: Numbers; norm?: number; decay?: number }[];
  readonly end: Partial<Record<'exp_avg' | 'exp_avg_sq' | 'ema', Numbers>>;
}

interface Golden {
  readonly shapes: Record<string, number[]>;
  readonly schedules: (ScheduleOptions & { factors: number[] })[];
  readonly [name: string]: unknown;
}

const golden = goldenJson<Golden>('optimizers.json');
const { shapes } = golden;
const names = Object.keys(shapes);
const TOLERANCE = 2e-6;

const tensorOf = (numbers: Numbers, name: string): Tensor => float32(shapes[name]!, numbers[name]!);

suite('optimisers against PyTorch', () => {
  let engine: Engine;
  before(() => {
    engine = createNodeEngine({ threads: 1 });
  });
  after(() => engine.close());

  async function check(name: string, optimizer: Optimizer): Promise<void> {
    const run = golden[name] as Run;
    const graph = new Graph(name);
    const parameters = names.map((n) => graph.input(n, 'float32', shapes[n]!));
    let gradients: Value[] = names.map((n) => graph.input(`gradient ${n}`, 'float32', shapes[n]!));
    if (run.maxNorm !== undefined) {
      const { clipped, norm } = clipByGlobalNorm(gradients, run.maxNorm);
      graph.output('norm', norm);
      gradients = clipped;
    }
    optimizer.update(graph, parameters, gradients);
    if (run.maximum !== undefined) ema(graph, parameters);
    const program = await engine.compile(graph);
    const initial = new Map(names.map((n) => [n, tensorOf(run.start, n)]));
    if (run.maximum !== undefined) for (const n of names) initial.set(emaName(n), tensorOf(run.start, n));
    for (const [key, zeros] of optimizer.init(names.map((n) => ({ name: n, shape: shapes[n]! })))) {
      initial.set(key, zeros);
    }
    const state = await engine.state(initial);
    for (const [i, step] of run.steps.entries()) {
      const feeds: Record<string, Tensor> = { ...optimizer.feeds(i + 1, run.learningRates[i]!) };
      for (const n of names) feeds[`gradient ${n}`] = tensorOf(step.gradients, n);
      if (run.maximum !== undefined) {
        const decay = emaDecay(i + 1, run.maximum);
        assert.ok(
          Math.abs(decay - step.decay!) < 1e-12,
          `decay of step ${i + 1}: ${decay}, not ${step.decay}`,
        );
        feeds['ema.decay'] = scalarFeed(decay);
      }
      const { norm } = await program.run(feeds, state);
      if (norm)
        assert.ok(relativeError(norm, float32([], [step.norm!])) < TOLERANCE, `norm of step ${i + 1}`);
      const now = await state.read(names);
      for (const n of names) {
        const error = relativeError(now.get(n)!, tensorOf(step.parameters, n));
        assert.ok(error < TOLERANCE, `${n} after step ${i + 1}: relative error ${error}`);
      }
    }
    const end = await state.read();
    for (const [key, expected] of Object.entries(run.end)) {
      // Small parameters are updated as one vector, in their order.
      const all = float32(
        [names.flatMap((n) => expected[n]!).length],
        names.flatMap((n) => expected[n]!),
      );
      if (key === 'ema') {
        for (const n of names)
          assert.ok(relativeError(end.get(emaName(n))!, tensorOf(expected, n)) < TOLERANCE, n);
      } else {
        const error = relativeError(end.get(`adamw.${key}.0`)!, all);
        assert.ok(error < TOLERANCE, `${key}: relative error ${error}`);
      }
    }
    await state.release();
    await program.release();
  }

  for (const name of Object.keys(golden).filter((n) => n.startsWith('adamw') || n === 'ema')) {
    test(name, () => check(name, adamw((golden[name] as Run).options)));
  }
  for (const name of Object.keys(golden).filter((n) => n.startsWith('sgd'))) {
    test(name, () => check(name, sgd()));
  }

  test('a large parameter, which is updated on its own, goes the way of a small one', async () => {
    const large: Shape = [300, 220];
    const small: Shape = [220];
    assert.deepEqual(groups([small, large, [3]]), [[0, 2], [1]]);
    const optimizer = adamw();
    const graph = new Graph();
    const given = { small, large };
    const parameters = Object.entries(given).map(([n, s]) => graph.input(n, 'float32', s));
    const gradients = Object.entries(given).map(([n, s]) => graph.input(`gradient ${n}`, 'float32', s));
    optimizer.update(graph, parameters, clipByGlobalNorm(gradients, 1e9).clipped);
    const program = await engine.compile(graph);
    // Every row of the large parameter is the small one.
    const row = (k: number) => Float32Array.from({ length: 220 }, (_, i) => ((i * k) % 101) / 101 - 0.5);
    const rows = (k: number) => Float32Array.from({ length: 300 * 220 }, (_, i) => row(k)[i % 220]!);
    const wide = [rows(7), rows(13)] as const;
    const state = await engine.state(
      new Map([
        ['small', float32(small, row(7))],
        ['large', float32(large, wide[0])],
        ...optimizer.init(Object.entries(given).map(([name, shape]) => ({ name, shape }))),
      ]),
    );
    for (const step of [1, 2, 3]) {
      await program.run(
        {
          'gradient small': float32(small, row(13)),
          'gradient large': float32(large, wide[1]),
          ...optimizer.feeds(step, 1e-2),
        },
        state,
      );
    }
    const end = await state.read(['small', 'large']);
    const narrow = end.get('small')!.data as Float32Array;
    const all = end.get('large')!.data as Float32Array;
    assert.ok(narrow.some((v, i) => v !== row(7)[i]));
    for (const r of [0, 1, 150, 299]) assert.deepEqual(all.slice(r * 220, (r + 1) * 220), narrow);
    await state.release();
    await program.release();
  });
});

test('learning-rate schedules are those of diffusers', () => {
  for (const { factors, ...options } of golden.schedules) {
    factors.forEach((factor, i) => {
      const ours = scheduleFactor(i + 1, options);
      assert.ok(
        Math.abs(ours - factor) < 1e-12,
        `${options.schedule}, warm-up ${options.warmupSteps}, step ${i + 1}: ${ours}, not ${factor}`,
      );
    });
  }
});

test('gradients in halves are cast as one vector', () => {
  const graph = new Graph('norm');
  const halves = [[2, 3], [4], [5, 1]].map((shape, i) => graph.input(`g${i}`, 'float16', shape));
  graph.output('norm', globalNorm(halves.map((half) => cast(half, 'float32'))));
  const casts = graph.liveNodes().filter(({ operator }) => operator === 'Cast');
  assert.deepEqual(
    casts.map(({ outputs }) => outputs[0]!.shape),
    [[15]],
  );
});
