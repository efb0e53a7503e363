import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  appendFile,
  chmod,
  cp,
  mkdir,
  mkdtemp,
  open,
  readdir,
  readFile,
  rm,
  truncate,
  writeFile,
} from 'node:fs/promises';
import { hostname, tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { OutputError, RunError } from '../../src/errors.js';
import { tensorStream } from '../../src/formats/safetensors.js';
import { readTensor } from '../../src/formats/safetensors-file.js';
import { Random } from '../../src/tensor/random.js';
import { float32, int64, type Tensor } from '../../src/tensor/tensor.js';
import { readMetrics } from '../../src/training/metrics-log.js';
import { latestCheckpoint, RunFolder, readRunConfig } from '../../src/training/run-folder.js';

let root: string;
let count = 0;
before(async () => {
  root = await mkdtemp(join(tmpdir(), 'portrayal-runs-'));
});
after(async () => {
  await rm(root, { recursive: true, force: true });
});

const newPath = () => join(root, `run-${count++}`);
const config = {
  method: 'dpg',
  seed: 7,
  learningRate: 1e-4,
  reward: { name: 'look-forward', gamma: 0.9986 },
};

function state(step: number): Map<string, Tensor> {
  return new Map<string, Tensor>([
    ['unet.to_k.lora_A.weight', new Random(step, 'a').normals([4, 300])],
    ['critic.weight', float32([2], [step, -step])],
    ['adam.step', int64([], [step])],
  ]);
}

const streams = (tensors: ReadonlyMap<string, Tensor>) =>
  [...tensors].map(([name, tensor]) => tensorStream(name, tensor, async () => tensor));

async function train(run: RunFolder, to: number, every = 5): Promise<void> {
  for (let step = (run.restored?.step ?? 0) + 1; step <= to; step++) {
    await run.metrics.append({ step, loss: 1 / step });
    if (step % every === 0) await run.saveCheckpoint(step, streams(state(step)), { drawn: step * 2 });
  }
}

async function trained(path: string, to: number): Promise<void> {
  const run = await RunFolder.open(path, { config });
  await train(run, to);
  await run.close();
}

/** All files of a folder with their bytes, but for what differs between equal runs. */
async function contents(path: string): Promise<Map<string, string>> {
  const files = new Map<string, string>();
  for (const entry of await readdir(path, { withFileTypes: true, recursive: true })) {
    const file = join(entry.parentPath, entry.name);
    if (entry.name === 'timings.jsonl') continue;
    files.set(
      file.slice(path.length),
      entry.isFile() ? (await readFile(file)).toString('base64') : 'a folder',
    );
  }
  return new Map([...files].sort());
}

async function rejects(
  promise: Promise<unknown>,
  type: typeof RunError | typeof OutputError,
  ...expected: RegExp[]
): Promise<void> {
  await assert.rejects(promise, (error: unknown) => {
    assert.ok(error instanceof type, String(error));
    for (const pattern of expected) assert.match(error.message, pattern);
    return true;
  });
}

test('a run is resumed with every tensor and counter, and its files end as if it had not been stopped', async () => {
  const [straight, stopped] = [newPath(), newPath()];
  await trained(straight, 23);

  await trained(stopped, 13);
  await appendFile(join(stopped, 'metrics.jsonl'), '{"step":14,"lo');
  const run = await RunFolder.open(stopped, { config, resumeFromCheckpoint: 'latest' });
  assert.equal(run.restored?.step, 10);
  assert.deepEqual(run.restored.progress, { drawn: 20 });
  for (const [name, tensor] of state(10)) {
    assert.deepEqual(await readTensor(run.restored.tensors, name), tensor, name);
  }
  assert.equal(run.restored.tensors.entries.size, 3);
  assert.deepEqual(run.warnings, []);
  await train(run, 23);
  await run.close();
  assert.deepEqual(await contents(stopped), await contents(straight));
  const metrics = await readMetrics(join(stopped, 'metrics.jsonl'));
  assert.deepEqual(
    metrics.map((m) => m.step),
    Array.from({ length: 23 }, (_, i) => i + 1),
  );
});

test('going back to an earlier checkpoint drops what came later', async () => {
  const path = newPath();
  await trained(path, 20);
  await writeFile(join(path, 'samples', 'step-000005.png'), 'early');
  await writeFile(join(path, 'samples', 'step-000020.png'), 'late');
  await writeFile(join(path, 'samples', 'before.png'), 'before');
  for (const given of ['step-000015', join(path, 'checkpoints', 'step-000010')]) {
    const run = await RunFolder.open(path, { config, resumeFromCheckpoint: given });
    assert.equal(run.restored?.step, given === 'step-000015' ? 15 : 10);
    assert.match(run.warnings[0]!, /later checkpoints \(.*\) are removed/);
    await run.close();
  }
  assert.deepEqual(await readdir(join(path, 'checkpoints')), ['step-000005', 'step-000010']);
  assert.deepEqual(await readdir(join(path, 'samples')), ['before.png', 'step-000005.png']);
  assert.equal((await readMetrics(join(path, 'metrics.jsonl'))).length, 10);
});

test('a checkpoint that is half written or half removed is never picked, and is cleared away', async () => {
  const path = newPath();
  await trained(path, 10);
  const checkpoints = join(path, 'checkpoints');
  await cp(join(checkpoints, 'step-000010'), join(checkpoints, '.step-000015.partial'), { recursive: true });
  await truncate(join(checkpoints, '.step-000015.partial', 'state.safetensors'), 100);
  await cp(join(checkpoints, 'step-000010'), join(checkpoints, '.step-000020.removed'), { recursive: true });
  assert.equal((await latestCheckpoint(path))?.step, 10);
  const run = await RunFolder.open(path, { config, resumeFromCheckpoint: 'latest' });
  assert.equal(run.restored?.step, 10);
  await run.close();
  assert.deepEqual(await readdir(checkpoints), ['step-000005', 'step-000010']);
});

test('a damaged checkpoint is an error that names it, and changes nothing', async () => {
  const path = newPath();
  await trained(path, 10);
  const file = join(path, 'checkpoints', 'step-000010', 'state.safetensors');
  await truncate(file, (await readFile(file)).length - 8);
  const earlier = await contents(path);
  await rejects(
    RunFolder.open(path, { config, resumeFromCheckpoint: 'latest' }),
    RunError,
    /step-000010: this checkpoint cannot be used/,
    /earlier/,
  );
  assert.deepEqual(await contents(path), earlier);
  const run = await RunFolder.open(path, { config, resumeFromCheckpoint: 'step-000005' });
  assert.equal(run.restored?.step, 5);
  await run.close();
});

test('only the newest checkpoints are kept when a limit is given', async () => {
  const path = newPath();
  const run = await RunFolder.open(path, { config, checkpointsTotalLimit: 2 });
  await train(run, 25);
  await run.close();
  assert.deepEqual(await readdir(join(path, 'checkpoints')), ['step-000020', 'step-000025']);
});

test('saving a step again keeps the checkpoint that is there', async () => {
  const path = newPath();
  const run = await RunFolder.open(path, { config });
  await run.saveCheckpoint(3, streams(state(3)));
  const earlier = await contents(join(path, 'checkpoints'));
  assert.equal((await run.saveCheckpoint(3, streams(state(3)))).step, 3);
  assert.deepEqual(await contents(join(path, 'checkpoints')), earlier);
  await run.close();
});

test("a stranger's folder is left alone", async () => {
  const path = newPath();
  await mkdir(path);
  await writeFile(join(path, 'thesis.doc'), 'years of work');
  await rejects(
    RunFolder.open(path, { config }),
    OutputError,
    /not empty .*holds thesis\.doc/,
    /new or empty/,
  );
  assert.deepEqual(await contents(path), new Map([['/thesis.doc', btoa('years of work')]]));

  await writeFile(join(path, 'config.json'), '{"name": "something else"}');
  await rejects(RunFolder.open(path, { config }), RunError, /config\.json: expected the settings of a run/);
  await rejects(
    RunFolder.open(join(path, 'thesis.doc'), { config }),
    OutputError,
    /thesis\.doc: this is a file/,
  );
});

test('another run, or the same without the wish to resume, is refused', async () => {
  const path = newPath();
  await trained(path, 5);
  const earlier = await contents(path);
  await rejects(RunFolder.open(path, { config }), RunError, /already there, up to step 5/, /--resume-from/);
  const changed = { ...config, learningRate: 5e-4, reward: { name: 'look-forward' }, rank: 8 };
  await rejects(
    RunFolder.open(path, { config: changed, resumeFromCheckpoint: 'latest' }),
    RunError,
    /learningRate \(there 0\.0001, now 0\.0005\)/,
    /reward\.gamma \(there 0\.9986, now not set\)/,
    /rank \(there not set, now 8\)/,
  );
  await rejects(
    RunFolder.open(path, { config, resumeFromCheckpoint: '../other/checkpoints/step-000005' }),
    RunError,
    /not a checkpoint of the run in .*it has step-000005/,
  );
  assert.deepEqual(await contents(path), earlier);
});

test('the order of the settings does not matter, and adjustable ones may change', async () => {
  const path = newPath();
  await trained(path, 5);
  const { seed, ...rest } = config;
  const longer = { ...rest, seed, steps: 900 };
  const run = await RunFolder.open(path, {
    config: longer,
    resumeFromCheckpoint: 'latest',
    adjustable: ['steps'],
  });
  await run.close();
  assert.deepEqual(await readRunConfig(path), longer);
  await rejects(readRunConfig(join(path, 'samples')), RunError, /no config\.json of a run/);
});

test('another environment does not stop a resumed run, but is told', async () => {
  const path = newPath();
  const open = (threads: number, more = {}) =>
    RunFolder.open(path, { config, environment: { node: '22', threads }, ...more });
  const first = await open(2);
  await first.saveCheckpoint(1, []);
  await first.close();
  const same = await open(2, { resumeFromCheckpoint: 'latest' });
  assert.deepEqual(same.warnings, []);
  await same.close();
  const other = await open(1, { resumeFromCheckpoint: 'latest' });
  assert.match(other.warnings.join(), /made with threads 2 \(now 1\).*not end in the very same bytes/);
  await other.close();
  assert.deepEqual((await readRunConfig(path)).environment, { node: '22', threads: 1 });
});

test('"latest" without a checkpoint starts from the beginning and says so', async () => {
  const path = newPath();
  const first = await RunFolder.open(path, { config, resumeFromCheckpoint: 'latest' });
  assert.equal(first.restored, undefined);
  assert.match(first.warnings[0]!, /no checkpoint to resume yet/);
  await first.metrics.append({ step: 1, loss: 1 });
  await first.close();
  const second = await RunFolder.open(path, { config });
  assert.equal((await readMetrics(second.metrics.path)).length, 0);
  await second.close();
});

test('two writers cannot have one run, and closing gives it free', async () => {
  const path = newPath();
  const run = await RunFolder.open(path, { config });
  await rejects(RunFolder.open(path, { config }), RunError, new RegExp(`process ${process.pid} is writing`));
  await run.close();
  await (await RunFolder.open(path, { config })).close();
  assert.ok(!(await readdir(path)).includes('run.lock'));
});

test('the lock of a dead process is taken over, that of a living or a distant one is not', async () => {
  const path = newPath();
  await trained(path, 5);
  const dead = spawn(process.execPath, ['-e', '']);
  await once(dead, 'exit');
  const open = () => RunFolder.open(path, { config, resumeFromCheckpoint: 'latest' });
  const lock = (holder: object | string) =>
    writeFile(
      join(path, 'run.lock'),
      typeof holder === 'string'
        ? holder
        : JSON.stringify({ host: hostname(), started: '', nonce: 'theirs', ...holder }),
    );
  await lock({ pid: dead.pid });
  await (await open()).close();
  // The number of a process that lives now, but was not yet started when the lock was written.
  await lock({ pid: process.pid, started: 'an-earlier-boot/12' });
  await (await open()).close();
  await lock('{"pid": 12');
  await (await open()).close();

  const living = spawn(process.execPath, ['-e', 'setInterval(() => {}, 1000)']);
  try {
    await lock({ pid: living.pid });
    await rejects(open(), RunError, new RegExp(`process ${living.pid} is writing`));
  } finally {
    living.kill('SIGKILL');
  }
  await lock({ pid: 1, host: 'another-machine' });
  await rejects(open(), RunError, /process 1 on another-machine/, /delete .*run\.lock/);
});

test('what a killed writer left of a file is cleared away, in each folder of the run', async () => {
  const path = newPath();
  await trained(path, 5);
  await mkdir(join(path, 'class_images'));
  await writeFile(join(path, 'class_images', '0000.png'), 'whole');
  const earlier = await contents(path);
  for (const name of ['.report.html', 'samples/.step-000005.png', 'class_images/.0001.png']) {
    await writeFile(join(path, `${name}.0123456789abcdef.partial`), 'half');
  }
  await (await RunFolder.open(path, { config, resumeFromCheckpoint: 'latest' })).close();
  assert.deepEqual(await contents(path), earlier);
});

test('an opening that fails leaves neither the lock nor an open file', async () => {
  const path = newPath();
  await mkdir(path);
  // The system gives the lowest free number, so a file that stayed open moves the next one up.
  const nextDescriptor = async () => {
    const file = await open(root, 'r');
    const { fd } = file;
    await file.close();
    return fd;
  };
  await (await RunFolder.open(path, { config })).close();
  await rm(join(path, 'timings.jsonl'));
  await mkdir(join(path, 'timings.jsonl'));
  const free = await nextDescriptor();
  await rejects(RunFolder.open(path, { config }), OutputError, /timings\.jsonl: a folder of that name/);
  assert.ok((await nextDescriptor()) <= free);
  assert.ok(!(await readdir(path)).includes('run.lock'));
});

test('a folder that cannot be written is an error that says so', async () => {
  const parent = newPath();
  await mkdir(parent);
  await chmod(root, 0o755);
  await chmod(parent, 0o555);
  // Root may write everywhere, so it steps down for the test.
  const user = process.geteuid?.();
  if (user === 0) process.seteuid?.(65534);
  try {
    await rejects(
      RunFolder.open(join(parent, 'run'), { config }),
      OutputError,
      /Cannot write .*permission is denied/,
    );
  } finally {
    if (user === 0) process.seteuid?.(0);
  }
});

test('killed at 25 random moments and resumed each time, a run ends in the same bytes', async () => {
  const module = new URL('../../src/training/run-folder.js', import.meta.url).href;
  const tensors = new URL('../../src/tensor/tensor.js', import.meta.url).href;
  const file = new URL('../../src/formats/safetensors-file.js', import.meta.url).href;
  const streams = new URL('../../src/formats/safetensors.js', import.meta.url).href;
  // A make-believe training whose state after each step follows from the state before it.
  const program = `
    import { RunFolder, runFiles } from ${JSON.stringify(module)};
    import { float32 } from ${JSON.stringify(tensors)};
    import { readTensor } from ${JSON.stringify(file)};
    import { tensorStream } from ${JSON.stringify(streams)};
    const run = await RunFolder.open(process.argv[1], { config: { seed: 1 }, resumeFromCheckpoint: 'latest', checkpointsTotalLimit: 3 });
    let weight = run.restored ? (await readTensor(run.restored.tensors, 'weight')).data : new Float32Array(50000);
    let sum = run.restored?.progress.sum ?? 0;
    const first = (run.restored?.step ?? 0) + 1;
    for (let step = first; step <= 110; step++) {
      // Waits for its death instead of going on, so that all kills come before the end on any machine.
      if (step === first + Number(process.argv[2])) setInterval(() => {}, 1000), await new Promise(() => {});
      console.log(step);
      weight = weight.map((w, i) => w * 0.9 + Math.sin(i * step));
      sum += weight[step];
      await run.metrics.append({ step, loss: weight[7], sum });
      await run.timings.append({ step, seconds: performance.now() });
      if (step % 9 === 0) await run.writeSample('step-' + String(step).padStart(6, '0') + '.png', new Uint8Array(weight.buffer.slice(0, 9000)));
      if (step % 2 === 0) await run.saveCheckpoint(step, [tensorStream('weight', float32([50000], weight), async () => float32([50000], weight))], { sum });
    }
    await run.write(runFiles.lora, new Uint8Array(weight.buffer));
    await run.close();`;
  const start = (path: string, mostSteps: number): ChildProcess =>
    spawn(process.execPath, ['--input-type=module', '-e', program, path, String(mostSteps)], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
  const finish = async (path: string) => {
    const child = start(path, Number.POSITIVE_INFINITY);
    child.stdout!.resume();
    const [code] = await once(child, 'exit');
    assert.equal(code, 0);
  };

  const straight = newPath();
  await finish(straight);

  const killed = newPath();
  const random = new Random(11, 'kills');
  for (let kills = 0; kills < 25; kills++) {
    const child = start(killed, 4);
    const exit = once(child, 'exit');
    // Now and then while it starts, mostly within one of the next steps: counted by what it prints, so that a busy machine gets as far as an idle one.
    if (random.int(8) === 0) await sleep(random.int(100));
    else {
      const target = 1 + random.int(4);
      let printed = 0;
      for await (const text of child.stdout!.iterator({ destroyOnReturn: false })) {
        printed += String(text).split('\n').length - 1;
        if (printed >= target) break;
      }
      await sleep(random.int(8));
    }
    child.kill('SIGKILL');
    const [code, signal] = await exit;
    assert.deepEqual([code, signal], [null, 'SIGKILL']);
  }
  await finish(killed);
  assert.deepEqual(await contents(killed), await contents(straight));
});
