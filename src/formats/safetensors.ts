import { ModelError } from '../errors.js';
import { bytesPerElement, type DType, storageConstructors } from '../tensor/dtype.js';
import { elementCount, type Shape, type Tensor, tensor } from '../tensor/tensor.js';
import { isObject, type Json, showJson } from './json-config.js';

/**
 * The safetensors format (https://github.com/huggingface/safetensors): eight bytes with the header's length N as a little-endian integer, N bytes of JSON that
 * name each tensor's type, shape and place, then the tensors' bytes, little-endian and row-major, back to back.
 */

/** Where a tensor lies in a file, and what it is. */
export interface TensorEntry {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: Shape;
  /** First byte, counted from the start of the file. */
  readonly offset: number;
  readonly byteLength: number;
}

export interface SafetensorsHeader {
  /** In the order of their bytes in the file. */
  readonly entries: ReadonlyMap<string, TensorEntry>;
  /** Free text that travels with the tensors. */
  readonly metadata: ReadonlyMap<string, string>;
}

export interface SafetensorsContents {
  readonly tensors: ReadonlyMap<string, Tensor>;
  readonly metadata: ReadonlyMap<string, string>;
}

/** The bytes before the header's JSON. */
export const prefixLength = 8;

/** The same bound as in the reference implementation. */
const maxHeaderLength = 100_000_000;

const dtypeOfName: ReadonlyMap<string, DType> = new Map([
  ['F32', 'float32'],
  ['F16', 'float16'],
  ['BF16', 'bfloat16'],
  ['I64', 'int64'],
  ['I32', 'int32'],
  ['U8', 'uint8'],
  ['BOOL', 'bool'],
]);

const nameOfDtype = new Map([...dtypeOfName].map(([name, dtype]) => [dtype, name]));

/** What other kinds of files begin with, when they carry a safetensors name. */
const impostors: readonly { readonly start: string; readonly what: string }[] = [
  {
    start: 'version ',
    what: 'a Git LFS pointer, not the weights themselves; run "git lfs pull", or download the file',
  },
  {
    start: 'PK\u0003\u0004',
    what: 'a zip archive, probably a PyTorch pickle under another name; get the safetensors file',
  },
  { start: '\u0080\u0002', what: 'a Python pickle under another name; get the safetensors file' },
  { start: '<', what: 'a web page, probably a failed download; download the file again' },
];

/**
 * The length of the header's JSON, from the file's first 8 bytes.
 *
 * @param file the name that errors give.
 * @throws ModelError when the file is too short, or is not a safetensors file.
 */
export function headerLength(prefix: Uint8Array, fileLength: number, file: string): number {
  if (fileLength < prefixLength + 2 || prefix.length < prefixLength) {
    throw new ModelError(
      `${file} is not a safetensors file: it has ${fileLength} bytes. The file is cut short; get it again.`,
    );
  }
  const length = new DataView(prefix.buffer, prefix.byteOffset, prefixLength).getBigUint64(0, true);
  if (length <= BigInt(Math.min(maxHeaderLength, fileLength - prefixLength))) return Number(length);
  // Only now: the length of a good header may have the bytes of any of these.
  const start = String.fromCharCode(...prefix.subarray(0, prefixLength));
  const impostor = impostors.find((i) => start.startsWith(i.start));
  if (impostor !== undefined) throw new ModelError(`${file} is ${impostor.what}.`);
  throw new ModelError(
    length > BigInt(maxHeaderLength)
      ? `${file} is not a safetensors file, or is damaged: its header would have ${length} bytes; at most ${maxHeaderLength} are allowed.`
      : `${file} is damaged or cut short: its header has ${length} bytes, but the whole file has ${fileLength}. Get the file again.`,
  );
}

/**
 * Parses and checks a header: every tensor has a known type and a shape that fits its bytes, and the tensors fill the file without overlaps, holes or bytes
 * to spare, so whatever reads the file by these entries stays within it.
 *
 * @param json the header's bytes, without the 8 before it.
 * @param fileLength the length of the whole file, in bytes.
 * @throws ModelError naming the file, and the tensor at fault.
 */
export function parseHeader(json: Uint8Array, fileLength: number, file: string): SafetensorsHeader {
  const header = parseHeaderJson(json, file);
  const dataStart = prefixLength + json.length;
  const dataLength = fileLength - dataStart;
  const metadata = new Map<string, string>();
  const entries: TensorEntry[] = [];
  for (const [name, value] of Object.entries(header)) {
    if (name === '__metadata__') {
      for (const [key, text] of metadataEntries(value, file)) metadata.set(key, text);
    } else {
      entries.push(parseEntry(name, value, dataStart, dataLength, file));
    }
  }
  entries.sort((a, b) => a.offset - b.offset || a.byteLength - b.byteLength);
  requireContiguous(entries, dataStart, fileLength, file);
  return { entries: new Map(entries.map((e) => [e.name, e])), metadata };
}

/** Reads a whole file that is in memory. The tensors are copies. */
export function readSafetensors(bytes: Uint8Array, file: string): SafetensorsContents {
  const length = headerLength(bytes.subarray(0, prefixLength), bytes.length, file);
  const header = parseHeader(bytes.subarray(prefixLength, prefixLength + length), bytes.length, file);
  const tensors = new Map<string, Tensor>();
  for (const entry of header.entries.values()) {
    // Copied by the constructor: the slice of a Node buffer would be a view.
    const own = new Uint8Array(bytes.subarray(entry.offset, entry.offset + entry.byteLength));
    tensors.set(entry.name, tensorFromBytes(entry, own));
  }
  return { tensors, metadata: header.metadata };
}

/** Gives the bytes of an entry their type and shape. They are not copied: they must start at the beginning of their buffer. */
export function tensorFromBytes(entry: TensorEntry, bytes: Uint8Array<ArrayBuffer>): Tensor {
  const storage = storageConstructors[entry.dtype];
  return tensor(entry.dtype, entry.shape, new storage(bytes.buffer, 0, elementCount(entry.shape)));
}

/**
 * Encodes tensors as the pieces of a file: the header, then each tensor's own bytes, not copied. Wider types come first and equal types are in the order of
 * their names, as the reference implementation writes them, so every tensor is aligned and equal contents give equal bytes.
 */
export function encodeSafetensors(
  tensors: ReadonlyMap<string, Tensor>,
  metadata: ReadonlyMap<string, string> = new Map(),
): Uint8Array<ArrayBuffer>[] {
  const sorted = [...tensors].sort(
    ([aName, a], [bName, b]) =>
      bytesPerElement[b.dtype] - bytesPerElement[a.dtype] ||
      compare(a.dtype, b.dtype) ||
      compare(aName, bName),
  );
  const header = new Map<string, Json>();
  if (metadata.size > 0) {
    header.set('__metadata__', Object.fromEntries([...metadata].sort(([a], [b]) => compare(a, b))));
  }
  const pieces: Uint8Array<ArrayBuffer>[] = [];
  let position = 0;
  for (const [name, tensor] of sorted) {
    const { dtype, shape, data } = tensor;
    const end = position + data.byteLength;
    header.set(name, { dtype: nameOfDtype.get(dtype)!, shape, data_offsets: [position, end] });
    pieces.push(tensorBytes(tensor));
    position = end;
  }
  return [encodeHeader(header), ...pieces];
}

/** A tensor's elements as a file has them. */
export function tensorBytes({ data }: Tensor): Uint8Array<ArrayBuffer> {
  return new Uint8Array(data.buffer as ArrayBuffer, data.byteOffset, data.byteLength);
}

/** A tensor whose bytes are made or read when their turn in a file comes. */
export interface TensorStream {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: Shape;
  /** All of its bytes, in pieces of any size. */
  bytes(): AsyncIterable<Uint8Array>;
}

/** A tensor that is made as a whole when its turn comes, of the type and shape that are promised. */
export function tensorStream(
  name: string,
  { dtype, shape }: Pick<TensorStream, 'dtype' | 'shape'>,
  read: () => Promise<Tensor>,
): TensorStream {
  return {
    name,
    dtype,
    shape,
    async *bytes() {
      yield tensorBytes(await read());
    },
  };
}

/**
 * Encodes tensors as the pieces of a file, in the order given, holding no more than one piece in memory.
 *
 * @throws Error when a tensor's pieces are more or fewer bytes than its shape says.
 */
export async function* streamSafetensors(
  tensors: readonly TensorStream[],
  metadata: ReadonlyMap<string, string>,
): AsyncGenerator<Uint8Array> {
  const header = new Map<string, Json>();
  if (metadata.size > 0) {
    header.set('__metadata__', Object.fromEntries([...metadata].sort(([a], [b]) => compare(a, b))));
  }
  let position = 0;
  for (const { name, dtype, shape } of tensors) {
    const end = position + elementCount(shape) * bytesPerElement[dtype];
    header.set(name, { dtype: nameOfDtype.get(dtype)!, shape, data_offsets: [position, end] });
    position = end;
  }
  yield encodeHeader(header);
  for (const { name, dtype, shape, bytes } of tensors) {
    let left = elementCount(shape) * bytesPerElement[dtype];
    for await (const piece of bytes()) {
      left -= piece.byteLength;
      yield piece;
    }
    if (left !== 0) throw new Error(`internal: ${name} is ${-left} bytes longer than its shape says`);
  }
}

/**
 * The index of the first element that is infinite or not a number, or -1. Integers and booleans are always finite.
 *
 * @param bytes whole elements, at an offset of their buffer that is a multiple of the element's size.
 */
export function firstNonFinite(dtype: DType, bytes: Uint8Array): number {
  const mask = exponentMask[dtype];
  if (mask === undefined) return -1;
  const length = bytes.byteLength / bytesPerElement[dtype];
  const Words = dtype === 'float32' ? Uint32Array : Uint16Array;
  const words = new Words(bytes.buffer as ArrayBuffer, bytes.byteOffset, length);
  for (let i = 0; i < length; i++) {
    // All exponent bits set: infinity or NaN. `>>> 0` keeps the comparison unsigned.
    if ((words[i]! & mask) >>> 0 === mask) return i;
  }
  return -1;
}

const exponentMask: Readonly<Partial<Record<DType, number>>> = {
  float32: 0x7f800000,
  float16: 0x7c00,
  bfloat16: 0x7f80,
};

function encodeHeader(header: ReadonlyMap<string, Json>): Uint8Array<ArrayBuffer> {
  const fields = [...header].map(([name, value]) => `${JSON.stringify(name)}:${JSON.stringify(value)}`);
  const json = new TextEncoder().encode(`{${fields.join(',')}}`);
  // Padded with spaces so that the first tensor is aligned.
  const padded = Math.ceil(json.length / 8) * 8;
  const bytes = new Uint8Array(prefixLength + padded).fill(0x20);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(padded), true);
  bytes.set(json, prefixLength);
  return bytes;
}

function parseHeaderJson(json: Uint8Array, file: string): { readonly [key: string]: Json } {
  const damaged = (reason: string, cause?: unknown): ModelError =>
    new ModelError(`${file} is not a safetensors file, or is damaged: ${reason}. Get the file again.`, {
      cause,
    });
  let text: string;
  let value: Json;
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(json);
  } catch (error) {
    throw damaged('its header is not UTF-8 text', error);
  }
  try {
    value = JSON.parse(text) as Json;
  } catch (error) {
    throw damaged('its header is not valid JSON', error);
  }
  if (!isObject(value)) throw damaged('its header is not a JSON object');
  const twice = duplicateKey(text);
  if (twice !== undefined) throw damaged(`its header names ${JSON.stringify(twice)} twice`);
  return value;
}

/** The first key that stands twice in one object of a valid JSON text; `JSON.parse` would silently keep the last. */
function duplicateKey(text: string): string | undefined {
  const open: (Set<string> | undefined)[] = [];
  for (let i = 0; i < text.length; i++) {
    const character = text[i];
    if (character === '{') open.push(new Set());
    else if (character === '[') open.push(undefined);
    else if (character === '}' || character === ']') open.pop();
    else if (character === '"') {
      const start = i++;
      while (text[i] !== '"') i += text[i] === '\\' ? 2 : 1;
      const keys = open.at(-1);
      if (keys === undefined || !isColonNext(text, i + 1)) continue;
      const key = JSON.parse(text.slice(start, i + 1)) as string;
      if (keys.has(key)) return key;
      keys.add(key);
    }
  }
  return undefined;
}

function isColonNext(text: string, position: number): boolean {
  let i = position;
  while (text[i] === ' ' || text[i] === '\n' || text[i] === '\r' || text[i] === '\t') i++;
  return text[i] === ':';
}

function metadataEntries(value: Json, file: string): [string, string][] {
  const texts = isObject(value) ? Object.entries(value) : undefined;
  if (!texts?.every((entry): entry is [string, string] => typeof entry[1] === 'string')) {
    throw new ModelError(`${file} is damaged: its "__metadata__" must be an object of texts.`);
  }
  return texts;
}

function parseEntry(
  name: string,
  value: Json,
  dataStart: number,
  dataLength: number,
  file: string,
): TensorEntry {
  const fault = (reason: string): ModelError =>
    new ModelError(`${file}: tensor ${JSON.stringify(name)} ${reason}`);
  if (!isObject(value)) throw fault('is not described by an object; the file is damaged.');
  const { dtype: typeName, shape, data_offsets: offsets } = value;
  const dtype = typeof typeName === 'string' ? dtypeOfName.get(typeName) : undefined;
  if (dtype === undefined) {
    throw fault(
      `has the type ${showJson(typeName ?? null)}, which is not supported; supported: ${[...dtypeOfName.keys()].join(', ')}. ` +
        `Get the F16 or F32 version of the file.`,
    );
  }
  if (!isSizes(shape))
    throw fault(
      `has the shape ${showJson(shape ?? null)}; expected a list of whole numbers. The file is damaged.`,
    );
  if (!isSizes(offsets) || offsets.length !== 2 || offsets[0]! > offsets[1]!) {
    throw fault(
      `has the data_offsets ${showJson(offsets ?? null)}; expected [begin, end]. The file is damaged.`,
    );
  }
  const [begin, end] = offsets as [number, number];
  if (end > dataLength) {
    throw fault(
      `ends at byte ${dataStart + end}, but the file has ${dataStart + dataLength}. The file is cut short or damaged; get it again.`,
    );
  }
  const expected = elementCount(shape) * bytesPerElement[dtype];
  if (!Number.isSafeInteger(expected) || end - begin !== expected) {
    throw fault(
      `has ${end - begin} bytes, but ${typeName}[${shape.join(', ')}] needs ${expected}. The file is damaged; get it again.`,
    );
  }
  return { name, dtype, shape, offset: dataStart + begin, byteLength: end - begin };
}

function isSizes(value: Json | undefined): value is number[] {
  return Array.isArray(value) && value.every((d) => Number.isSafeInteger(d) && (d as number) >= 0);
}

/** @param entries in the order of their offsets. */
function requireContiguous(
  entries: readonly TensorEntry[],
  dataStart: number,
  fileLength: number,
  file: string,
): void {
  let position = dataStart;
  let previous = 'the header';
  for (const { name, offset, byteLength } of entries) {
    if (offset !== position) {
      const what = offset < position ? 'overlaps' : `leaves ${offset - position} unused bytes after`;
      throw new ModelError(
        `${file}: tensor ${JSON.stringify(name)} ${what} ${previous}. The file is damaged; get it again.`,
      );
    }
    position = offset + byteLength;
    previous = JSON.stringify(name);
  }
  if (position !== fileLength) {
    throw new ModelError(
      `${file} has ${fileLength} bytes, but its header describes ${position}. The file is damaged; get it again.`,
    );
  }
}

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
