import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { openSafetensors, writeSafetensorsFile } from '../../src/formats/safetensors-file.js';
import type { WeightSet } from '../../src/pretrained/weights.js';
import { digestWeights } from '../../src/pretrained/weights-digest.js';
import { float32, type Tensor } from '../../src/tensor/tensor.js';
import { temporaryFolder } from '../temporary-folder.js';

const SIZE = 10_000;

function weights(): Map<string, Tensor<'float32'>> {
  return new Map([
    [
      'b',
      float32(
        [SIZE],
        Float32Array.from({ length: SIZE }, (_, i) => i),
      ),
    ],
    ['a', float32([2, 3], [1, 2, 3, 4, 5, 6])],
  ]);
}

test('the digest knows the weights and not the files that they lie in', async (t) => {
  const folder = await temporaryFolder(t);
  let files = 0;
  const digest = async (...parts: Map<string, Tensor>[]): Promise<string> => {
    const set = new Map();
    for (const part of parts) {
      const path = join(folder, `${files++}.safetensors`);
      await writeSafetensorsFile(path, part, new Map([['written', String(files)]]));
      const file = await openSafetensors(path);
      for (const entry of file.entries.values()) set.set(entry.name, { file, entry });
    }
    return digestWeights({ component: 'unet', folder, weights: set } satisfies WeightSet);
  };
  const whole = await digest(weights());
  assert.match(whole, /^[0-9a-f]{32}$/);
  const { a, b } = Object.fromEntries(weights()) as Record<string, Tensor>;
  assert.equal(await digest(new Map([['a', a!]]), new Map([['b', b!]])), whole, 'in shards');

  const changed = (change: (all: Map<string, Tensor<'float32'>>) => void): Promise<string> => {
    const all = weights();
    change(all);
    return digest(all);
  };
  const others = [
    await changed((all) => all.get('a')!.data.set([7], 5)),
    await changed((all) => all.get('b')!.data.set([7], 0)),
    await changed((all) => all.get('b')!.data.set([7], SIZE / 2)),
    await changed((all) => all.get('b')!.data.set([7], SIZE - 1)),
    await changed((all) => all.set('a', float32([3, 2], all.get('a')!.data))),
    await changed((all) => all.set('c', all.get('a')!)),
    await changed((all) => all.delete('a')),
  ];
  assert.equal(new Set([whole, ...others]).size, 8);
});
