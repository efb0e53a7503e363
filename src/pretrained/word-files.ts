import { join } from 'node:path';
import { ModelError } from '../errors.js';
import { openSafetensors, readTensor, writeSafetensorsFile } from '../formats/safetensors-file.js';
import { concatRows } from '../tensor/rows.js';
import { float32, type Tensor, toFloat32 } from '../tensor/tensor.js';
import type { NewWord } from './new-words.js';

/** The rows that new words have in a text encoder's table, by their name in a state: `text_encoder.….token_embedding.added_rows`. */
const rowsName = /^(text_encoder(?:_2)?)\..*token_embedding\.added_rows$/;

/** What comes after a word file's name for each text encoder, as in diffusers' scripts. */
const suffixes: Readonly<Record<string, string>> = { text_encoder: '', text_encoder_2: '_2' };

/** What the file of a word is called, without its ending. */
export type WordFileName = (word: NewWord) => string;

/** Of textual inversion: the name that `load_textual_inversion` looks for. */
export const learnedEmbeds: WordFileName = () => 'learned_embeds';

/** Of Custom Diffusion: the word itself. */
export const wordFile: WordFileName = ({ word }) => word;

/**
 * Writes the rows of new words into a folder as diffusers' `load_textual_inversion` reads them: a file a word and text encoder, in it one tensor [vectors, dim] by
 * the name of the word.
 *
 * @param learnt tensors by state name; those that are no rows of words are left out.
 * @returns the files, each of them written whole.
 */
export async function writeWordFiles(
  folder: string,
  words: readonly NewWord[],
  learnt: ReadonlyMap<string, Tensor>,
  nameOf: WordFileName,
): Promise<string[]> {
  const files: string[] = [];
  for (const [name, rows] of learnt) {
    const encoder = rowsName.exec(name)?.[1];
    if (encoder === undefined) continue;
    const { data } = toFloat32(rows);
    const dim = rows.shape[1]!;
    let first = 0;
    for (const word of words) {
      const own = data.slice(first * dim, (first + word.vectors) * dim);
      first += word.vectors;
      const path = fileOf(folder, word, encoder, nameOf);
      const tensors = new Map([[word.word, float32([word.vectors, dim], own)]]);
      await writeSafetensorsFile(path, tensors, new Map([['format', 'pt']]));
      files.push(path);
    }
  }
  return files;
}

/**
 * Reads the rows of words that `writeWordFiles` wrote, as a state has them.
 *
 * @param name of the rows in the state, which says for which text encoder they are.
 * @throws ModelError for a file that is not there, or does not hold its word.
 */
export async function readWordFiles(
  folder: string,
  words: readonly NewWord[],
  name: string,
  nameOf: WordFileName,
): Promise<Tensor<'float32'>> {
  const encoder = rowsName.exec(name)?.[1];
  if (encoder === undefined) throw new Error(`internal: ${name} is not the rows of words`);
  const parts: Tensor<'float32'>[] = [];
  for (const word of words) {
    const path = fileOf(folder, word, encoder, nameOf);
    const rows = toFloat32(await readTensor(await openSafetensors(path), word.word));
    if (rows.shape.length !== 2 || rows.shape[0] !== word.vectors) {
      throw new ModelError(
        `${path}: ${JSON.stringify(word.word)} is [${rows.shape.join(', ')}]; expected ${word.vectors} rows.`,
      );
    }
    parts.push(rows);
  }
  return concatRows(parts);
}

function fileOf(folder: string, word: NewWord, encoder: string, nameOf: WordFileName): string {
  return join(folder, `${nameOf(word)}${suffixes[encoder]}.safetensors`);
}
