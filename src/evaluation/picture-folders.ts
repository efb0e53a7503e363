import { readdir } from 'node:fs/promises';
import { extname, join } from 'node:path';
import { readableExtensions } from '../data/image-format.js';
import { InputError } from '../errors.js';

/** Words of a text that can be a file's name: "a-dog-on-the-beach". */
export function slug(text: string): string {
  return (
    text
      .toLowerCase()
      .replace(/[^\p{L}\p{N}]+/gu, '-')
      .replace(/^-|-$/g, '')
      .slice(0, 60) || 'picture'
  );
}

/** The folder of a prompt's pictures, by its place in the list, counted from 1, and its text: "03-a-dog-on-the-beach". */
export function promptFolderName(index: number, text: string): string {
  return `${String(index + 1).padStart(2, '0')}-${slug(text)}`;
}

/**
 * Finds the pictures of each prompt in the folder of a subject: one folder a prompt, named by its number ("03", "03-anything") or by its text alone, with
 * pictures of any names in it.
 *
 * @param texts the prompts without the rare token, in the protocol's order
 * @returns the files of each prompt, by name
 * @throws InputError when a prompt has no pictures, or a folder is that of no prompt, or of another one than its number says.
 */
export async function findPromptPictures(folder: string, texts: readonly string[]): Promise<string[][]> {
  const entries = await readdir(folder, { withFileTypes: true }).catch((error: unknown) => {
    throw new InputError(
      `${folder}: there is no such folder. Expected the pictures of one subject, a folder for each prompt, such as ${promptFolderName(0, texts[0]!)}.`,
      { cause: error },
    );
  });
  const found = texts.map((): string[] => []);
  for (const entry of entries.filter((e) => e.isDirectory() && !e.name.startsWith('.'))) {
    const index = promptIndex(join(folder, entry.name), entry.name, texts);
    found[index]!.push(...(await pictureFiles(join(folder, entry.name))));
  }
  const missing = texts.flatMap((text, i) => (found[i]!.length === 0 ? [promptFolderName(i, text)] : []));
  if (missing.length > 0) {
    throw new InputError(
      `${folder}: ${missing.length} of ${texts.length} prompts have no pictures: ${missing.slice(0, 3).join(', ')}${missing.length > 3 ? ' …' : ''}. Expected a folder of pictures for each prompt; the number in front is enough of a name.`,
    );
  }
  return found;
}

function promptIndex(path: string, name: string, texts: readonly string[]): number {
  const [, number, rest = ''] = /^(\d+)(?:[-_. ]+(.*))?$/.exec(name) ?? [];
  const slugs = texts.map(slug);
  const said = slugs.indexOf(slug(number === undefined ? name : rest));
  if (number === undefined && said >= 0) return said;
  const index = Number(number) - 1;
  if (number === undefined || index < 0 || index >= texts.length) {
    throw new InputError(
      `${path}: this folder is that of no prompt. Expected a number from 01 to ${String(texts.length).padStart(2, '0')} in front, such as ${promptFolderName(0, texts[0]!)}, or the text of a prompt.`,
    );
  }
  if (said >= 0 && said !== index) {
    throw new InputError(
      `${path}: the number in front is that of "${texts[index]}", but the text is that of prompt ${said + 1}. Rename the folder to what its pictures show.`,
    );
  }
  return index;
}

/** The pictures of a folder, by name; other files are passed over. */
export async function pictureFiles(folder: string): Promise<string[]> {
  const names = await readdir(folder);
  return names
    .filter((name) => !name.startsWith('.') && readableExtensions.has(extname(name).slice(1).toLowerCase()))
    .sort(byNumberThenName)
    .map((name) => join(folder, name));
}

/** 2.png before 10.png. */
function byNumberThenName(a: string, b: string): number {
  const [x, y] = [Number.parseInt(a, 10), Number.parseInt(b, 10)];
  if (x !== y && !Number.isNaN(x) && !Number.isNaN(y)) return x - y;
  return a < b ? -1 : a > b ? 1 : 0;
}
