import { join } from 'node:path';
import { Tokenizer } from '@huggingface/tokenizers';
import { ModelError } from '../errors.js';
import { type Config, isObject, type Json } from '../formats/json-config.js';
import { readConfigFile, readModelText } from '../formats/json-config-file.js';
import type { Component } from './model-folder.js';

/** A prompt as the text encoder takes it. */
export interface EncodedPrompt {
  /** Exactly `maxLength` ids: start, the prompt's tokens, end, padding. */
  readonly ids: readonly number[];
  /** How many of them come before the padding. */
  readonly length: number;
  /** The part of the prompt that did not fit, in lower case, as the tokenizer sees it. */
  readonly truncatedText?: string;
}

/** Turns prompts into the token ids that a CLIP text encoder was trained on. */
export interface ClipTokenizer {
  /** The number of ids that every prompt gives. */
  readonly maxLength: number;
  /** One more than the largest id: the least number of rows of a fitting embedding table. */
  readonly vocabularySize: number;
  readonly startId: number;
  readonly endId: number;
  readonly padId: number;
  encode(prompt: string): EncodedPrompt;
  /** The same with more tokens, found in a prompt as they stand, in any letter case; each may stand for several ids, which come after its own vocabulary's. */
  withTokens(tokens: readonly LongToken[]): ClipTokenizer;
}

/** A text that stands for several ids. */
export interface LongToken {
  readonly content: string;
  readonly ids: readonly number[];
}

/** The files of a tokenizer, parsed. */
interface TokenizerData {
  /** The file that errors about the vocabulary name. */
  readonly file: string;
  readonly vocabulary: ReadonlyMap<string, number>;
  readonly merges: readonly (readonly [string, string])[];
  readonly added: readonly AddedToken[];
  readonly roles: Readonly<Record<Role, string>>;
  readonly maxLength: number;
}

/** A token that is found in the text as it stands, before any splitting. */
interface AddedToken {
  readonly content: string;
  readonly id: number;
  /** Looked for in the text after normalisation, so in any letter case, or in the text as it was typed. */
  readonly normalized: boolean;
  readonly lstrip: boolean;
  readonly rstrip: boolean;
  readonly special: boolean;
}

/** An added token as configuration files give it; the id may follow from the vocabulary. */
type AddedTokenSpec = Omit<AddedToken, 'id'> & { readonly id?: number };

/** In the order in which transformers adds them: where two have the same text, the later one's properties count. */
const roleKeys = ['bos_token', 'eos_token', 'unk_token', 'pad_token'] as const;
type Role = (typeof roleKeys)[number];

/** CLIPTokenizer's own choices where the files are silent. */
const roleDefaults: Readonly<Record<Role, string>> = {
  bos_token: '<|startoftext|>',
  eos_token: '<|endoftext|>',
  unk_token: '<|endoftext|>',
  pad_token: '<|endoftext|>',
};

const wordEnd = '</w>';

/** How CLIP cuts a text before BPE: the markers, English contractions, runs of letters, single digits, runs of anything else that is not a space. */
const wordPattern =
  "<\\|startoftext\\|>|<\\|endoftext\\|>|'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+";

/** How the byte-level step cuts once more. The library's own pattern there counts U+FEFF as a space, which the reference does not, so it is given here. */
const byteLevelPattern = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/**
 * Reads the tokenizer of a model folder: `vocab.json` and `merges.txt`, or `tokenizer.json`, with the settings of `tokenizer_config.json` and
 * `special_tokens_map.json`. The ids are those of transformers' CLIPTokenizer.
 *
 * @param positions how many tokens the text encoder has places for; used where the tokenizer's own limit is absent or larger.
 * @throws ModelError when files are missing or malformed, or ask for something that is not supported.
 */
export async function openTokenizer(component: Component, positions = 77): Promise<ClipTokenizer> {
  const { folder, files, config } = component;
  config.oneOf('tokenizer_class', ['CLIPTokenizer', 'CLIPTokenizerFast'], 'CLIPTokenizer');
  config.must('do_lower_case', true, true);
  config.must('add_prefix_space', false, false);
  config.must('padding_side', 'right', 'right');
  config.must('truncation_side', 'right', 'right');
  const declared = config.number('model_max_length', positions);
  const { file, vocabulary, merges, listed } = await readVocabulary(folder, files);
  const { added, roles } = await readAddedTokens(component, vocabulary, listed, file);
  return clipTokenizer({ file, vocabulary, merges, added, roles, maxLength: Math.min(declared, positions) });
}

function clipTokenizer(data: TokenizerData, long: readonly LongToken[] = []): ClipTokenizer {
  const { maxLength, roles, vocabulary, added } = data;
  if (!Number.isSafeInteger(maxLength) || maxLength < 3) {
    throw new ModelError(
      `${data.file}: the tokenizer's model_max_length is ${maxLength}; expected a whole number of at least 3.`,
    );
  }
  const library = new Tokenizer(libraryDefinition(data), { clean_up_tokenization_spaces: false });
  const idOf = new Map([...vocabulary, ...added.map(({ content, id }) => [content, id] as const)]);
  const startId = idOf.get(roles.bos_token)!;
  const endId = idOf.get(roles.eos_token)!;
  const padId = idOf.get(roles.pad_token)!;
  let vocabularySize = 0;
  for (const id of [...idOf.values(), ...long.flatMap(({ ids }) => ids)]) {
    vocabularySize = Math.max(vocabularySize, id + 1);
  }
  const idsOf = new Map(long.map(({ ids }) => [ids[0]!, ids]));
  const rest = new Set(long.flatMap(({ ids }) => ids.slice(1)));
  return {
    maxLength,
    vocabularySize,
    startId,
    endId,
    padId,
    encode(prompt) {
      const found: number[] = library.encode(asReferenceReads(prompt), { add_special_tokens: false }).ids;
      const tokens = found.flatMap((id) => [...(idsOf.get(id) ?? [id])]);
      const kept = tokens.slice(0, maxLength - 2);
      const cut = tokens.slice(kept.length).filter((id) => !rest.has(id));
      const length = kept.length + 2;
      const ids = [startId, ...kept, endId, ...Array<number>(maxLength - length).fill(padId)];
      return cut.length === 0 ? { ids, length } : { ids, length, truncatedText: library.decode(cut).trim() };
    },
    withTokens(tokens) {
      const more = tokens.map(({ content, ids }) => ({
        content,
        id: ids[0]!,
        normalized: true,
        lstrip: false,
        rstrip: false,
        special: false,
      }));
      return clipTokenizer({ ...data, added: [...added, ...more] }, [...long, ...tokens]);
    },
  };
}

/**
 * Two places where the library would read a text unlike the reference tokenizer. JavaScript lower-cases a capital sigma at the end of a word to its final form, the
 * reference goes letter by letter and does not; a capital sigma has no other role in the text, so it can be lower-cased beforehand. And the library takes a text that is
 * nothing but an added token in other letter case for that token; a space at the end, which both drop, makes it look further.
 */
function asReferenceReads(prompt: string): string {
  return `${prompt.replaceAll('\u03a3', '\u03c3')} `;
}

/** CLIP's tokenizer in the library's own description of tokenizers (that of `tokenizer.json`). */
function libraryDefinition({ vocabulary, merges, added, roles }: TokenizerData): object {
  return {
    version: '1.0',
    added_tokens: added,
    normalizer: {
      type: 'Sequence',
      normalizers: [
        { type: 'NFC' },
        { type: 'Replace', pattern: { Regex: '\\s+' }, content: ' ' },
        { type: 'Lowercase' },
      ],
    },
    pre_tokenizer: {
      type: 'Sequence',
      pretokenizers: [
        { type: 'Split', pattern: { Regex: wordPattern }, behavior: 'Removed', invert: true },
        { type: 'Split', pattern: { Regex: byteLevelPattern }, behavior: 'Removed', invert: true },
        { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: false },
      ],
    },
    post_processor: null,
    decoder: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: {
      type: 'BPE',
      unk_token: roles.unk_token,
      continuing_subword_prefix: '',
      end_of_word_suffix: wordEnd,
      fuse_unk: false,
      vocab: Object.fromEntries(vocabulary),
      merges,
    },
  };
}

interface Vocabulary {
  readonly file: string;
  readonly vocabulary: ReadonlyMap<string, number>;
  readonly merges: readonly (readonly [string, string])[];
  /** The added tokens that `tokenizer.json` lists. */
  readonly listed: readonly AddedTokenSpec[];
}

async function readVocabulary(folder: string, files: readonly string[]): Promise<Vocabulary> {
  if (files.includes('tokenizer.json')) return readTokenizerJson(join(folder, 'tokenizer.json'));
  if (!files.includes('vocab.json') || !files.includes('merges.txt')) {
    throw new ModelError(
      `${folder} has neither tokenizer.json nor both of vocab.json and merges.txt. The model is incomplete; get those files too.`,
    );
  }
  const vocabularyFile = join(folder, 'vocab.json');
  const mergesFile = join(folder, 'merges.txt');
  const vocabulary = parseVocabulary((await readConfigFile(vocabularyFile)).entries(), vocabularyFile);
  const lines = (await readModelText(mergesFile)).split(/\r?\n/);
  const pairs = lines.filter((line) => line !== '' && !line.startsWith('#version'));
  return { file: vocabularyFile, vocabulary, merges: parseMerges(pairs, vocabulary, mergesFile), listed: [] };
}

async function readTokenizerJson(file: string): Promise<Vocabulary> {
  const config = await readConfigFile(file);
  const model = config.object('model');
  model.must('type', 'BPE', 'BPE');
  model.must('end_of_word_suffix', wordEnd);
  const merges = model.raw('merges');
  if (!Array.isArray(merges)) throw model.unsupported('merges', 'a list of pairs');
  const vocabulary = parseVocabulary(model.object('vocab').entries(), file);
  const listed = config.raw('added_tokens') ?? [];
  if (!Array.isArray(listed)) throw config.unsupported('added_tokens', 'a list of tokens');
  return {
    file,
    vocabulary,
    merges: parseMerges(merges, vocabulary, file),
    listed: listed.map((token: Json) => parseAddedToken(token, file)),
  };
}

function parseVocabulary(
  entries: readonly (readonly [string, Json])[],
  file: string,
): ReadonlyMap<string, number> {
  const tokenOf = new Map<Json, string>();
  for (const [token, id] of entries) {
    if (!Number.isSafeInteger(id) || (id as number) < 0) {
      throw new ModelError(
        `${file}: token ${JSON.stringify(token)} has the id ${JSON.stringify(id)}; expected a whole number.`,
      );
    }
    const other = tokenOf.get(id);
    if (other !== undefined) {
      throw new ModelError(
        `${file}: tokens ${JSON.stringify(other)} and ${JSON.stringify(token)} have the same id ${id}.`,
      );
    }
    tokenOf.set(id, token);
  }
  return new Map(entries as readonly (readonly [string, number])[]);
}

function parseMerges(
  merges: readonly Json[],
  vocabulary: ReadonlyMap<string, number>,
  file: string,
): readonly (readonly [string, string])[] {
  return merges.map((merge, i) => {
    const pair: Json = typeof merge === 'string' ? merge.split(' ') : merge;
    const [left, right] = Array.isArray(pair) ? pair : [];
    if (!Array.isArray(pair) || pair.length !== 2 || typeof left !== 'string' || typeof right !== 'string') {
      throw new ModelError(
        `${file}: merge ${i + 1} is ${JSON.stringify(merge)}; expected two tokens with a space between them.`,
      );
    }
    if (!vocabulary.has(left + right)) {
      throw new ModelError(
        `${file}: merge ${i + 1} makes the token ${JSON.stringify(left + right)}, which is not in the vocabulary.`,
      );
    }
    return [left, right];
  });
}

/**
 * Collects the added tokens and the special roles as transformers does: the configuration's own list of added tokens, or else `special_tokens_map.json` over the
 * configuration, `added_tokens.json`, and the list of `tokenizer.json`.
 */
async function readAddedTokens(
  { folder, files, config }: Component,
  vocabulary: ReadonlyMap<string, number>,
  listed: readonly AddedTokenSpec[],
  file: string,
): Promise<{ added: AddedToken[]; roles: Record<Role, string> }> {
  const specs: AddedTokenSpec[] = [];
  const sources: Config[] = [config];
  if (config.has('added_tokens_decoder')) {
    for (const [id, token] of config.object('added_tokens_decoder').entries()) {
      specs.push({ ...parseAddedToken(token, config.file), id: Number(id) });
    }
  } else {
    if (files.includes('special_tokens_map.json')) {
      sources.unshift(await readConfigFile(join(folder, 'special_tokens_map.json')));
    }
    if (files.includes('added_tokens.json')) {
      specs.push(...(await readExtraTokens(join(folder, 'added_tokens.json'))));
    }
    specs.push(...listed);
  }
  specs.sort((a, b) => (a.id ?? 0) - (b.id ?? 0));
  const listedTexts = new Set(specs.map((spec) => spec.content));
  const roles = { ...roleDefaults };
  for (const key of roleKeys) {
    const source = sources.find((s) => s.has(key));
    const spec = source === undefined ? specialToken(roleDefaults[key]) : roleToken(source, key);
    roles[key] = spec.content;
    if (!listedTexts.has(spec.content)) specs.push(spec);
  }
  const added = new Map<string, AddedToken>();
  for (const spec of specs) {
    const id = vocabulary.get(spec.content) ?? spec.id;
    if (id === undefined) {
      throw new ModelError(
        `${file}: the special token ${JSON.stringify(spec.content)} is not in the vocabulary.`,
      );
    }
    added.set(spec.content, { ...spec, id });
  }
  return { added: [...added.values()], roles };
}

function roleToken(source: Config, key: Role): AddedTokenSpec {
  const value = source.raw(key)!;
  if (typeof value === 'string') return specialToken(value);
  return { ...parseAddedToken(value, source.file), special: true };
}

function specialToken(content: string): AddedTokenSpec {
  return { content, normalized: false, lstrip: false, rstrip: false, special: true };
}

async function readExtraTokens(file: string): Promise<AddedTokenSpec[]> {
  const ids = parseVocabulary((await readConfigFile(file)).entries(), file);
  return [...ids].map(([content, id]) => ({
    content,
    id,
    normalized: true,
    lstrip: false,
    rstrip: false,
    special: false,
  }));
}

function parseAddedToken(token: Json, file: string): AddedTokenSpec {
  const {
    content,
    id,
    single_word: singleWord,
    special,
    normalized,
    lstrip,
    rstrip,
  } = isObject(token) ? token : {};
  if (typeof content !== 'string' || content === '') {
    throw new ModelError(
      `${file}: an added token is ${JSON.stringify(token)}; expected an object with its text as "content".`,
    );
  }
  if (singleWord === true) {
    throw new ModelError(
      `${file}: the added token ${JSON.stringify(content)} has "single_word" true, which is not supported; supported: false.`,
    );
  }
  return {
    content,
    ...(typeof id === 'number' ? { id } : {}),
    normalized: typeof normalized === 'boolean' ? normalized : special !== true,
    lstrip: lstrip === true,
    rstrip: rstrip === true,
    special: special === true,
  };
}
