import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { isHeldOut } from '../../src/data/world/held-out.js';
import { subjectKey } from '../../src/data/world/subject.js';
import { unseenSubjects, worldSubject } from '../../src/data/world/views.js';
import type { Engine } from '../../src/engine/engine.js';
import { createNodeEngine } from '../../src/engine/node.js';
import { CancelledError } from '../../src/errors.js';
import { Graph } from '../../src/onnx/graph.js';
import { openClip, openImageEncoder } from '../../src/pretrained/image-encoder.js';
import { Random } from '../../src/tensor/random.js';
import { trainClip } from '../../src/training/clip-training.js';
import { trainDino } from '../../src/training/dino-training.js';
import type { TrainingEvent } from '../../src/training/events.js';

let root: string;
let engine: Engine;
before(async () => {
  root = await mkdtemp(join(tmpdir(), 'portrayal-encoders-'));
  engine = createNodeEngine({ threads: 1 });
});
after(async () => {
  await engine.close();
  await rm(root, { recursive: true, force: true });
});

type Train = (
  name: string,
  more?: { onEvent?: (e: TrainingEvent) => void; signal?: AbortSignal },
) => Promise<void>;

const dino: Train = (name, more) =>
  trainDino({
    output: join(root, name),
    work: join(root, `${name}-work`),
    engine,
    seed: 4,
    subjects: 5,
    views: 2,
    steps: 3,
    alikeSteps: 2,
    batchSize: 4,
    checkpointingSteps: 100,
    ...more,
  });
const clip: Train = (name, more) =>
  trainClip({
    output: join(root, name),
    work: join(root, `${name}-work`),
    engine,
    seed: 4,
    examples: 6,
    steps: 3,
    batchSize: 4,
    checkpointingSteps: 100,
    ...more,
  });

for (const [kind, train] of [
  ['dino', dino],
  ['clip', clip],
] as const) {
  test(`${kind}: one that is stopped and goes on ends in the same bytes`, async () => {
    await train(`${kind}-whole`);
    const stop = new AbortController();
    const onEvent = (event: TrainingEvent) => {
      if (event.kind === 'progress' && event.step === 2) stop.abort();
    };
    await assert.rejects(train(`${kind}-stopped`, { onEvent, signal: stop.signal }), CancelledError);
    await train(`${kind}-stopped`);
    const [whole, stopped] = await Promise.all(
      ['whole', 'stopped'].map((name) => readFile(join(root, `${kind}-${name}`, 'model.safetensors'))),
    );
    assert.ok(whole!.equals(stopped!));
  });
}

test('what was trained opens as an encoder, and sees a difference between pictures', async () => {
  for (const name of ['dino-whole', 'clip-whole']) {
    const encoder = await openImageEncoder(join(root, name));
    const graph = new Graph();
    const pixels = graph.input('pixels', 'float32', [2, 3, 64, 64]);
    graph.output('embedding', encoder.embed(pixels));
    const program = await engine.compile(graph);
    const { embedding } = await program.run({ pixels: new Random(1).normals([2, 3, 64, 64]) });
    await program.release();
    const dim = embedding!.shape[1]!;
    const data = embedding!.data as Float32Array;
    assert.ok(data.every(Number.isFinite));
    const apart = data.slice(0, dim).some((x, i) => Math.abs(x - data[dim + i]!) > 1e-4);
    assert.ok(apart, `${name} gives two pictures one embedding`);
  }
  const { embedText } = await openClip(join(root, 'clip-whole'));
  const [a, b] = [await embedText(engine, 'a red dog'), await embedText(engine, 'a blue bowl on the beach')];
  assert.equal(a.shape[1], 64);
  assert.ok(a.data.some((x, i) => Math.abs(x - b.data[i]!) > 1e-4));
});

test('unseen subjects are new, different from each other, and never held out', () => {
  const seen = new Set(Array.from({ length: 300 }, (_, i) => subjectKey(worldSubject(1, i))));
  // With the same seed the first ones have all been seen.
  const unseen = unseenSubjects(1, 20, seen);
  assert.equal(new Set(unseen.map(subjectKey)).size, 20);
  for (const subject of unseen) assert.ok(!seen.has(subjectKey(subject)) && !isHeldOut(subject));
});
