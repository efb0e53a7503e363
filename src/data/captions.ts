import { readFile } from 'node:fs/promises';
import { basename, dirname, extname, join } from 'node:path';
import { InputError } from '../errors.js';
import { isObject, type Json } from '../formats/json-config.js';

/** What a person wrote about one picture. */
export interface Caption {
  readonly text: string;
  /** Where it was written, for messages: `photos/dog.txt`, or `photos/metadata.jsonl:3`. */
  readonly origin: string;
}

/** The captions of a folder in one file, a JSON object a line, as Hugging Face's image folders have it. */
export const metadataFile = 'metadata.jsonl';

const EXAMPLE = '{"file_name": "dog.jpg", "text": "a photo of sks dog on a sofa"}';
/** A caption beyond this is a document that lies beside the pictures by chance. */
const MAX_CAPTION_BYTES = 1 << 16;

/** The file that holds the caption of a picture alone: `dog.txt` beside `dog.jpg`. */
export const sidecarOf = (picture: string): string =>
  join(dirname(picture), `${basename(picture, extname(picture))}.txt`);

/**
 * Reads the captions of pictures. A picture's own text file goes before the line of `metadata.jsonl` in its folder that names it; a picture may have neither.
 *
 * @param files the pictures' paths.
 * @returns the captions by path, and a warning for each line that names a picture that is not among them.
 * @throws InputError naming the file, and the line of `metadata.jsonl`, where a caption is empty, not text, or said twice.
 */
export async function readCaptions(
  files: readonly string[],
): Promise<{ readonly captions: ReadonlyMap<string, Caption>; readonly warnings: readonly string[] }> {
  const captions = new Map<string, Caption>();
  const warnings: string[] = [];
  for (const folder of new Set(files.map(dirname))) {
    const path = join(folder, metadataFile);
    const bytes = await readIfThere(path);
    if (bytes === undefined) continue;
    const here = new Map(
      files.filter((file) => dirname(file) === folder).map((file) => [basename(file), file]),
    );
    for (const [name, caption] of parseMetadata(path, decode(path, bytes))) {
      const file = here.get(name);
      if (file === undefined) {
        warnings.push(
          `${caption.origin}: names ${JSON.stringify(name)}, which is not among the pictures; the line is passed over.`,
        );
      } else captions.set(file, caption);
    }
  }
  for (const file of files) {
    const path = sidecarOf(file);
    const bytes = await readIfThere(path);
    if (bytes !== undefined) captions.set(file, { text: sidecarText(path, bytes), origin: path });
  }
  return { captions, warnings };
}

function sidecarText(path: string, bytes: Uint8Array): string {
  if (bytes.length > MAX_CAPTION_BYTES) {
    throw new InputError(
      `${path}: ${bytes.length} bytes are too many for the caption of the picture of that name. If it is something else, move it out of the folder, or leave all captions out with --no-captions.`,
    );
  }
  const text = oneLine(decode(path, bytes));
  if (text === '') {
    throw new InputError(
      `${path}: the caption is empty. Write one, or remove the file, and the picture takes --prompt.`,
    );
  }
  return text;
}

/** The captions by file name. */
function parseMetadata(path: string, text: string): Map<string, Caption> {
  const found = new Map<string, Caption>();
  for (const [index, line] of text.split('\n').entries()) {
    if (line.trim() === '') continue;
    const origin = `${path}:${index + 1}`;
    const expected = `Expected one JSON object a line, such as ${EXAMPLE}`;
    let record: Json;
    try {
      record = JSON.parse(line) as Json;
    } catch (error) {
      throw new InputError(`${origin}: this line is not JSON (${(error as Error).message}). ${expected}`, {
        cause: error,
      });
    }
    if (!isObject(record)) throw new InputError(`${origin}: this line is not an object. ${expected}`);
    for (const key of ['file_name', 'text']) {
      const value = record[key];
      if (typeof value !== 'string' || value.trim() === '') {
        const came = value === undefined ? 'is missing' : `is ${JSON.stringify(value)}`;
        throw new InputError(`${origin}: "${key}" ${came}; expected text. ${expected}`);
      }
    }
    const { file_name: name, text: caption } = record as { file_name: string; text: string };
    const before = found.get(name);
    if (before !== undefined) {
      throw new InputError(
        `${origin}: ${JSON.stringify(name)} has a caption already, in ${before.origin}. Keep one of the two lines.`,
      );
    }
    found.set(name, { text: oneLine(caption), origin });
  }
  return found;
}

const oneLine = (text: string): string => text.trim().replace(/\s+/gu, ' ');

function decode(path: string, bytes: Uint8Array): string {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch (error) {
    throw new InputError(
      `${path}: expected text in UTF-8. Save the file in that encoding, or leave captions out with --no-captions.`,
      {
        cause: error,
      },
    );
  }
}

async function readIfThere(path: string): Promise<Uint8Array | undefined> {
  return readFile(path).catch((error: unknown) => {
    const code = error instanceof Error && 'code' in error ? error.code : undefined;
    if (code === 'ENOENT' || code === 'ENOTDIR') return undefined;
    throw new InputError(
      `${path}: the captions cannot be read (${error instanceof Error ? error.message : error}).`,
      { cause: error },
    );
  });
}
