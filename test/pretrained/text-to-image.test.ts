import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Engine } from '../../src/engine/engine.js';
import { createNodeEngine } from '../../src/engine/node.js';
import { StableDiffusion } from '../../src/pretrained/stable-diffusion.js';
import { drawnAtOnce, TextToImage } from '../../src/pretrained/text-to-image.js';
import { tinyModel } from '../workflows/tiny-run.js';

test('without guidance the denoiser sees each picture once, and draws what the conditional half would', async () => {
  const own = createNodeEngine({ threads: 1 });
  const rows: number[] = [];
  const engine: Engine = {
    compile(graph, options) {
      const sample = graph.inputs.find(({ name }) => name === 'sample');
      if (sample) rows.push(sample.shape[0]!);
      return own.compile(graph, options);
    },
    state: (tensors) => own.state(tensors),
    close: () => own.close(),
  };
  const drawer = await TextToImage.create(await StableDiffusion.open(tinyModel), engine, { batchSize: 2 });
  const requests = [1, 2].map((seed) => ({ prompt: 'a backpack', seed }));
  const draw = (guidanceScale: number) => drawer.draw(requests, { steps: 3, guidanceScale });
  const plain = await draw(1);
  assert.deepEqual(rows, [2]);
  // As near to 1 as it can be without being it, guidance computes both halves and uses the conditional one.
  const guided = await draw(1 + 1e-7);
  assert.deepEqual(rows, [2, 4]);
  for (const [i, { pixels }] of plain.entries()) {
    assert.ok(pixels.every((v, p) => Math.abs(v - guided[i]!.pixels[p]!) <= 1));
  }
  assert.ok(
    (await draw(7.5))[0]!.pixels.some((v, p) => Math.abs(v - plain[0]!.pixels[p]!) > 1),
    'guidance matters',
  );
  await drawer.release();
  await engine.close();
});

test('large pictures are drawn one by one', () => {
  assert.deepEqual([64, 256, 264, 512, 1024].map(drawnAtOnce), [4, 4, 3, 1, 1]);
});

test('in turn, one program is held at a time, and the pictures are the same', async () => {
  const { engine, most } = countingEngine();
  const model = await StableDiffusion.open(tinyModel);
  const together = await TextToImage.create(model, engine, { batchSize: 2 });
  const inTurn = await TextToImage.create(model, engine, { batchSize: 2, inTurn: true });
  assert.deepEqual([together.share, inTurn.share], [2, 8]);
  const requests = ['a backpack', 'a cup', 'a backpack on a table'].map((prompt, seed) => ({ prompt, seed }));
  const draw = (drawer: TextToImage) => drawer.draw(requests, { steps: 2, negativePrompt: 'rain' });
  const wanted = await draw(together);
  assert.equal(most(), 4, 'with the text encoder of the other');
  await together.release();
  most();
  for (let call = 0; call < 2; call++) {
    assert.deepEqual(await draw(inTurn), wanted);
    assert.equal(most(), 1);
  }
  for (const guidanceScale of [1, 7.5]) {
    const visited = (await inTurn.visit(requests, { steps: 2, scheduler: 'ddim', guidanceScale })).flat();
    assert.equal(visited.length, 6);
    assert.equal((await inTurn.predict(visited)).length, 6);
    assert.equal(most(), 1);
  }
  await inTurn.release();
  await engine.close();
});

/** An engine, and the most programs that it has held since that was asked last. */
function countingEngine(): { engine: Engine; most: () => number } {
  const own = createNodeEngine({ threads: 1 });
  let held = 0;
  let highest = 0;
  const engine: Engine = {
    async compile(graph, options) {
      const program = await own.compile(graph, options);
      highest = Math.max(highest, ++held);
      const release = () => {
        held--;
        return program.release();
      };
      return { ...program, release };
    },
    state: (tensors) => own.state(tensors),
    close: () => own.close(),
  };
  const most = (): number => {
    const was = highest;
    highest = held;
    return was;
  };
  return { engine, most };
}
