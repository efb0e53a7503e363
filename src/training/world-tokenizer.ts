import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { worldVocabulary } from '../data/world/vocabulary.js';
import { readConfigFile } from '../formats/json-config-file.js';
import { makeFolder } from '../formats/make-folder.js';
import { type ClipTokenizer, openTokenizer } from '../pretrained/tokenizer.js';
import { writeWordTokenizer } from '../pretrained/word-tokenizer.js';

/**
 * Writes the tokenizer of the world's words into a folder, and opens it.
 *
 * @param promptLength ids that each prompt gives, with start and end.
 */
export async function writeWorldTokenizer(folder: string, promptLength: number): Promise<ClipTokenizer> {
  await makeFolder(folder);
  await writeWordTokenizer(folder, worldVocabulary(), promptLength);
  const files = (await readdir(folder)).sort();
  const config = await readConfigFile(join(folder, 'tokenizer_config.json'));
  return openTokenizer(
    { name: 'tokenizer', className: 'CLIPTokenizer', folder, files, config },
    promptLength,
  );
}
