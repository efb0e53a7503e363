import assert from 'node:assert/strict';
import { readFile, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import fc from 'fast-check';
import { ModelError } from '../../src/errors.js';
import {
  encodeSafetensors,
  firstNonFinite,
  headerLength,
  parseHeader,
  readSafetensors,
} from '../../src/formats/safetensors.js';
import {
  assertFinite,
  openSafetensors,
  readSafetensorsFile,
  readTensor,
  writeSafetensorsFile,
} from '../../src/formats/safetensors-file.js';
import { bytesPerElement, type DType, storageConstructors } from '../../src/tensor/dtype.js';
import { elementCount, float32, int64, type Tensor, tensor } from '../../src/tensor/tensor.js';
import { goldenPath, goldenTensors } from '../goldens.js';
import { temporaryFolder } from '../temporary-folder.js';

/** A file of the given header text and data, whatever they are. */
function file(header: string | Uint8Array, data = 0, declared?: bigint): Uint8Array {
  const json = typeof header === 'string' ? new TextEncoder().encode(header) : header;
  const bytes = new Uint8Array(8 + json.length + data);
  new DataView(bytes.buffer).setBigUint64(0, declared ?? BigInt(json.length), true);
  bytes.set(json, 8);
  return bytes;
}

const entry = (dtype: string, shape: unknown, offsets: unknown): object => ({
  dtype,
  shape,
  data_offsets: offsets,
});
const f32 = (n: number, begin: number): object => entry('F32', [n], [begin, begin + 4 * n]);
const one = (value: unknown, data = 0): Uint8Array => file(JSON.stringify({ w: value }), data);

const malformed: readonly { what: string; bytes: Uint8Array; message: RegExp }[] = [
  { what: 'nothing', bytes: new Uint8Array(0), message: /it has 0 bytes.*cut short/ },
  { what: 'less than a prefix', bytes: new Uint8Array(5), message: /it has 5 bytes/ },
  { what: 'an empty header', bytes: file('', 8), message: /not valid JSON/ },
  {
    what: 'a header longer than the file',
    bytes: file('{}', 0, 1000n),
    message: /header has 1000 bytes, but the whole file has 10/,
  },
  {
    what: 'a header over the bound',
    bytes: file('{}', 0, 100_000_001n),
    message: /at most 100000000 are allowed/,
  },
  {
    what: 'the largest length there is',
    bytes: file('{}', 0, 2n ** 64n - 1n),
    message: /18446744073709551615/,
  },
  {
    what: 'invalid UTF-8',
    bytes: file(new Uint8Array([0x7b, 0x22, 0xff, 0x22, 0x7d])),
    message: /not UTF-8/,
  },
  { what: 'invalid JSON', bytes: file('{"w":}'), message: /not valid JSON/ },
  { what: 'a header that is a list', bytes: file('[]'), message: /not a JSON object/ },
  {
    what: 'metadata that is not text',
    bytes: file('{"__metadata__":{"a":1}}'),
    message: /"__metadata__" must be an object of texts/,
  },
  { what: 'an entry that is a number', bytes: one(5), message: /tensor "w" is not described by an object/ },
  {
    what: 'an fp8 tensor',
    bytes: one(entry('F8_E4M3', [2], [0, 2]), 2),
    message: /tensor "w" has the type "F8_E4M3".*supported: F32, F16, BF16, I64, I32, U8, BOOL/,
  },
  { what: 'a double', bytes: one(entry('F64', [1], [0, 8]), 8), message: /"F64"/ },
  { what: 'no type', bytes: one({ shape: [1], data_offsets: [0, 4] }, 4), message: /has the type null/ },
  {
    what: 'a type from the prototype',
    bytes: one(entry('constructor', [1], [0, 4]), 4),
    message: /"constructor"/,
  },
  { what: 'no shape', bytes: one({ dtype: 'F32', data_offsets: [0, 4] }, 4), message: /has the shape null/ },
  {
    what: 'a negative dimension',
    bytes: one(entry('F32', [-1, -1], [0, 4]), 4),
    message: /has the shape \[-1,-1\]/,
  },
  { what: 'a fractional dimension', bytes: one(entry('F32', [0.5, 2], [0, 4]), 4), message: /has the shape/ },
  {
    what: 'dimensions whose product overflows',
    bytes: one(entry('F32', [2 ** 40, 2 ** 40], [0, 4]), 4),
    message: /tensor "w" has 4 bytes, but F32\[1099511627776, 1099511627776\]/,
  },
  { what: 'no offsets', bytes: one({ dtype: 'F32', shape: [1] }, 4), message: /has the data_offsets null/ },
  { what: 'one offset', bytes: one(entry('F32', [1], [0]), 4), message: /expected \[begin, end\]/ },
  {
    what: 'offsets that run backwards',
    bytes: one(entry('F32', [1], [4, 0]), 4),
    message: /data_offsets \[4,0\]/,
  },
  { what: 'a negative offset', bytes: one(entry('F32', [1], [-4, 0]), 4), message: /data_offsets \[-4,0\]/ },
  {
    what: 'an offset past the end',
    bytes: one(f32(2, 0), 4),
    message: /tensor "w" ends at byte \d+, but the file has \d+.*cut short/,
  },
  {
    what: 'too few bytes for the shape',
    bytes: one(entry('F32', [2], [0, 4]), 4),
    message: /has 4 bytes, but F32\[2\] needs 8/,
  },
  {
    what: 'bytes for another type',
    bytes: one(entry('F16', [2], [0, 8]), 8),
    message: /has 8 bytes, but F16\[2\] needs 4/,
  },
  {
    what: 'overlapping tensors',
    bytes: file(JSON.stringify({ a: f32(2, 0), b: f32(2, 4) }), 12),
    message: /tensor "b" overlaps "a"/,
  },
  {
    what: 'the same bytes twice',
    bytes: file(JSON.stringify({ a: f32(1, 0), b: f32(1, 0) }), 4),
    message: /overlaps/,
  },
  {
    what: 'a hole',
    bytes: file(JSON.stringify({ a: f32(1, 0), b: f32(1, 8) }), 12),
    message: /tensor "b" leaves 4 unused bytes after "a"/,
  },
  {
    what: 'a hole at the start',
    bytes: one(f32(1, 4), 8),
    message: /leaves 4 unused bytes after the header/,
  },
  { what: 'bytes to spare', bytes: one(f32(1, 0), 6), message: /has \d+ bytes, but its header describes/ },
  { what: 'bytes and no tensors', bytes: file('{}', 4), message: /but its header describes 10/ },
  {
    what: 'a name twice',
    bytes: file(
      '{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"\\u0077":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
      4,
    ),
    message: /names "w" twice/,
  },
  {
    what: 'a field twice',
    bytes: file('{"w":{"dtype":"F32","dtype":"F16","shape":[1],"data_offsets":[0,4]}}', 4),
    message: /names "dtype" twice/,
  },
  {
    what: 'a Git LFS pointer',
    bytes: new TextEncoder().encode('version https://git-lfs.github.com/spec/v1\noid sha256:00'),
    message: /Git LFS pointer.*git lfs pull/,
  },
  {
    what: 'a zip archive',
    bytes: new TextEncoder().encode('PK\u0003\u0004 archive/data.pkl'),
    message: /pickle/,
  },
  {
    what: 'a web page',
    bytes: new TextEncoder().encode('<!DOCTYPE html><html></html>'),
    message: /web page/,
  },
];

for (const { what, bytes, message } of malformed) {
  test(`malformed: ${what}`, async (t) => {
    const check = (error: unknown): boolean => {
      assert.ok(error instanceof ModelError, String(error));
      assert.match(error.message, message);
      assert.ok(error.message.includes('bad.safetensors'), error.message);
      return true;
    };
    assert.throws(() => readSafetensors(bytes, 'bad.safetensors'), check);
    const path = join(await temporaryFolder(t), 'bad.safetensors');
    await writeFile(path, bytes);
    await assert.rejects(openSafetensors(path), check);
  });
}

test('no header makes the parser throw anything but a ModelError', () => {
  const names = fc.constantFrom('F32', 'F16', 'I64', 'F64', 'BOOL', '', 'toString');
  const size = fc.oneof(fc.integer({ min: -1, max: 20 }), fc.double(), fc.constant(null), fc.constant('4'));
  const value = fc.record(
    { dtype: names, shape: fc.array(size, { maxLength: 3 }), data_offsets: fc.array(size, { maxLength: 3 }) },
    { requiredKeys: [] },
  );
  const header = fc.oneof(
    fc.json(),
    fc.dictionary(fc.string(), value).map((v) => JSON.stringify(v)),
  );
  fc.assert(
    fc.property(header, fc.nat(40), (text, data) => {
      try {
        const contents = readSafetensors(file(text, data), 'x');
        for (const t of contents.tensors.values()) assert.equal(t.data.length, elementCount(t.shape));
      } catch (error) {
        if (!(error instanceof ModelError)) throw error;
      }
    }),
    { numRuns: 500 },
  );
});

const anyTensor: fc.Arbitrary<Tensor> = fc
  .tuple(
    fc.constantFrom<DType[]>('float32', 'float16', 'bfloat16', 'int64', 'int32', 'uint8', 'bool'),
    fc.array(fc.nat(4), { maxLength: 3 }),
    fc.nat(255),
  )
  .map(([dtype, shape, seed]) => {
    const length = elementCount(shape);
    const bytes = Uint8Array.from(
      { length: length * bytesPerElement[dtype] },
      (_, i) => (seed + i * 7) & 0x3f,
    );
    return tensor(dtype, shape, new storageConstructors[dtype](bytes.buffer, 0, length) as never);
  });

test('what is encoded is read back, and equal contents give equal bytes', () => {
  const contents = fc.tuple(fc.dictionary(fc.string(), anyTensor), fc.dictionary(fc.string(), fc.string()));
  fc.assert(
    fc.property(contents, ([named, notes]) => {
      const tensors = new Map(Object.entries(named).filter(([name]) => name !== '__metadata__'));
      const metadata = new Map(Object.entries(notes));
      const bytes = Buffer.concat(encodeSafetensors(tensors, metadata));
      const back = readSafetensors(bytes, 'x');
      assert.deepEqual([...back.tensors].sort(byName), [...tensors].sort(byName));
      assert.deepEqual([...back.metadata].sort(byName), [...metadata].sort(byName));
      const reversed = encodeSafetensors(new Map([...tensors].reverse()), new Map([...metadata].reverse()));
      assert.ok(bytes.equals(Buffer.concat(reversed)));
    }),
  );
});

const byName = ([a]: readonly [string, unknown], [b]: readonly [string, unknown]): number =>
  a < b ? -1 : a > b ? 1 : 0;

test('files of the reference implementation: entries, whole reads and single reads agree with an independent reader', async () => {
  for (const name of ['schedules.safetensors', 'models/sd1-tiny.safetensors']) {
    const expected = goldenTensors(name);
    const path = fileURLToPath(goldenPath(name));
    const { tensors } = await readSafetensorsFile(path);
    assert.deepEqual([...tensors].sort(byName), [...expected].sort(byName));
    const opened = await openSafetensors(path);
    const bytes = await readFile(path);
    for (const { name: tensorName, offset, byteLength } of opened.entries.values()) {
      const t = await readTensor(opened, tensorName);
      assert.deepEqual(t, expected.get(tensorName));
      const there = bytes.subarray(offset, offset + byteLength);
      assert.ok(there.equals(Buffer.from(t.data.buffer, t.data.byteOffset, t.data.byteLength)));
    }
  }
});

test('wider types come first, so every tensor is aligned to its element', () => {
  const tensors = new Map<string, Tensor>([
    ['a', tensor('bool', [3], Uint8Array.of(1, 0, 1))],
    ['b', tensor('float16', [1], Uint16Array.of(5))],
    ['c', int64([1], [7])],
    ['d', float32([2], [1, 2])],
  ]);
  const bytes = Buffer.concat(encodeSafetensors(tensors));
  const length = headerLength(bytes.subarray(0, 8), bytes.length, 'x');
  const { entries } = parseHeader(bytes.subarray(8, 8 + length), bytes.length, 'x');
  assert.deepEqual([...entries.keys()], ['c', 'd', 'b', 'a']);
  for (const { dtype, offset } of entries.values()) assert.equal(offset % bytesPerElement[dtype], 0);
});

test('a header of millions of characters or levels is judged, not crashed on', () => {
  const deep = `${'['.repeat(300_000)}${']'.repeat(300_000)}`;
  const long = readSafetensors(file(`{"__metadata__":{"note":"${'x\\n'.repeat(3_000_000)}"}}`), 'x');
  assert.equal(long.metadata.get('note')?.length, 6_000_000);
  const shape = `{"w":{"dtype":"F32","data_offsets":[0,0],"shape":${deep}}}`;
  assert.throws(
    () => readSafetensors(file(shape), 'x'),
    /ModelError: x: tensor "w" has the shape a value nested too deep/,
  );
  assert.throws(() => readSafetensors(file(`{"w":${deep}}`), 'x'), /ModelError: x: tensor "w"/);
});

test('a good file whose header length has the bytes of another format is read', () => {
  // 60 is "<", as a web page begins; 0x0280 is how many Python pickles begin.
  for (const length of [60, 0x0280]) {
    const bytes = file('{}'.padEnd(length));
    assert.equal(readSafetensors(bytes, 'x').tensors.size, 0);
  }
});

test('a tensor that is a view of a larger buffer is written alone', () => {
  const view = new Float32Array([1, 2, 3, 4]).subarray(1, 3);
  const bytes = Buffer.concat(encodeSafetensors(new Map([['v', tensor('float32', [2], view)]])));
  assert.deepEqual([...readSafetensors(bytes, 'x').tensors.get('v')!.data], [2, 3]);
});

test('values that are not finite are found in each floating-point type, and nowhere else', async (t) => {
  const float = (values: number[]): Uint8Array => new Uint8Array(Float32Array.from(values).buffer);
  assert.equal(firstNonFinite('float32', float([0, -0, 3.4e38, -1e-45])), -1);
  assert.equal(firstNonFinite('float32', float([0, Number.NaN])), 1);
  assert.equal(firstNonFinite('float32', float([-Infinity])), 0);
  const halves = (...bits: number[]): Uint8Array => new Uint8Array(Uint16Array.from(bits).buffer);
  assert.equal(firstNonFinite('float16', halves(0x7bff, 0x8000, 0x7c00)), 2);
  assert.equal(firstNonFinite('float16', halves(0xfe00)), 0);
  assert.equal(firstNonFinite('bfloat16', halves(0x7f7f, 0x7c00, 0xff80)), 2);
  assert.equal(firstNonFinite('int32', float([Number.NaN])), -1);

  const path = join(await temporaryFolder(t), 'model.safetensors');
  const large = new Float32Array(5_000_000).fill(1);
  large[4_999_999] = Number.POSITIVE_INFINITY;
  await writeSafetensorsFile(
    path,
    new Map<string, Tensor>([
      ['fine', float32([2], [1, 2])],
      ['ids', int64([1], [-1])],
      ['large', float32([large.length], large)],
    ]),
  );
  const opened = await openSafetensors(path);
  await assert.rejects(
    assertFinite(opened),
    /model\.safetensors: tensor "large" has a value .* at element 4999999\./,
  );
  await assertFinite(opened, ['fine', 'ids']);
});

test('files that cannot be read, or change while they are read', async (t) => {
  const folder = await temporaryFolder(t);
  await assert.rejects(
    openSafetensors(join(folder, 'absent')),
    /ModelError: Cannot read .*absent: it does not exist/,
  );
  await assert.rejects(openSafetensors(folder), /ModelError: .*it is a folder/);
  const path = join(folder, 'x.safetensors');
  await writeSafetensorsFile(path, new Map([['w', float32([100], new Float32Array(100))]]));
  const opened = await openSafetensors(path);
  await assert.rejects(readTensor(opened, 'v'), /ModelError: .*has no tensor "v"/);
  await truncate(path, 200);
  await assert.rejects(readTensor(opened, 'w'), /ModelError: .*became shorter while it was read/);
});
