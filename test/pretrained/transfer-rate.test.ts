import assert from 'node:assert/strict';
import { test } from 'node:test';
import { TransferRate } from '../../src/pretrained/transfer-rate.js';

test('the rate is that of the last ten seconds, and what was here before does not count', () => {
  let now = 0;
  const rate = new TransferRate(() => now);
  assert.deepEqual(rate.at(500, 2000), { bytesPerSecond: 0, secondsLeft: undefined });
  now = 2000;
  assert.deepEqual(rate.at(700, 2000), { bytesPerSecond: 100, secondsLeft: 13 });
  for (let second = 3; second <= 30; second++) {
    now = second * 1000;
    rate.at(700 + (second - 2) * 10, 2000);
  }
  now = 31_000;
  assert.deepEqual(rate.at(990, 2000), { bytesPerSecond: 10, secondsLeft: 101 });
});

test('a file that is begun anew does not give a negative rate', () => {
  let now = 0;
  const rate = new TransferRate(() => now);
  rate.at(500, 1000);
  now = 1000;
  assert.deepEqual(rate.at(100, 1000), { bytesPerSecond: 0, secondsLeft: undefined });
});
