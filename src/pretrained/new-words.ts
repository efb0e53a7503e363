import { InputError } from '../errors.js';
import type { ClipTokenizer } from './tokenizer.js';

/** A word that a model is to learn: rows of its own after those of the text encoders' tables of tokens. */
export interface NewWord {
  /** As it stands in prompts: "<new1>". */
  readonly word: string;
  /** How many tokens it is to the text encoders. */
  readonly vectors: number;
  /** A word of one token that the model knows: all the new rows start as its row. */
  readonly initializer: string;
}

/** New words as one tokenizer's ids. */
export interface EncodedWords {
  readonly tokenizer: ClipTokenizer;
  /** For each added row, in order, the row of the table that it starts as. */
  readonly startRows: readonly number[];
}

/**
 * Gives a tokenizer words that it does not have, each the ids that follow `firstId`.
 *
 * @throws InputError for a word that is in the vocabulary already, cannot be one, or comes twice; and for an initializer that is not one token.
 */
export function encodeNewWords(
  tokenizer: ClipTokenizer,
  words: readonly NewWord[],
  firstId: number,
): EncodedWords {
  const startRows: number[] = [];
  const added: { content: string; ids: number[] }[] = [];
  const taken = new Set<string>();
  for (const { word, vectors, initializer } of words) {
    checkNewWord(tokenizer, word);
    if (taken.has(word.toLowerCase())) {
      throw new InputError(
        `The new word "${word}" is given twice. Each has to be another one; letter case makes no difference.`,
      );
    }
    taken.add(word.toLowerCase());
    const row = initializerRow(tokenizer, initializer, word);
    const ids = Array.from({ length: vectors }, (_, i) => firstId + startRows.length + i);
    added.push({ content: word, ids });
    startRows.push(...ids.map(() => row));
  }
  return { tokenizer: tokenizer.withTokens(added), startRows };
}

function checkNewWord(tokenizer: ClipTokenizer, word: string): void {
  // What comes of it is the name of a file too.
  if (!/^[^\s/\\]+$/u.test(word)) {
    throw new InputError(
      `The new word ${JSON.stringify(word)} cannot be used: expected one without spaces and slashes, such as "<new1>".`,
    );
  }
  if (promptIds(tokenizer, word).length === 1) {
    throw new InputError(
      `The new word "${word}" is in the model's vocabulary already, and learning would change what it means. Choose one that is not, such as "<${word.replace(/[<>]/g, '')}>".`,
    );
  }
}

function initializerRow(tokenizer: ClipTokenizer, initializer: string, word: string): number {
  const ids = promptIds(tokenizer, initializer);
  const [id] = ids;
  if (id !== undefined && ids.length === 1) return id;
  throw new InputError(
    `"${word}" cannot start as "${initializer}": expected a word that is one token of the model's vocabulary, and this is ${ids.length}. Give a plain word for the kind of thing with --initializer-token, such as "dog".`,
  );
}

/** The ids of a text without start, end and padding. */
function promptIds(tokenizer: ClipTokenizer, text: string): readonly number[] {
  const { ids, length, truncatedText } = tokenizer.encode(text);
  return truncatedText === undefined ? ids.slice(1, length - 1) : ids.slice(1);
}
