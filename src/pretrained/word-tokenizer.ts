import { join } from 'node:path';
import { writeFileAtomic } from '../formats/atomic-file.js';
import { makeFolder } from '../formats/make-folder.js';
import { byteAlphabet, byteStandIns } from './byte-alphabet.js';

const wordEnd = '</w>';
const startToken = '<|startoftext|>';
const endToken = '<|endoftext|>';

/** What the tokenizer's pattern leaves in one piece: a run of letters, or one digit. */
const onePiece = /^(\p{L}+|\p{N})$/u;

/**
 * Builds a CLIP tokenizer with a small vocabulary in which each of the given words is one token and any other text is still spelt in bytes: the 256 byte
 * characters, the same with `</w>`, the results of the merges, start and end. The merges come from training byte pair encoding (Sennrich et al. 2016) on the
 * words, each counted once, until every one is whole; so common parts are shared, and encoding a word replays its training.
 *
 * @param words in lower case, letters only, or single digits; the order and repetitions make no difference.
 * @param maxLength how many ids a prompt gives, start and end included.
 * @returns the files of a `tokenizer/` folder: name -> text.
 */
export function wordTokenizerFiles(words: Iterable<string>, maxLength: number): ReadonlyMap<string, string> {
  const merges = trainMerges([...new Set(words)].sort().map(spell));
  const characters = byteAlphabet();
  const results = new Set(merges.map(([left, right]) => left + right));
  const tokens = [
    ...characters,
    ...characters.map((char) => char + wordEnd),
    ...results,
    startToken,
    endToken,
  ];
  const vocabulary = Object.fromEntries(tokens.map((token, id) => [token, id]));
  const roles = { bos_token: startToken, eos_token: endToken, pad_token: endToken, unk_token: endToken };
  const settings = {
    tokenizer_class: 'CLIPTokenizer',
    model_max_length: maxLength,
    do_lower_case: true,
    ...roles,
  };
  return new Map([
    ['vocab.json', JSON.stringify(vocabulary)],
    ['merges.txt', ['#version: 0.2', ...merges.map((pair) => pair.join(' ')), ''].join('\n')],
    ['tokenizer_config.json', `${JSON.stringify(settings, null, 2)}\n`],
    ['special_tokens_map.json', `${JSON.stringify(roles, null, 2)}\n`],
  ]);
}

/** Writes the files of {@link wordTokenizerFiles} into a folder, which is made when it is not there. */
export async function writeWordTokenizer(
  folder: string,
  words: Iterable<string>,
  maxLength: number,
): Promise<void> {
  await makeFolder(folder);
  for (const [name, text] of wordTokenizerFiles(words, maxLength))
    await writeFileAtomic(join(folder, name), text);
}

/** A word as the symbols that merging starts from: its bytes' stand-ins, the last one marked as the word's end. */
function spell(word: string): string[] {
  if (!onePiece.test(word) || word !== word.normalize('NFC').toLowerCase()) {
    throw new Error(
      `internal: ${JSON.stringify(word)} cannot be one token; expected lower-case letters, or one digit`,
    );
  }
  const standIns = byteStandIns();
  const symbols = Array.from(new TextEncoder().encode(word), (byte) => standIns[byte]!);
  symbols[symbols.length - 1] += wordEnd;
  return symbols;
}

/** Joins the most frequent pair of neighbours everywhere, again and again, until every word is one symbol. Equal counts go to the pair that was met first. */
function trainMerges(words: string[][]): [string, string][] {
  const merges: [string, string][] = [];
  let spelt = words.filter((word) => word.length > 1);
  while (spelt.length > 0) {
    const pair = mostFrequentPair(spelt);
    merges.push(pair);
    spelt = spelt.map((word) => joinPair(word, pair)).filter((word) => word.length > 1);
  }
  return merges;
}

function mostFrequentPair(words: readonly string[][]): [string, string] {
  const counts = new Map<string, number>();
  for (const word of words) {
    for (let i = 1; i < word.length; i++) {
      const pair = `${word[i - 1]} ${word[i]}`;
      counts.set(pair, (counts.get(pair) ?? 0) + 1);
    }
  }
  let best = '';
  for (const [pair, count] of counts) if (count > (counts.get(best) ?? 0)) best = pair;
  return best.split(' ') as [string, string];
}

function joinPair(word: readonly string[], [left, right]: readonly [string, string]): string[] {
  const joined: string[] = [];
  for (let i = 0; i < word.length; i++) {
    if (word[i] === left && word[i + 1] === right) {
      joined.push(left + right);
      i++;
    } else {
      joined.push(word[i]!);
    }
  }
  return joined;
}
