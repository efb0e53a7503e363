import assert from 'node:assert/strict';
import { access } from 'node:fs/promises';
import { join } from 'node:path';
import { before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { EngineError } from '../../src/errors.js';
import { adamw } from '../../src/optim/adamw.js';
import { StableDiffusion } from '../../src/pretrained/stable-diffusion.js';
import { allWeights } from '../../src/pretrained/trainable.js';
import { elementCount } from '../../src/tensor/tensor.js';
import {
  drawsInTurn,
  estimateMemory,
  type MemoryNeeds,
  requireMemory,
} from '../../src/workflows/memory-estimate.js';
import { estimatePersonalisation } from '../../src/workflows/personalise.js';
import { shippedModelPath } from '../../src/workflows/shipped.js';
import { goldenPath } from '../goldens.js';
import { temporaryFolder } from '../temporary-folder.js';
import { tinyRun, writePictures } from './tiny-run.js';

let model: StableDiffusion;
before(async () => {
  model = await StableDiffusion.open(shippedModelPath());
});

function needsOf(change: Partial<MemoryNeeds['step']> = {}, sides = [256]): MemoryNeeds {
  return {
    step: {
      objective: { method: 'dpg look-forward', gamma: 0.9986, criticLearningRate: 0.01 },
      priorLossWeight: 1,
      trainable: { lora: { rank: 8, alpha: 8, textEncoder: false } },
      instances: 2,
      priors: 2,
      resolution: 256,
      gradientAccumulationSteps: 1,
      gradientCheckpointing: false,
      maxGradNorm: 1,
      ema: false,
      optimizer: adamw(),
      ...change,
    },
    sizes: sides.map((width) => ({ width, height: (256 * 256) / width })),
    guided: true,
    encodesOnce: true,
  };
}
const training = (needs: MemoryNeeds): number =>
  estimateMemory(model, needs).phases.find(({ name }) => name === 'training')!.total;

test('what takes more memory is estimated to take more', () => {
  const plain = training(needsOf());
  assert.ok(training(needsOf({ gradientCheckpointing: true })) < plain);
  assert.ok(training(needsOf({ instances: 1, priors: 1 })) < plain);
  assert.ok(training(needsOf({ instances: 4, priors: 4 })) > plain);
  assert.ok(training(needsOf({ trainable: { lora: { rank: 8, alpha: 8, textEncoder: true } } })) > plain);
  assert.ok(training(needsOf({}, [256, 128, 512])) > plain, 'each shape has a step of its own');
  assert.equal(training(needsOf({}, [256, 256])), plain);
  assert.ok(training(needsOf({ rollouts: true })) > plain, 'what draws roll-outs stands beside it');
  const drawn = (guided: boolean) => estimateMemory(model, { ...needsOf(), guided }).phases[0]!.total;
  assert.ok(drawn(false) < drawn(true));
});

test('all weights: an update in pieces takes less, and has moments and averages beside what the step holds', () => {
  const whole = { trainable: allWeights(false), inPieces: false };
  const pieces = { ...whole, inPieces: true };
  assert.ok(training(needsOf(pieces)) < training(needsOf(whole)));
  const weights = model
    .variables(pieces.trainable)
    .reduce((sum, { shape }) => sum + 4 * elementCount(shape), 0);
  const moments = (change: Partial<MemoryNeeds['step']>): number =>
    estimateMemory(model, needsOf(change))
      .phases.find(({ name }) => name === 'training')!
      .parts.find(({ what }) => what === 'moments and averages')!.bytes / weights;
  assert.equal(moments(pieces), 2);
  assert.equal(moments({ ...pieces, ema: true }), 3);
  assert.equal(moments({ ...pieces, gradientAccumulationSteps: 2 }), 2);
});

test('what the machine cannot hold is refused with the estimate and what takes less', () => {
  const needs = needsOf({ instances: 8, priors: 8 }, [256, 128]);
  // Where nothing is left, everything takes turns.
  const { peak } = estimateMemory(model, needs, 0);
  const require = (wanted: MemoryNeeds, available: number): void =>
    requireMemory(model, wanted, estimateMemory(model, wanted, available));
  require(needs, peak.total);
  assert.throws(
    () => require(needs, peak.total - 1),
    (error) => {
      assert.ok(error instanceof EngineError);
      const said = error.message;
      assert.match(
        said,
        new RegExp(`needs about ${(peak.total / 2 ** 30).toFixed(2)} GiB of memory while training`),
      );
      for (const flag of [
        '--gradient-checkpointing',
        '--train-batch-size 1',
        '--no-enable-bucket',
        '--resolution 192',
      ])
        assert.match(said, new RegExp(`${flag} \\(about \\d+\\.\\d+ GiB\\)`));
      assert.match(said, /--no-memory-check/);
      return true;
    },
  );
  const least = needsOf({ instances: 1, priors: 1, gradientCheckpointing: true });
  assert.throws(
    () => require(least, 2 ** 20),
    /^EngineError: (?!.*--gradient-checkpointing)(?!.*--train-batch-size).*--resolution 192 \(about .* GiB, still too much\)/,
  );
});

test('with gradient checkpointing and where memory is short, programs take turns, and need less then', () => {
  const inTurn = ['reading prompts', 'drawing', 'decoding what was drawn', 'encoding pictures', 'training'];
  const estimate = (needs: MemoryNeeds, available = 2 ** 40) => {
    const { phases, peak, ...how } = estimateMemory(model, needs, available);
    const most = (names: readonly string[]): number =>
      Math.max(...phases.filter(({ name }) => names.includes(name)).map(({ total }) => total));
    return {
      names: phases.map(({ name }) => name),
      how: [how.drawsInTurn, how.encodesAhead],
      drawing: most(inTurn.slice(0, 3)),
      training: most(inTurn.slice(3)),
      peak: peak.total,
    };
  };
  const checkpointed = needsOf({ gradientCheckpointing: true });
  const together = estimate(needsOf());
  assert.deepEqual(
    [together.names, together.how],
    [
      ['drawing', 'training'],
      [false, false],
    ],
  );
  assert.deepEqual([estimate(checkpointed).names, estimate(checkpointed).how], [inTurn, [true, true]]);
  const [less, more] = [together.drawing, together.training].sort((a, b) => a - b) as [number, number];
  const short = estimate(needsOf(), less - 1);
  assert.deepEqual([short.names, short.how], [inTurn, [true, true]]);
  assert.ok(short.drawing < together.drawing && short.training < together.training);
  // Each by itself: only what does not fit is taken apart.
  const between = estimate(needsOf(), more - 1);
  assert.deepEqual(between.how, [together.drawing === more, together.training === more]);
  const cropped = estimate({ ...checkpointed, encodesOnce: false });
  assert.deepEqual(cropped.how, [true, false], 'random crops are encoded between the steps');
  assert.ok(cropped.training > estimate(checkpointed).training);
  const drawn = { resolution: 256, adaptation: {}, guided: true };
  assert.equal(drawsInTurn(model, drawn, 2 ** 40), false);
  assert.equal(drawsInTurn(model, drawn, together.drawing / 4), true);
});

test('rewards count with their networks, the decoder and the turn of the critic', async (t) => {
  const folder = await temporaryFolder(t);
  const images = await writePictures(join(folder, 'images'));
  const parts = async (reward: string): Promise<Map<string, number>> => {
    const { phases } = await estimatePersonalisation({
      ...tinyRun(images, join(folder, 'run')),
      reward,
    });
    const { parts } = phases.find(({ name }) => name === 'training')!;
    return new Map(parts.map(({ what, bytes }) => [what, bytes]));
  };
  const encoder = fileURLToPath(goldenPath('encoders/clip-tiny'));
  const [latents, likeness, text, outside] = await Promise.all(
    ['look-forward', `clip-image:${encoder}`, `clip-text:${encoder}`, 'jpeg-size'].map(parts),
  );
  const step = [...latents!.keys()].find((what) => /^training step, .*: weights$/.test(what))!;
  const references = [...likeness!.keys()].filter((what) => what.startsWith('photographs in the eyes of'));
  assert.equal(references.length, 3);
  for (const seen of [likeness!, text!, outside!]) assert.ok(seen.get(step)! > latents!.get(step)!);
  assert.ok(likeness!.get(step)! > outside!.get(step)!, 'the encoder comes on top of the decoder');
  assert.ok([...outside!.keys()].some((what) => what.startsWith("critic's turn")));
  for (const seen of [latents!, likeness!, text!]) {
    assert.ok(![...seen.keys()].some((what) => what.startsWith("critic's turn")));
  }
});

test('an estimate writes nothing', async (t) => {
  const folder = await temporaryFolder(t);
  const output = join(folder, 'run');
  const { phases, peak } = await estimatePersonalisation(
    tinyRun(await writePictures(join(folder, 'images')), output),
  );
  assert.deepEqual(
    phases.map(({ name }) => name),
    ['drawing', 'training'],
  );
  for (const { parts, total } of phases) {
    assert.equal(
      parts.reduce((sum, { bytes }) => sum + bytes, 0),
      total,
    );
    assert.ok(total <= peak.total);
  }
  await assert.rejects(access(output));
});
