import assert from 'node:assert/strict';
import { test } from 'node:test';
import { formatBytes } from '../../src/formats/byte-size.js';

test('three digits and a unit', () => {
  const sizes: [number, string][] = [
    [0, '0 B'],
    [999, '999 B'],
    [1000, '1.00 kB'],
    [12_345, '12.3 kB'],
    [999_499, '999 kB'],
    [999_500, '1.00 MB'],
    [3_438_167_540, '3.44 GB'],
    [5e15, '5000 TB'],
  ];
  for (const [bytes, text] of sizes) assert.equal(formatBytes(bytes), text);
});
