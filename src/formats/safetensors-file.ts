import { type FileHandle, open } from 'node:fs/promises';
import { ModelError } from '../errors.js';
import { bytesPerElement } from '../tensor/dtype.js';
import type { Tensor } from '../tensor/tensor.js';
import { writeFileAtomic } from './atomic-file.js';
import {
  encodeSafetensors,
  firstNonFinite,
  headerLength,
  parseHeader,
  prefixLength,
  type SafetensorsContents,
  type SafetensorsHeader,
  streamSafetensors,
  type TensorEntry,
  type TensorStream,
  tensorFromBytes,
} from './safetensors.js';

/** A safetensors file on disk whose header has been read and checked. It holds no file handle. */
export interface SafetensorsFile extends SafetensorsHeader {
  readonly path: string;
  /** In bytes. */
  readonly length: number;
}

/** One read or check takes at most this many bytes at a time; a multiple of every element's size. */
const pieceLength = 8 * 2 ** 20;

const readFailures: Readonly<Record<string, string>> = {
  ENOENT: 'it does not exist',
  EACCES: 'permission is denied; change the permissions of the file',
  EPERM: 'the operating system does not permit it; change the permissions of the file',
  EISDIR: 'it is a folder; a file was expected',
  ENOTDIR: 'a part of its path is a file, not a folder',
  ELOOP: 'its links go round in a circle',
  EIO: 'the disk reports an input/output error',
};

/** Endings of Python's pickles, which run code when they are opened. */
const pickle = /\.(ckpt|pt|pth|bin|pkl)$/i;

/**
 * Reads and checks the header of a safetensors file; its tensors stay on disk.
 *
 * @throws ModelError when the file cannot be read or is malformed, or is a pickle by its name.
 */
export async function openSafetensors(path: string): Promise<SafetensorsFile> {
  if (pickle.test(path)) {
    throw new ModelError(
      `${path} is a pickle file: such files can run code when they are opened, so they are never read. Get the same as a .safetensors file.`,
    );
  }
  return reading(path, async (handle) => {
    const { size } = await handle.stat();
    const prefix = await readBytes(handle, 0, Math.min(prefixLength, size), path);
    const length = headerLength(prefix, size, path);
    const header = parseHeader(await readBytes(handle, prefixLength, length, path), size, path);
    return { path, length: size, ...header };
  });
}

/** Reads one tensor of an open file. */
export async function readTensor(file: SafetensorsFile, name: string): Promise<Tensor> {
  const entry = file.entries.get(name);
  if (entry === undefined) {
    throw new ModelError(
      `${file.path} has no tensor ${JSON.stringify(name)}; it has ${file.entries.size} others.`,
    );
  }
  return readEntry(file, entry);
}

/** Reads the bytes that an entry stands for, also where it is a part of what the file calls a tensor. */
export async function readEntry(file: SafetensorsFile, entry: TensorEntry): Promise<Tensor> {
  return reading(file.path, (handle) => readEntryFrom(handle, entry, file.path));
}

/** The bytes that an entry stands for, a few megabytes at a time. */
export async function* readEntryPieces(
  file: SafetensorsFile,
  entry: TensorEntry,
): AsyncGenerator<Uint8Array<ArrayBuffer>> {
  for (let done = 0; done < entry.byteLength; done += pieceLength) {
    const length = Math.min(pieceLength, entry.byteLength - done);
    yield await reading(file.path, (handle) => readBytes(handle, entry.offset + done, length, file.path));
  }
}

/** Reads a whole file into memory: all its tensors, and its metadata. */
export async function readSafetensorsFile(path: string): Promise<SafetensorsContents> {
  const file = await openSafetensors(path);
  return reading(path, async (handle) => {
    const tensors = new Map<string, Tensor>();
    for (const entry of file.entries.values())
      tensors.set(entry.name, await readEntryFrom(handle, entry, path));
    return { tensors, metadata: file.metadata };
  });
}

/** Writes tensors and metadata as a safetensors file, whole or not at all. Equal contents give equal bytes. */
export async function writeSafetensorsFile(
  path: string,
  tensors: ReadonlyMap<string, Tensor>,
  metadata?: ReadonlyMap<string, string>,
): Promise<void> {
  await writeFileAtomic(path, encodeSafetensors(tensors, metadata));
}

/** Writes tensors that are made or read one after the other as a safetensors file, whole or not at all. */
export async function writeTensorStreams(
  path: string,
  tensors: readonly TensorStream[],
  metadata: ReadonlyMap<string, string> = new Map(),
): Promise<void> {
  await writeFileAtomic(path, streamSafetensors(tensors, metadata));
}

/**
 * Looks through the floating-point tensors of a file, a few megabytes at a time, for values that are infinite or not a number.
 *
 * @param names the tensors to look at; all of them unless told.
 * @throws ModelError naming the file, the first tensor that has one, and the place in it.
 */
export async function assertFinite(file: SafetensorsFile, names?: Iterable<string>): Promise<void> {
  const wanted = names === undefined ? undefined : new Set(names);
  await reading(file.path, async (handle) => {
    const buffer = new Uint8Array(pieceLength);
    for (const entry of file.entries.values()) {
      if (wanted === undefined || wanted.has(entry.name))
        await requireFinite(handle, entry, buffer, file.path);
    }
  });
}

async function requireFinite(
  handle: FileHandle,
  entry: TensorEntry,
  buffer: Uint8Array,
  path: string,
): Promise<void> {
  for (let done = 0; done < entry.byteLength; done += buffer.length) {
    const piece = buffer.subarray(0, Math.min(buffer.length, entry.byteLength - done));
    await fill(handle, piece, entry.offset + done, path);
    const index = firstNonFinite(entry.dtype, piece);
    if (index < 0) continue;
    const element = done / bytesPerElement[entry.dtype] + index;
    throw new ModelError(
      `${path}: tensor ${JSON.stringify(entry.name)} has a value that is infinite or not a number, at element ${element}. ` +
        `The model is damaged, probably by a training run that diverged; get another copy.`,
    );
  }
}

function readEntryFrom(handle: FileHandle, entry: TensorEntry, path: string): Promise<Tensor> {
  return readBytes(handle, entry.offset, entry.byteLength, path).then((bytes) =>
    tensorFromBytes(entry, bytes),
  );
}

async function readBytes(
  handle: FileHandle,
  offset: number,
  length: number,
  path: string,
): Promise<Uint8Array<ArrayBuffer>> {
  const bytes = new Uint8Array(length);
  await fill(handle, bytes, offset, path);
  return bytes;
}

async function fill(handle: FileHandle, target: Uint8Array, offset: number, path: string): Promise<void> {
  for (let done = 0; done < target.length; ) {
    const length = Math.min(pieceLength, target.length - done);
    const { bytesRead } = await handle.read(target, done, length, offset + done);
    if (bytesRead === 0)
      throw new ModelError(`${path} became shorter while it was read. Is another program writing it?`);
    done += bytesRead;
  }
}

async function reading<T>(path: string, use: (handle: FileHandle) => Promise<T>): Promise<T> {
  let handle: FileHandle | undefined;
  try {
    handle = await open(path, 'r');
    return await use(handle);
  } catch (error) {
    const reason = error instanceof Error && 'code' in error ? readFailures[String(error.code)] : undefined;
    throw reason === undefined ? error : new ModelError(`Cannot read ${path}: ${reason}.`, { cause: error });
  } finally {
    await handle?.close();
  }
}
