import assert from 'node:assert/strict';
import { test } from 'node:test';
import { encodeEvent, encodeFileVersion, readEvents } from '../../src/formats/tfevents.js';
import { goldenJson } from '../goldens.js';

const golden = goldenJson<{ png: string; records: Record<'version' | 'scalars' | 'image', string> }>(
  'tfevents.json',
);
const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');
const png = Uint8Array.from(Buffer.from(golden.png, 'hex'));
const records = [
  encodeFileVersion(1700000000.25),
  encodeEvent({
    step: 123456,
    wallTime: 1700000001.5,
    values: [
      { tag: 'train/loss', scalar: 0.1 },
      { tag: 'train/learningRate', scalar: -5e-4 },
    ],
  }),
  encodeEvent({
    step: 0,
    wallTime: 1700000002.75,
    values: [{ tag: 'validation/a sks dog, süß', image: { width: 300, height: 7, png } }],
  }),
] as const;

test("records are byte for byte those of TensorBoard's own writer", () => {
  const [version, scalars, image] = records;
  assert.equal(hex(version), golden.records.version);
  assert.equal(hex(scalars), golden.records.scalars);
  assert.equal(hex(image), golden.records.image);
});

test('records are read back up to the first that is cut short or damaged', () => {
  const file = Uint8Array.from(records.flatMap((r) => [...r]));
  const ends = [records[0].length, records[0].length + records[1].length, file.length];
  assert.deepEqual(
    [...readEvents(file)],
    [
      { step: 0, images: false, end: ends[0] },
      { step: 123456, images: false, end: ends[1] },
      { step: 0, images: true, end: ends[2] },
    ],
  );
  for (let length = 0; length <= file.length; length++) {
    const whole = ends.filter((end) => end <= length);
    assert.deepEqual(
      [...readEvents(file.subarray(0, length))].map(({ end }) => end),
      whole,
    );
  }
  for (let at = 0; at < file.length; at++) {
    const damaged = Uint8Array.from(file);
    damaged[at]! ^= 0x10;
    assert.deepEqual(
      [...readEvents(damaged)].map(({ end }) => end),
      ends.filter((end) => end <= at),
      `byte ${at}`,
    );
  }
});
