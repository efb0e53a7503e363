import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { writeFileAtomic } from '../src/formats/atomic-file.js';

/** The part of a page in docs/ that a command writes: what lies between `begin` and `end`, a line each. */
export interface DocsSection {
  readonly page: string;
  readonly begin: string;
  readonly end: string;
}

/** @throws Error when the page has no such place */
export async function writeDocsSection({ page, begin, end }: DocsSection, text: string): Promise<void> {
  const path = join(fileURLToPath(new URL('../../docs/', import.meta.url)), page);
  const old = await readFile(path, 'utf8');
  const [from, to] = [old.indexOf(begin), old.indexOf(end)];
  if (from < 0 || to < from) throw new Error(`${path} lacks the lines "${begin}" and "${end}".`);
  await writeFileAtomic(path, `${old.slice(0, from + begin.length)}\n${text}\n${old.slice(to)}`);
  console.error(`written to ${path}`);
}
