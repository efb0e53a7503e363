import assert from 'node:assert/strict';
import { test } from 'node:test';
import { bootstrapMean, pairedBootstrap, resample } from '../../src/evaluation/bootstrap.js';
import { goldenJson } from '../goldens.js';

interface Golden {
  readonly a: number[];
  readonly b: number[];
  readonly indices: number[][];
  readonly mean: { value: number; interval: [number, number] };
  readonly difference: { value: number; interval: [number, number]; p: number };
  readonly scipy: { mean: [number, number]; difference: [number, number]; p: number };
}
const golden = goldenJson<Golden>('evaluation/bootstrap.json');
const { a, b } = golden;

function assertNear(actual: number | undefined, expected: number, tolerance: number, what: string): void {
  assert.ok(
    actual !== undefined && Math.abs(actual - expected) <= tolerance,
    `${what}: ${actual}, expected ${expected}`,
  );
}

test('over the same resamples, interval and p-value are those of numpy', () => {
  const given = golden.indices.map((row) => Uint32Array.from(row));
  const alone = bootstrapMean(a, given);
  assertNear(alone.mean, golden.mean.value, 1e-12, 'mean');
  assertNear(alone.low, golden.mean.interval[0], 1e-12, 'low');
  assertNear(alone.high, golden.mean.interval[1], 1e-12, 'high');
  const paired = pairedBootstrap(a, b, given);
  assertNear(paired.mean, golden.difference.value, 1e-12, 'difference');
  assertNear(paired.low, golden.difference.interval[0], 1e-12, 'low');
  assertNear(paired.high, golden.difference.interval[1], 1e-12, 'high');
  assertNear(paired.p, golden.difference.p, 1e-12, 'p');
});

test("over its own resamples, they are scipy's up to the chance of drawing", () => {
  const own = resample(a.length, 20_000, 7);
  const alone = bootstrapMean(a, own);
  // The standard error of a 2.5 % quantile of 20,000 draws is about 0.02 standard deviations; these are 0.015 and 0.009.
  assertNear(alone.low, golden.scipy.mean[0], 1e-3, 'low');
  assertNear(alone.high, golden.scipy.mean[1], 1e-3, 'high');
  const paired = pairedBootstrap(a, b, own);
  assertNear(paired.low, golden.scipy.difference[0], 1e-3, 'low of the difference');
  assertNear(paired.high, golden.scipy.difference[1], 1e-3, 'high of the difference');
  assertNear(paired.p, golden.scipy.p, 6 * Math.sqrt(golden.scipy.p / 20_000) + 1e-4, 'p');
});

test('resamples follow from the seed, and hold every subject equally often', () => {
  assert.deepEqual(resample(5, 100, 3), resample(5, 100, 3));
  assert.notDeepEqual(resample(5, 100, 3), resample(5, 100, 4));
  const counts = [0, 0, 0, 0, 0];
  for (const row of resample(5, 10_000, 1)) for (const i of row) counts[i]!++;
  for (const count of counts) assert.ok(Math.abs(count - 10_000) < 500, `${counts}`);
});

test('one subject has no interval, four have no p-value, equal methods have p = 1, and p is never 0', () => {
  assert.deepEqual(bootstrapMean([0.5], resample(1, 100, 0)), { mean: 0.5 });
  assert.deepEqual(pairedBootstrap([0.5], [0.25], resample(1, 100, 0)), { mean: 0.25 });
  const four = pairedBootstrap([1, 2, 3, 4], [0, 1, 2, 3], resample(4, 100, 0));
  assert.deepEqual(four, { mean: 1, low: 1, high: 1 });
  assert.equal(pairedBootstrap(a, a, resample(a.length, 1000, 0)).p, 1);
  const far = pairedBootstrap(
    a,
    a.map((v) => v - 1),
    resample(a.length, 999, 0),
  );
  assertNear(far.p, 2 / 1000, 1e-12, 'p');
});
