import { BinaryReader, BinaryWriter, WireType } from '@bufbuild/protobuf/wire';

/** One entry of an event: a number, or a picture as PNG. */
export type SummaryValue =
  | { readonly tag: string; readonly scalar: number }
  | { readonly tag: string; readonly image: EventImage };

export interface EventImage {
  readonly width: number;
  readonly height: number;
  readonly png: Uint8Array;
}

/** What TensorBoard shows for one step. */
export interface SummaryEvent {
  readonly step: number;
  /** Seconds since 1970. */
  readonly wallTime: number;
  readonly values: readonly SummaryValue[];
}

/** Field numbers of TensorFlow's event.proto and summary.proto. */
const EVENT = { wallTime: 1, step: 2, fileVersion: 3, summary: 5 } as const;
const SUMMARY = { value: 1 } as const;
const VALUE = { tag: 1, scalar: 2, image: 4 } as const;
const IMAGE = { height: 1, width: 2, colorspace: 3, encoded: 4 } as const;
const RGB = 3;
const FILE_VERSION = 'brain.Event:2';

/** The record that every event file begins with. */
export function encodeFileVersion(wallTime: number): Uint8Array {
  const w = new BinaryWriter();
  w.tag(EVENT.wallTime, WireType.Bit64).double(wallTime);
  w.tag(EVENT.fileVersion, WireType.LengthDelimited).string(FILE_VERSION);
  return encodeRecord(w.finish());
}

/** The record of one event. */
export function encodeEvent({ step, wallTime, values }: SummaryEvent): Uint8Array {
  const w = new BinaryWriter();
  w.tag(EVENT.wallTime, WireType.Bit64).double(wallTime);
  if (step !== 0) w.tag(EVENT.step, WireType.Varint).int64(step);
  w.tag(EVENT.summary, WireType.LengthDelimited).fork();
  for (const value of values) {
    w.tag(SUMMARY.value, WireType.LengthDelimited).fork();
    w.tag(VALUE.tag, WireType.LengthDelimited).string(value.tag);
    if ('scalar' in value) w.tag(VALUE.scalar, WireType.Bit32).float(value.scalar);
    else writeImage(w, value.image);
    w.join();
  }
  w.join();
  return encodeRecord(w.finish());
}

function writeImage(w: BinaryWriter, { width, height, png }: EventImage): void {
  w.tag(VALUE.image, WireType.LengthDelimited).fork();
  w.tag(IMAGE.height, WireType.Varint).int32(height);
  w.tag(IMAGE.width, WireType.Varint).int32(width);
  w.tag(IMAGE.colorspace, WireType.Varint).int32(RGB);
  w.tag(IMAGE.encoded, WireType.LengthDelimited).bytes(png);
  w.join();
}

/** Where a whole record ends in the file, and what can be told of its event without reading the rest of it. */
export interface EventRecord {
  readonly step: number;
  readonly images: boolean;
  readonly end: number;
}

/** The whole records from the start of an event file; what a kill cut short or damaged, and all after it, is left out. */
export function* readEvents(file: Uint8Array): Generator<EventRecord> {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  for (let start = 0; start + HEAD <= file.length; ) {
    const length = Number(view.getBigUint64(start, true));
    const end = start + HEAD + length + TAIL;
    if (maskedCrc(file.subarray(start, start + 8)) !== view.getUint32(start + 8, true) || end > file.length)
      return;
    const data = file.subarray(start + HEAD, start + HEAD + length);
    if (maskedCrc(data) !== view.getUint32(end - TAIL, true)) return;
    yield { ...readEvent(data), end };
    start = end;
  }
}

function readEvent(data: Uint8Array): { step: number; images: boolean } {
  const reader = new BinaryReader(data);
  let [step, images] = [0, false];
  while (reader.pos < reader.len) {
    const [field, type] = reader.tag();
    if (field === EVENT.step) step = Number(reader.int64());
    else if (field === EVENT.summary) images = holdsImages(reader.bytes());
    else reader.skip(type, field);
  }
  return { step, images };
}

function holdsImages(summary: Uint8Array): boolean {
  const reader = new BinaryReader(summary);
  while (reader.pos < reader.len) {
    const [field, type] = reader.tag();
    if (field !== SUMMARY.value) {
      reader.skip(type, field);
      continue;
    }
    const value = new BinaryReader(reader.bytes());
    while (value.pos < value.len) {
      const [inner, innerType] = value.tag();
      if (inner === VALUE.image) return true;
      value.skip(innerType, inner);
    }
  }
  return false;
}

/** Bytes before the data of a record (its length and that length's checksum) and after it (its checksum). */
const HEAD = 12;
const TAIL = 4;

/** A record of a TFRecord file: uint64 length, masked CRC-32C of the length, data, masked CRC-32C of the data; little-endian. */
function encodeRecord(data: Uint8Array): Uint8Array {
  const record = new Uint8Array(HEAD + data.length + TAIL);
  const view = new DataView(record.buffer);
  view.setBigUint64(0, BigInt(data.length), true);
  view.setUint32(8, maskedCrc(record.subarray(0, 8)), true);
  record.set(data, HEAD);
  view.setUint32(HEAD + data.length, maskedCrc(data), true);
  return record;
}

/** CRC-32C (Castagnoli), rotated and shifted as TFRecord files have it, so that checksums of data with checksums in it stay good ones. */
function maskedCrc(data: Uint8Array): number {
  let crc = 0xffffffff;
  for (const byte of data) crc = (crc >>> 8) ^ crcTable[(crc ^ byte) & 0xff]!;
  crc = ~crc >>> 0;
  return (((crc >>> 15) | (crc << 17)) + 0xa282ead8) >>> 0;
}

const POLYNOMIAL = 0x82f63b78;
const crcTable = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ POLYNOMIAL : crc >>> 1;
  return crc;
});
