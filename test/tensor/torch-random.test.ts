import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { test } from 'node:test';
import { TorchRandom } from '../../src/tensor/torch-random.js';
import { goldenJson } from '../goldens.js';

interface Case {
  readonly seed: number;
  readonly draws: readonly { shape: number[]; first: number[]; sha256: string }[];
}

for (const { seed, draws } of goldenJson<Case[]>('torch-random.json')) {
  test(`torch.randn from seed ${seed}, to the bit`, () => {
    const random = new TorchRandom(seed);
    for (const { shape, first, sha256 } of draws) {
      const drawn = random.normals(shape);
      assert.deepEqual(drawn.shape, shape);
      assert.deepEqual([...drawn.data.subarray(0, first.length)], first);
      assert.equal(createHash('sha256').update(drawn.data).digest('hex'), sha256, `[${shape.join(', ')}]`);
    }
  });
}
