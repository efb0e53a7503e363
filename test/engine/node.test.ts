import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdir, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import path from 'node:path';
import { after, before, suite, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { Worker } from 'node:worker_threads';
import type { Engine, State } from '../../src/engine/engine.js';
import { createNodeEngine } from '../../src/engine/node.js';
import { EngineError } from '../../src/errors.js';
import { add, cast, exp, greater, mul, sub } from '../../src/onnx/elementwise.js';
import { Graph, type Value } from '../../src/onnx/graph.js';
import { gemm, matmul } from '../../src/onnx/linalg.js';
import { expand } from '../../src/onnx/movement.js';
import { sum } from '../../src/onnx/reduction.js';
import { encodeHalf } from '../../src/tensor/half.js';
import { Random } from '../../src/tensor/random.js';
import { float32, int64, type Tensor, tensor } from '../../src/tensor/tensor.js';
import { temporaryFolder } from '../temporary-folder.js';

const numbers = (t: Tensor | undefined): number[] =>
  Array.from(t!.data as ArrayLike<number | bigint>, Number);

/** y = 2 x of a vector. */
function doubling(length = 2): Graph {
  const graph = new Graph('doubling');
  graph.output('y', mul(graph.input('x', 'float32', [length]), 2));
  return graph;
}

/** A product of square matrices, over and over: as much work as is asked for. */
function heavy(side: number, products: number): Graph {
  const graph = new Graph('heavy');
  const x = graph.input('x', 'float32', [side, side]);
  let y: Value = x;
  for (let i = 0; i < products; i++) y = matmul(y, x);
  graph.output('y', y);
  return graph;
}

const rotation = (side: number): Tensor =>
  float32([side, side], new Random(1).uniforms([side, side], -1 / side, 1 / side).data);

const refusal = (pattern: RegExp) => (error: unknown) => {
  assert.ok(error instanceof EngineError, `not an EngineError: ${error}`);
  assert.match(error.message, pattern);
  return true;
};

suite('engine on the processor', () => {
  let engine: Engine;
  before(() => {
    engine = createNodeEngine({ threads: 1 });
  });
  after(() => engine.close());

  test('runs a graph, again and again, with every element type that may be fed', async () => {
    const graph = new Graph();
    const x = graph.input('x', 'float32', [2]);
    const count = graph.input('count', 'int64', [2]);
    const choice = graph.input('choice', 'bool', [2]);
    graph.output('sum', add(x, add(cast(count, 'float32'), cast(choice, 'float32'))));
    graph.output('next', add(count, 1));
    graph.output('positive', greater(x, 0));
    const program = await engine.compile(graph);
    for (const shift of [0, 10]) {
      const results = await program.run({
        x: float32([2], [0.5, -1]),
        count: int64([2], [shift, 2]),
        choice: tensor('bool', [2], Uint8Array.of(0, 1)),
      });
      assert.deepEqual(numbers(results.sum), [0.5 + shift, 2]);
      assert.deepEqual(results.next!.data, BigInt64Array.of(BigInt(shift + 1), 3n));
      assert.deepEqual([results.positive!.dtype, numbers(results.positive)], ['bool', [1, 0]]);
    }
    await program.release();
  });

  test('leaves the event loop free', async () => {
    const program = await engine.compile(heavy(256, 300));
    let ticks = 0;
    const timer = setInterval(() => ticks++, 1);
    await program.run({ x: rotation(256) });
    clearInterval(timer);
    // A run that blocked the loop would let the timer fire once or twice in all.
    assert.ok(ticks >= 5, `the timer fired ${ticks} times`);
    await program.release();
  });

  test('queues runs of one caller, in order', async () => {
    const graph = new Graph();
    const total = graph.input('total', 'float32', []);
    const next = add(total, graph.input('x', 'float32', []));
    graph.update(total, next);
    graph.output('total', next);
    const program = await engine.compile(graph);
    const state = await engine.state(new Map([['total', float32([], [0])]]));
    const results = await Promise.all([1, 2, 3].map((v) => program.run({ x: float32([], [v]) }, state)));
    assert.deepEqual(
      results.map((r) => numbers(r.total)[0]),
      [1, 3, 6],
    );
    await Promise.all([program.release(), state.release()]);
  });

  suite('state', () => {
    /** w <- w - rate * x, with the old w as an output. */
    function descent(): Graph {
      const graph = new Graph('descent');
      const w = graph.input('w', 'float32', [2]);
      graph.update(w, sub(w, mul(graph.input('x', 'float32', [2]), graph.input('rate', 'float32', []))));
      graph.output('before', w);
      return graph;
    }
    const start = () =>
      new Map<string, Tensor>([
        ['w', float32([2], [1, 2])],
        ['rate', float32([], [0.5])],
      ]);

    test('inputs that are not fed come from it, updates go to it, what is fed goes first', async () => {
      const program = await engine.compile(descent());
      const state = await engine.state(start());
      const first = await program.run({ x: float32([2], [2, 2]) }, state);
      assert.deepEqual(numbers(first.before), [1, 2]);
      assert.deepEqual(numbers((await state.read(['w'])).get('w')), [0, 1]);
      await program.run({ x: float32([2], [1, 1]), rate: float32([], [1]) }, state);
      const all = await state.read();
      assert.deepEqual([...all.keys()].sort(), ['rate', 'w']);
      assert.deepEqual(numbers(all.get('w')), [-1, 0]);
      assert.deepEqual(numbers(all.get('rate')), [0.5], 'a fed value does not stay');
      await state.write(new Map([['w', float32([2], [9, 9])]]));
      const third = await program.run({ x: float32([2], [0, 0]) }, state);
      assert.deepEqual(numbers(third.before), [9, 9]);
      await Promise.all([program.release(), state.release()]);
    });

    test('what was given and what was read are copies', async () => {
      const given = start();
      const state = await engine.state(given);
      (given.get('w')!.data as Float32Array)[0] = 100;
      const read = (await state.read()).get('w')!;
      assert.deepEqual(numbers(read), [1, 2]);
      (read.data as Float32Array)[0] = 100;
      assert.deepEqual(numbers((await state.read()).get('w')), [1, 2]);
      await state.release();
    });

    test('two programs share one state; two states of one program do not meet', async () => {
      const [program, other] = [await engine.compile(descent()), await engine.compile(descent())];
      const [a, b] = [await engine.state(start()), await engine.state(start())];
      const x = float32([2], [2, 2]);
      await program.run({ x }, a);
      await other.run({ x }, a);
      assert.deepEqual(numbers((await a.read()).get('w')), [-1, 0]);
      assert.deepEqual(numbers((await b.read()).get('w')), [1, 2]);
      await Promise.all([program, other, a, b].map((part) => part.release()));
    });

    test('a run that fails changes nothing', async () => {
      const program = await engine.compile(descent());
      const state = await engine.state(start());
      await assert.rejects(program.run({ x: float32([3], [1, 1, 1]) }, state), refusal(/"x"/));
      assert.deepEqual(numbers((await state.read()).get('w')), [1, 2]);
      await Promise.all([program.release(), state.release()]);
    });

    test('mistakes with it are named', async () => {
      const program = await engine.compile(descent());
      const state = await engine.state(start());
      const x = float32([2], [1, 1]);
      await assert.rejects(program.run({ x }), refusal(/^The program updates "w": run it with a state\.$/));
      await assert.rejects(state.read(['nothing']), refusal(/^The state has no tensor "nothing"\.$/));
      const stranger = createNodeEngine({ threads: 1 });
      const foreign = await stranger.state(start());
      await assert.rejects(program.run({ x }, foreign), refusal(/belongs to another engine/));
      await stranger.close();
      await state.release();
      await assert.rejects(program.run({ x }, state), refusal(/^The state was released\.$/));
      await assert.rejects(state.write(start()), refusal(/^The state was released\.$/));
      await program.release();
      await assert.rejects(
        program.run({ x }),
        refusal(/^The program was released; compile the graph again\.$/),
      );
    });
  });

  test('a missing input is named, with its type and shape', async () => {
    const program = await engine.compile(doubling());
    await assert.rejects(
      program.run({ y: float32([2], [1, 2]) }),
      refusal(/^The input "x" \(float32 \[2\]\) is missing: it was not fed and no state was given\.$/),
    );
    const state = await engine.state(new Map());
    await assert.rejects(program.run({}, state), refusal(/and the state does not hold it\.$/));
    await Promise.all([program.release(), state.release()]);
  });

  test('a foreign shape or type is named, beside what was expected', async () => {
    const program = await engine.compile(doubling());
    await assert.rejects(
      program.run({ x: float32([1, 2], [1, 2]) }),
      refusal(
        /^The input "x" takes float32 \[2\], but what was fed is float32 \[1, 2\]\. A program is compiled for one shape: compile the graph again for another\.$/,
      ),
    );
    await assert.rejects(
      program.run({ x: int64([2], [1, 2]) }),
      refusal(/but what was fed is int64 \[2\]\./),
    );
    const state = await engine.state(new Map([['x', float32([3], [1, 2, 3])]]));
    await assert.rejects(program.run({}, state), refusal(/but what the state holds is float32 \[3\]\./));
    assert.deepEqual(numbers((await program.run({ x: float32([2], [1, 2]) })).y), [2, 4], 'and it goes on');
    await Promise.all([program.release(), state.release()]);
  });

  test('views into larger buffers are fed as they are seen', async () => {
    const large = Float32Array.from({ length: 100 }, (_, i) => i);
    const program = await engine.compile(doubling());
    const view = tensor('float32', [2], large.subarray(40, 42));
    assert.deepEqual(numbers((await program.run({ x: view })).y), [80, 82]);
    const state = await engine.state(new Map([['x', tensor('float32', [2], large.subarray(10, 12))]]));
    assert.deepEqual(numbers((await program.run({}, state)).y), [20, 22]);
    assert.equal((await state.read()).get('x')!.data.buffer.byteLength, 8, 'no more than the view was kept');
    const shared = new Float32Array(new SharedArrayBuffer(8));
    shared.set([3, 4]);
    assert.deepEqual(numbers((await program.run({ x: tensor('float32', [2], shared as never) })).y), [6, 8]);
    assert.equal(large[40], 40);
    assert.equal(large.length, 100, 'what was fed is still the caller’s');
    await Promise.all([program.release(), state.release()]);
  });

  test('too little memory is an error with a remedy, and the engine goes on', async () => {
    // More than an address can reach, so that no setting of the system lets it be promised and then be written to.
    const graph = new Graph('too_large');
    graph.output('total', sum(exp(expand(graph.input('x', 'float32', [1]), [2 ** 26, 2 ** 26]))));
    const program = await engine.compile(graph);
    await assert.rejects(
      program.run({ x: float32([1], [1]) }),
      refusal(
        /^The machine ran out of memory\. Use a smaller resolution or batch, turn on gradient checkpointing, or close other programs\.$/,
      ),
    );
    await program.release();
    const small = await engine.compile(doubling());
    assert.deepEqual(numbers((await small.run({ x: float32([2], [1, 2]) })).y), [2, 4]);
    await small.release();
  });

  test('the profile is written where release says', async (t) => {
    const folder = await temporaryFolder(t);
    const program = await engine.compile(doubling(), { profilePrefix: path.join(folder, 'profile') });
    await program.run({ x: float32([2], [1, 2]) });
    const file = await program.release();
    const events = JSON.parse(await readFile(file!, 'utf8')) as { args?: { op_name?: string } }[];
    assert.ok(events.some((e) => e.args?.op_name === 'Mul'));
  });

  test('equal numbers with and without prepacked weights', async () => {
    const graph = new Graph();
    const w = graph.constant(rotation(64), 'w');
    graph.output('y', gemm(graph.input('x', 'float32', [64, 64]), w));
    const results: number[][] = [];
    for (const prepackWeights of [true, false]) {
      const program = await engine.compile(graph, { prepackWeights });
      results.push(numbers((await program.run({ x: rotation(64) })).y));
      await program.release();
    }
    results[0]!.forEach((v, i) => {
      assert.ok(Math.abs(v - results[1]![i]!) <= 1e-6);
    });
  });

  suite('external weights', () => {
    /** A file in which numbers of both types begin at odd offsets. */
    async function weights(file: string, values: number[]): Promise<{ full: number; half: number }> {
      const [full, half] = [13, 13 + 4 * values.length + 2];
      const bytes = new Uint8Array(half + 2 * values.length);
      const single = Float32Array.from(values);
      bytes.set(new Uint8Array(single.buffer), full);
      bytes.set(new Uint8Array(encodeHalf(single).buffer), half);
      await mkdir(path.dirname(file), { recursive: true });
      await writeFile(file, bytes);
      return { full, half };
    }

    test('of both precisions, in two folders, one of them behind a link', async (t) => {
      const folder = await temporaryFolder(t);
      const first = path.join(folder, 'unet', 'model.safetensors');
      const second = path.join(folder, 'elsewhere', 'deep', 'model.safetensors');
      const at = await weights(first, [1, -2, 0.5]);
      await weights(second, [10, 20, 30]);
      await symlink(path.join(folder, 'elsewhere', 'deep'), path.join(folder, 'text_encoder'), 'dir');
      await symlink(second, path.join(folder, 'unet', 'linked.safetensors'));
      const graph = new Graph();
      const external = (name: string, dtype: 'float32' | 'float16', file: string, offset: number): Value =>
        cast(graph.external(name, dtype, [3], { path: file, offset }), 'float32');
      const x = graph.input('x', 'float32', [3]);
      const behindFolder = path.join(folder, 'text_encoder', 'model.safetensors');
      graph.output('full', add(x, external('a', 'float32', first, at.full)));
      graph.output('half', add(x, external('b', 'float16', first, at.half)));
      graph.output('linked folder', add(x, external('c', 'float32', behindFolder, at.full)));
      graph.output(
        'linked file',
        add(x, external('d', 'float16', path.join(folder, 'unet', 'linked.safetensors'), at.half)),
      );
      const program = await engine.compile(graph);
      const results = await program.run({ x: float32([3], [100, 100, 100]) });
      assert.deepEqual(numbers(results.full), [101, 98, 100.5]);
      assert.deepEqual(numbers(results.half), [101, 98, 100.5]);
      assert.deepEqual(numbers(results['linked folder']), [110, 120, 130]);
      assert.deepEqual(numbers(results['linked file']), [110, 120, 130]);
      await program.release();
    });

    test('the model’s folder itself may be a link', async (t) => {
      const folder = await temporaryFolder(t);
      const at = await weights(path.join(folder, 'real', 'w'), [4, 5]);
      await symlink(path.join(folder, 'real'), path.join(folder, 'link'), 'dir');
      const graph = new Graph();
      const w = graph.external('w', 'float32', [2], {
        path: path.join(folder, 'link', 'w'),
        offset: at.full,
      });
      graph.output('y', add(graph.input('x', 'float32', [2]), w));
      const program = await engine.compile(graph);
      assert.deepEqual(numbers((await program.run({ x: float32([2], [1, 1]) })).y), [5, 6]);
      await program.release();
    });

    test('a file that is gone is named', async (t) => {
      const file = path.join(await temporaryFolder(t), 'model.safetensors');
      await weights(file, [1]);
      await rm(file);
      const graph = new Graph();
      const w = graph.external('w', 'float32', [1], { path: file, offset: 13 });
      graph.output('y', add(graph.input('x', 'float32', [1]), w));
      await assert.rejects(engine.compile(graph), refusal(/model\.safetensors cannot be read/));
    });
  });
});

suite('life of an engine', () => {
  test('close waits for what was asked before, and then everything is refused', async () => {
    const engine = createNodeEngine({ threads: 1 });
    const program = await engine.compile(heavy(128, 20));
    const state: State = await engine.state(new Map([['x', rotation(128)]]));
    let finished = false;
    const running = program.run({}, state).then(() => {
      finished = true;
    });
    const closing = engine.close();
    assert.equal(engine.close(), closing, 'closed once, however often it is asked');
    await closing;
    assert.ok(finished);
    await running;
    const closed = refusal(/^The engine was closed\.$/);
    await assert.rejects(program.run({}, state), closed);
    await assert.rejects(engine.compile(doubling()), closed);
    await assert.rejects(engine.state(new Map()), closed);
    await assert.rejects(state.read(), closed);
    await engine.close();
  });

  test('two engines work side by side', async () => {
    const engines = [1, 2].map((threads) => createNodeEngine({ threads }));
    const programs = await Promise.all(engines.map((engine) => engine.compile(heavy(128, 10))));
    const results = await Promise.all(programs.map((program) => program.run({ x: rotation(128) })));
    const [a, b] = results.map((r) => numbers(r.y)) as [number[], number[]];
    const largest = Math.max(...a.map(Math.abs));
    assert.ok(a.every((v, i) => Math.abs(v - b[i]!) <= 1e-5 * largest));
    await Promise.all(engines.map((engine) => engine.close()));
  });

  test('the same number of threads gives the same bytes', async () => {
    const bytes: Buffer[] = [];
    for (let i = 0; i < 2; i++) {
      const engine = createNodeEngine({ threads: 2 });
      const graph = heavy(192, 4);
      graph.output('total', sum(exp(graph.outputs.get('y')!)));
      const program = await engine.compile(graph);
      for (let run = 0; run < 2; run++) {
        const results = await program.run({ x: rotation(192) });
        bytes.push(Buffer.concat(Object.values(results).map((t) => Buffer.from(t.data.buffer))));
      }
      await engine.close();
    }
    for (const other of bytes.slice(1)) assert.ok(bytes[0]!.equals(other));
  });

  test('a number of threads that makes no sense is refused', () => {
    for (const threads of [0, -1, 1.5, Number.NaN]) {
      assert.throws(
        () => createNodeEngine({ threads }),
        refusal(/^threads: expected a whole number of at least 1, got /),
      );
    }
  });

  test('an idle engine does not keep the process alive, and telemetry is off before the library is loaded', async () => {
    const script = fileURLToPath(new URL('./telemetry-process.js', import.meta.url));
    const { ORT_DISABLE_TELEMETRY: _, ...env } = process.env;
    const { stdout } = await promisify(execFile)(process.execPath, [script], { env });
    const {
      before: first,
      made,
      compiled,
    } = JSON.parse(stdout) as Record<string, { telemetryOff?: string; isLoaded?: boolean }>;
    assert.equal(first!.telemetryOff, undefined);
    assert.equal(made!.telemetryOff, '1');
    assert.equal(compiled!.telemetryOff, '1');
    if (process.platform === 'linux') {
      assert.deepEqual([first!.isLoaded, made!.isLoaded, compiled!.isLoaded], [false, false, true]);
    }
  });

  test('in a worker thread, which cannot switch telemetry off, the engine says so', async () => {
    const module = new URL('../../src/engine/node.js', import.meta.url).href;
    const code = `
      const { parentPort } = require('node:worker_threads');
      import(${JSON.stringify(module)})
        .then(({ createNodeEngine }) => createNodeEngine({ threads: 1 }).close())
        .then(() => parentPort.postMessage('made'), (error) => parentPort.postMessage(error.message));`;
    const ask = (env: NodeJS.ProcessEnv): Promise<string> =>
      new Promise((resolve, reject) => {
        const worker = new Worker(code, { eval: true, env });
        worker.once('message', resolve);
        worker.once('error', reject);
      });
    const { ORT_DISABLE_TELEMETRY: _, ...env } = process.env;
    assert.match(await ask(env), /Set the environment variable ORT_DISABLE_TELEMETRY=1 on the main thread/);
    assert.equal(await ask({ ...env, ORT_DISABLE_TELEMETRY: '1' }), 'made');
  });
});
