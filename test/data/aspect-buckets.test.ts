import assert from 'node:assert/strict';
import { test } from 'node:test';
import { bucketSizes, nearestBucket, sizeName } from '../../src/data/aspect-buckets.js';
import { prepareImage } from '../../src/data/reference-images.js';
import { UsageError } from '../../src/errors.js';

const at512 = bucketSizes({ resolution: 512, shortest: 256, longest: 1024, step: 64 });

test('the buckets of 512 pixels are those that trainers of Stable Diffusion know', () => {
  const known = [
    '256x1024',
    '256x960',
    '256x896',
    '256x832',
    '320x704',
    '320x768',
    '384x640',
    '448x576',
    '512x512',
  ];
  const turned = known.slice(0, -1).map((name) => name.split('x').reverse().join('x'));
  assert.deepEqual(at512.map(sizeName).sort(), [...known, ...turned].sort());
});

test('no bucket has more pixels than the square, and all keep to the step and the bounds', () => {
  for (const [resolution, shortest, longest, step] of [
    [64, 32, 128, 16],
    [500, 200, 700, 8],
    [1024, 512, 2048, 32],
  ] as const) {
    const sizes = bucketSizes({ resolution, shortest, longest, step });
    assert.ok(sizes.length > 3);
    for (const { width, height } of sizes) {
      assert.ok(width * height <= resolution ** 2 && width % step === 0 && height % step === 0);
      assert.ok(Math.min(width, height) >= shortest && Math.max(width, height) <= longest);
      assert.ok(sizes.some((other) => other.width === height && other.height === width));
    }
  }
  assert.throws(() => bucketSizes({ resolution: 512, shortest: 600, longest: 1024, step: 64 }), UsageError);
});

test('a picture goes to the bucket of the nearest aspect, tall and wide alike', () => {
  const nearest = (width: number, height: number) => sizeName(nearestBucket(at512, { width, height }));
  assert.equal(nearest(3000, 3000), '512x512');
  assert.equal(nearest(4000, 3000), '576x448');
  assert.equal(nearest(3000, 4000), '448x576');
  assert.equal(nearest(1920, 1080), '640x384');
  assert.equal(nearest(9000, 1000), '1024x256');
});

test('a picture is scaled until it covers its bucket, and its middle is kept', async () => {
  // Columns 0 … 39 of brightness 6 x column; at half the size, 20 columns of which the middle 16 are kept.
  const [width, height] = [40, 16];
  const pixels = new Uint8Array(3 * width * height).map((_, i) => 6 * (Math.floor(i / 3) % width));
  const image = { path: 'x', width, height, originalSize: [height, width], pixels } as const;
  const { shape, data } = (await prepareImage(image, { size: { width: 16, height: 8 } })).pixels;
  assert.deepEqual(shape, [3, 8, 16]);
  for (let x = 1; x < 15; x++) {
    const expected = (6 * (2 * (x + 2) + 0.5)) / 127.5 - 1;
    assert.ok(Math.abs(data[x]! - expected) < 0.03, `column ${x}: ${data[x]} is not about ${expected}`);
  }
});
