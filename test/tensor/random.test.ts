import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Random } from '../../src/tensor/random.js';

const MASK = 0xffffffffn;

/** Philox 4x32-10 as the paper writes it, in whole numbers of any size. */
function philox(counter: readonly bigint[], key: readonly bigint[]): bigint[] {
  let [c0, c1, c2, c3] = counter as [bigint, bigint, bigint, bigint];
  let [k0, k1] = key as [bigint, bigint];
  for (let round = 0; round < 10; round++) {
    const p0 = 0xd2511f53n * c0;
    const p1 = 0xcd9e8d57n * c2;
    [c0, c1, c2, c3] = [(p1 >> 32n) ^ c1 ^ k0, p1 & MASK, (p0 >> 32n) ^ c3 ^ k1, p0 & MASK];
    k0 = (k0 + 0x9e3779b9n) & MASK;
    k1 = (k1 + 0xbb67ae85n) & MASK;
  }
  return [c0, c1, c2, c3];
}

/** The key of a stream: FNV-1a of its label, twice. */
function keyOf(label: string): bigint[] {
  const fnv = (start: bigint): bigint =>
    [...label].reduce((h, ch) => ((h ^ BigInt(ch.charCodeAt(0))) * 0x01000193n) & MASK, start);
  const first = fnv(0x811c9dc5n);
  return [first, fnv(first ^ 0x5bd1e995n)];
}

const words = (hex: string): bigint[] => hex.split(' ').map((w) => BigInt(`0x${w}`));

test('the reference generator passes the known-answer vectors of Random123', () => {
  const vectors = [
    ['00000000 00000000 00000000 00000000', '00000000 00000000', '6627e8d5 e169c58d bc57ac4c 9b00dbd8'],
    ['ffffffff ffffffff ffffffff ffffffff', 'ffffffff ffffffff', '408f276d 41c83b0e a20bc7c6 6d5451fd'],
    ['243f6a88 85a308d3 13198a2e 03707344', 'a4093822 299f31d0', 'd16cfe09 94fdcceb 5001e420 24126ea1'],
  ] as const;
  for (const [counter, key, answer] of vectors) {
    assert.deepEqual(philox(words(counter), words(key)), words(answer));
  }
});

test('the generator is Philox 4x32-10 over a counter, keyed by seed and stream', () => {
  const streams: [Random, string][] = [
    [new Random(0), '0|'],
    [new Random(7, 'noise', 12), '7|noise|#12'],
    [new Random(-3).derive('crop').derive(5), '-3|crop|#5'],
  ];
  for (const [random, label] of streams) {
    const key = keyOf(label);
    for (let block = 0n; block < 200n; block++) {
      const drawn = [random.bits(), random.bits(), random.bits(), random.bits()].map(BigInt);
      assert.deepEqual(drawn, philox([block, 0n, 0n, 0n], key), label);
    }
  }
});

test('a stream depends on its name alone, not on what was drawn before', () => {
  const parent = new Random(42, 'run');
  const first = parent.derive('noise', 3).normals([4, 5]);
  parent.normals([100]);
  assert.deepEqual(parent.derive('noise', 3).normals([4, 5]), first);
  assert.deepEqual(new Random(42, 'run', 'noise', 3).normals([4, 5]), first);
});

test('neighbouring seeds and streams differ, and a number is not the word that spells it', () => {
  const firstBits = [
    new Random(0),
    new Random(1),
    new Random(0, 'a'),
    new Random(0, 'b'),
    new Random(0, 1),
    new Random(0, '1'),
    new Random(0, 1, 2),
    new Random(0, 12),
    new Random(0, 'a', 'b'),
    new Random(0, 'ab'),
  ].map((r) => r.bits());
  assert.equal(new Set(firstBits).size, firstBits.length);
});

const mean = (x: ArrayLike<number>): number => Array.from(x).reduce((s, v) => s + v, 0) / x.length;

test('normals have the moments and the tails of the normal distribution', () => {
  const n = 100_000;
  const x = new Random(1, 'moments').normals([n]).data;
  const at = (k: number): number => mean(x.map((v) => v ** k));
  // Each bound is about five standard errors.
  assert.ok(Math.abs(at(1)) < 5 / Math.sqrt(n));
  assert.ok(Math.abs(at(2) - 1) < 5 * Math.sqrt(2 / n));
  assert.ok(Math.abs(at(3)) < 5 * Math.sqrt(15 / n));
  assert.ok(Math.abs(at(4) - 3) < 5 * Math.sqrt(96 / n));
  const beyond2 = x.filter((v) => Math.abs(v) > 2).length / n;
  assert.ok(Math.abs(beyond2 - 0.0455) < 0.0035);
  assert.ok(x.every(Number.isFinite));
  // Successive draws come in pairs from one radius and one angle: they must not be correlated.
  const lagged = mean(x.subarray(0, n - 1).map((v, i) => v * x[i + 1]!));
  assert.ok(Math.abs(lagged) < 5 / Math.sqrt(n));
});

test('uniforms fill their interval evenly', () => {
  const random = new Random(2, 'uniform');
  const bins = new Array<number>(16).fill(0);
  const n = 64_000;
  for (let i = 0; i < n; i++) {
    const u = random.uniform();
    assert.ok(u >= 0 && u < 1);
    bins[Math.floor(u * 16)]!++;
  }
  // Chi squared with 15 degrees of freedom exceeds 44.3 once in ten thousand seeds.
  const expected = n / 16;
  assert.ok(bins.reduce((s, b) => s + (b - expected) ** 2 / expected, 0) < 44.3);
  const shifted = new Random(3).uniforms([1000], -2, 5).data;
  assert.ok(shifted.every((v) => v >= -2 && v <= 5));
  assert.ok(Math.min(...shifted) < -1.9 && Math.max(...shifted) > 4.9);
});

test('integers and picks reach every choice', () => {
  const random = new Random(4, 'int');
  const drawn = Array.from({ length: 500 }, () => random.int(7));
  assert.deepEqual([...new Set(drawn)].sort(), [0, 1, 2, 3, 4, 5, 6]);
  assert.deepEqual(new Set(Array.from({ length: 100 }, () => random.pick(['x', 'y']))), new Set(['x', 'y']));
  assert.throws(() => random.pick([]), RangeError);
});

test('permutations hold every index once, and each order comes up', () => {
  const random = new Random(5, 'order');
  const orders = new Map<string, number>();
  for (let i = 0; i < 6000; i++) {
    const order = random.permutation(3);
    assert.deepEqual([...order].sort(), [0, 1, 2]);
    orders.set(order.join(), (orders.get(order.join()) ?? 0) + 1);
  }
  assert.equal(orders.size, 6);
  for (const count of orders.values()) assert.ok(Math.abs(count - 1000) < 150);
  assert.deepEqual(random.permutation(0), []);
});
