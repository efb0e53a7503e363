import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import type { Engine } from '../../src/engine/engine.js';
import { createNodeEngine } from '../../src/engine/node.js';
import { DivergedError, RunError } from '../../src/errors.js';
import { readSafetensorsFile, writeSafetensorsFile } from '../../src/formats/safetensors-file.js';
import { type Initializer, InputParameters, Scope } from '../../src/nn/parameters.js';
import { add, mul, sqrt, square } from '../../src/onnx/elementwise.js';
import { Graph, type Value } from '../../src/onnx/graph.js';
import { mean } from '../../src/onnx/reduction.js';
import { Random } from '../../src/tensor/random.js';
import { float32, type Tensor } from '../../src/tensor/tensor.js';
import { trainFully } from '../../src/training/full-training.js';

let folder: string;
let engine: Engine;
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'portrayal-full-training-'));
  engine = createNodeEngine({ threads: 1 });
});
after(async () => {
  await engine.close();
  await rm(folder, { recursive: true, force: true });
});

interface Tiny {
  readonly name: string;
  readonly steps: number;
  readonly init?: Initializer;
  readonly learningRate?: number;
  readonly objective?: (weight: Value, x: Value) => Value;
}

/** One weight of three numbers. */
function train({ name, steps, init = { kind: 'ones' }, learningRate = 0.1, objective }: Tiny) {
  const graph = new Graph(name);
  const parameters = new InputParameters(graph);
  const weight = new Scope(parameters).parameter('weight', [3], init);
  const x = graph.input('x', 'float32', [3]);
  const loss = objective?.(weight, x) ?? mean(square(mul(weight, x)));
  const batch = (step: number) => ({ x: new Random(1, 'x', step).normals([3]) });
  const schedule = { steps, learningRate, warmupSteps: 0, maxEmaDecay: 0.9 };
  const settings = { engine, folder, random: new Random(1), checkpointingSteps: 1 };
  return trainFully({ name, graph, loss, parameters: [parameters], batch, ...schedule }, settings);
}

test('a gradient or a weight that is not finite ends the training, and nothing of it is saved', async () => {
  const cases: [Tiny, RegExp][] = [
    // The slope of the root is infinite at 0, where its value is 0.
    [
      { name: 'root', steps: 2, init: { kind: 'zeros' }, objective: (weight) => mean(sqrt(weight)) },
      /The norm of the gradient of root is (Infinity|NaN) at step 1/,
    ],
    // Good up to the last operation: the step itself overflows.
    [{ name: 'leap', steps: 2, learningRate: 1e39 }, /After step 1 of leap, .*weight.* not finite/],
    [
      { name: 'loss', steps: 2, objective: (weight) => mean(sqrt(add(weight, -2))) },
      /The loss of loss is NaN at step 1/,
    ],
  ];
  for (const [tiny, message] of cases) {
    await assert.rejects(train(tiny), (error) => {
      assert.ok(error instanceof DivergedError);
      assert.match(error.message, message);
      return true;
    });
    await assert.rejects(readFile(join(folder, `${tiny.name}.safetensors`)), { code: 'ENOENT' });
  }
});

test('a finished training gives its averages again, and one without settings is taken', async () => {
  const tiny = { name: 'finished', steps: 3 };
  const averages = await train(tiny);
  assert.deepEqual(await train(tiny), averages);
  const path = join(folder, 'finished.safetensors');
  const { tensors, metadata } = await readSafetensorsFile(path);
  assert.deepEqual(averages.get('weight'), tensors.get('ema.weight'));
  await writeSafetensorsFile(path, tensors, new Map([['step', metadata.get('step')!]]));
  await train({ ...tiny, steps: 4 });
  assert.equal((await readSafetensorsFile(path)).metadata.get('step'), '4');
});

test('a state with other tensors is refused', async () => {
  const tiny = { name: 'shapes', steps: 2 };
  await train(tiny);
  const path = join(folder, 'shapes.safetensors');
  const { tensors, metadata } = await readSafetensorsFile(path);
  const vector = float32([3], [1, 2, 3]);
  const cases: [RegExp, (state: Map<string, Tensor>) => unknown][] = [
    [/it has no tensor ema\.weight/, (state) => state.delete('ema.weight')],
    [
      /its tensor weight is float32 \[3, 1\]; expected float32 \[3\]/,
      (state) => state.set('weight', float32([3, 1], vector.data)),
    ],
    [/it has a tensor more, which this training does not/, (state) => state.set('more', vector)],
    [
      /its tensor weight has a value that is not finite/,
      (state) => state.set('weight', float32([3], [1, Number.NaN, 3])),
    ],
  ];
  for (const [message, damage] of cases) {
    const state = new Map(tensors);
    damage(state);
    await writeSafetensorsFile(path, state, metadata);
    await assert.rejects(train(tiny), (error) => {
      assert.ok(error instanceof RunError);
      assert.match(error.message, message);
      return true;
    });
  }
});
