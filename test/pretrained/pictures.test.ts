import assert from 'node:assert/strict';
import { after, suite, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import type { SchedulerName } from '../../src/diffusion/scheduler-config.js';
import { createNodeEngine } from '../../src/engine/node.js';
import { type DrawingRequest, StableDiffusion, TextToImage } from '../../src/index.js';
import { goldenJson, goldenPath, goldenTensors } from '../goldens.js';
import { peakSignalToNoise } from '../picture-error.js';

interface Golden {
  readonly steps: number;
  readonly negativePrompt: string;
  readonly requests: readonly DrawingRequest[];
  readonly cases: Readonly<
    Record<
      string,
      {
        readonly model: string;
        readonly resolution: number;
        readonly scheduler: SchedulerName | null;
        readonly useKarrasSigmas: boolean | null;
        readonly guidanceScale: number;
      }
    >
  >;
}

const golden = goldenJson<Golden>('pictures.json');
const expected = goldenTensors('pictures.safetensors');

suite("the pictures of diffusers' pipeline, from the same seeds", () => {
  const engine = createNodeEngine({ threads: 1 });
  after(() => engine.close());

  for (const [name, c] of Object.entries(golden.cases)) {
    test(name, async () => {
      const model = await StableDiffusion.open(fileURLToPath(goldenPath(`models/${c.model}`)));
      // Two at once, so that the batches differ from those of the goldens.
      const drawer = await TextToImage.create(model, engine, { resolution: c.resolution, batchSize: 2 });
      const pictures = await drawer.draw(golden.requests, {
        steps: golden.steps,
        negativePrompt: golden.negativePrompt,
        guidanceScale: c.guidanceScale,
        ...(c.scheduler === null ? {} : { scheduler: c.scheduler }),
        ...(c.useKarrasSigmas === null ? {} : { useKarrasSigmas: c.useKarrasSigmas }),
      });
      await drawer.release();
      const theirs = expected.get(name)!;
      assert.deepEqual([pictures.length, c.resolution, c.resolution, 3], theirs.shape);
      const size = c.resolution ** 2 * 3;
      for (const [i, { pixels }] of pictures.entries()) {
        const psnr = peakSignalToNoise(
          pixels,
          (theirs.data as Uint8Array).subarray(i * size, (i + 1) * size),
        );
        assert.ok(psnr >= 50, `picture ${i + 1}: ${psnr.toFixed(1)} dB`);
      }
    });
  }
});
