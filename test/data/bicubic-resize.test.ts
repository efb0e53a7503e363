import assert from 'node:assert/strict';
import { test } from 'node:test';
import { resizeBicubic } from '../../src/data/bicubic-resize.js';
import { goldenTensors } from '../goldens.js';

const golden = goldenTensors('evaluation/pictures.safetensors');

const bytesOf = (name: string): Uint8Array => golden.get(name)!.data as unknown as Uint8Array;

for (const name of [...golden.keys()].filter((key) => key.startsWith('resized/'))) {
  test(`${name} is Pillow's to the byte`, () => {
    const [height, width] = golden.get('references/rex/0')!.shape as [number, number];
    const [h, w] = golden.get(name)!.shape as [number, number];
    const resized = resizeBicubic({ width, height, pixels: bytesOf('references/rex/0') }, w, h);
    assert.deepEqual([resized.width, resized.height], [w, h]);
    assert.deepEqual(Buffer.from(resized.pixels), Buffer.from(bytesOf(name)));
  });
}
