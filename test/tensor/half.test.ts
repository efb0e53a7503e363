import assert from 'node:assert/strict';
import { test } from 'node:test';
import { decodeBfloat16, decodeHalf, encodeHalf } from '../../src/tensor/half.js';
import { float32, tensor, toFloat32 } from '../../src/tensor/tensor.js';
import { goldenTensors } from '../goldens.js';

const patterns = Uint16Array.from({ length: 65536 }, (_, i) => i);
const isNan = (bits: number): boolean => (bits & 0x7fff) > 0x7c00;

test('all 65536 half patterns survive the way to float32 and back; NaNs stay NaNs', () => {
  const back = encodeHalf(decodeHalf(patterns));
  for (const bits of patterns) {
    if (isNan(bits)) assert.ok(isNan(back[bits]!), `pattern ${bits}`);
    else assert.equal(back[bits], bits);
  }
});

test('half values are the sums of their bits', () => {
  const values = decodeHalf(
    Uint16Array.of(0x0000, 0x8000, 0x3c00, 0xc000, 0x7bff, 0x0001, 0x03ff, 0x0400, 0x7c00),
  );
  assert.deepEqual(
    [...values],
    [0, -0, 1, -2, 65504, 2 ** -24, 1023 * 2 ** -24, 2 ** -14, Number.POSITIVE_INFINITY],
  );
  assert.ok(Object.is(values[1], -0));
});

test('float32 is rounded to half as PyTorch rounds it', () => {
  const golden = goldenTensors('half.safetensors');
  const values = golden.get('values')!.data as Float32Array;
  const expected = golden.get('halves')!.data as Uint16Array;
  assert.ok(values.length > 2000);
  const rounded = encodeHalf(values);
  for (let i = 0; i < values.length; i++) {
    if (isNan(expected[i]!)) assert.ok(isNan(rounded[i]!), `${values[i]}`);
    else assert.equal(rounded[i], expected[i], `${values[i]}`);
  }
});

test('bfloat16 is the upper half of float32', () => {
  const golden = goldenTensors('half.safetensors');
  const bits = golden.get('bfloat16 patterns')!.data as Uint16Array;
  assert.deepEqual(decodeBfloat16(bits), golden.get('bfloat16 values')!.data);
});

test('every element type becomes float32', () => {
  const ones = [
    tensor('float32', [1], Float32Array.of(1)),
    tensor('float16', [1], Uint16Array.of(0x3c00)),
    tensor('bfloat16', [1], Uint16Array.of(0x3f80)),
    tensor('int64', [1], BigInt64Array.of(1n)),
    tensor('int32', [1], Int32Array.of(1)),
    tensor('uint8', [1], Uint8Array.of(1)),
    tensor('bool', [1], Uint8Array.of(1)),
  ];
  for (const one of ones) assert.deepEqual(toFloat32(one), float32([1], [1]), one.dtype);
});

test('a tensor whose data does not fill its shape is refused', () => {
  assert.throws(() => tensor('float32', [2, 3], new Float32Array(5)), RangeError);
  assert.equal(tensor('float32', [], Float32Array.of(4)).shape.length, 0);
});
