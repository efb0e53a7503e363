import assert from 'node:assert/strict';
import { readdir, readFile, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import type { ReferenceImage } from '../../src/data/reference-images.js';
import { LatentStore, type StoredView } from '../../src/training/latent-store.js';
import { temporaryFolder } from '../temporary-folder.js';

const picture = (value: number): ReferenceImage => ({
  path: 'a.png',
  width: 2,
  height: 1,
  originalSize: [1, 2],
  pixels: Uint8Array.of(value, 1, 2, 3, 4, 5),
});
const view: StoredView = { image: picture(0), size: { width: 4, height: 2 }, flip: false };
const shapeOf = () => [1, 1, 2];

test('latents are encoded once for a picture, a view and an encoder, and again for any other', async (t) => {
  const folder = join(await temporaryFolder(t), 'latents');
  let encoded = 0;
  const encode = async () => {
    encoded++;
    return { mean: Float32Array.of(encoded, 2), logvar: Float32Array.of(-encoded, 0.1) };
  };
  const get = async (of: Partial<StoredView> = {}, by = 'vae 1') =>
    (await LatentStore.open(folder, by, shapeOf)).get({ ...view, ...of }, encode);

  const first = await get();
  assert.deepEqual(await get(), first);
  assert.deepEqual(
    await get({ image: { ...picture(0), path: 'moved.png' } }),
    first,
    'its place does not matter',
  );
  assert.equal(encoded, 1);
  await get({ image: picture(1) });
  await get({ image: { ...picture(0), width: 1, height: 2 } });
  await get({ flip: true });
  await get({ size: { width: 2, height: 4 } });
  await get({}, 'vae 2');
  assert.equal(encoded, 6);
  assert.equal((await readdir(folder)).length, 6);
});

test('a damaged file, or one of another shape, is encoded anew and mended', async (t) => {
  const folder = join(await temporaryFolder(t), 'latents');
  let encoded = 0;
  const encode = async () => {
    encoded++;
    return { mean: Float32Array.of(1, 2), logvar: Float32Array.of(3, 4) };
  };
  const store = await LatentStore.open(folder, 'vae', shapeOf);
  const good = await store.get(view, encode);
  const path = join(folder, (await readdir(folder))[0]!);
  const bytes = await readFile(path);
  const nan = Buffer.from(bytes);
  nan.writeFloatLE(Number.NaN, nan.length - 4);
  for (const damage of [
    () => truncate(path, bytes.length - 3),
    () => writeFile(path, 'not safetensors'),
    () => writeFile(path, nan),
  ]) {
    await damage();
    assert.deepEqual(await store.get(view, encode), good);
    assert.deepEqual(await readFile(path), bytes);
  }
  assert.equal(encoded, 4);
});
