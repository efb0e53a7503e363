import { readFile } from 'node:fs/promises';
import { mentionsSubject, readSubjectPrompt, type SubjectPrompt } from '../data/prompts.js';
import { InputError, UsageError } from '../errors.js';
import { isObject, type Json } from '../formats/json-config.js';
import type { NewWord } from '../pretrained/new-words.js';
import type { PersonaliseSettings } from './personalisation-settings.js';

/** One thing to teach: its photographs, and how they are spoken of. */
export interface Concept {
  /** A folder of three to six photographs, or a list of files. */
  readonly images: string | readonly string[];
  /** Names it by a rare word: "photo of a <new1> cat". */
  readonly instancePrompt: string;
  /** The same without that word; found from the instance prompt when it is left out. */
  readonly classPrompt?: string;
  /** Where pictures of its class are kept; inside the run folder by default. */
  readonly classDataDir?: string;
}

/** What says which concepts to teach: one, or a list of several. */
export interface ConceptOptions {
  readonly images?: Concept['images'];
  readonly instancePrompt?: string;
  readonly classPrompt?: string;
  readonly classDataDir?: string;
  /** Several concepts at once, or a JSON file of them, as diffusers' Custom Diffusion script takes it. */
  readonly concepts?: string | readonly Concept[];
}

const EXAMPLE =
  '[{"instance_data_dir": "cat/", "instance_prompt": "photo of a <new1> cat", "class_prompt": "cat"}]';

/** @throws UsageError when nothing, or both one concept and several are given. InputError for a file that is no list of concepts. */
export async function readConcepts(options: ConceptOptions): Promise<readonly Concept[]> {
  const { concepts, images, instancePrompt, classPrompt, classDataDir } = options;
  if (concepts === undefined) {
    if (images === undefined || instancePrompt === undefined) {
      throw new UsageError(
        'Expected photographs and a prompt that names what they show (--images and --prompt), or a list of several concepts (--concepts-list).',
      );
    }
    return [
      {
        images,
        instancePrompt,
        ...(classPrompt === undefined ? {} : { classPrompt }),
        ...(classDataDir === undefined ? {} : { classDataDir }),
      },
    ];
  }
  const doubled = Object.entries({
    images,
    prompt: instancePrompt,
    'class-prompt': classPrompt,
    'class-data-dir': classDataDir,
  })
    .filter(([, value]) => value !== undefined)
    .map(([name]) => `--${name}`);
  if (doubled.length > 0) {
    throw new UsageError(
      `--concepts-list already says what ${doubled.join(' and ')} would. Leave one of them out.`,
    );
  }
  const list = typeof concepts === 'string' ? await readConceptsFile(concepts) : concepts;
  if (list.length === 0) throw new InputError(`The list of concepts is empty. Expected ${EXAMPLE}.`);
  return list;
}

async function readConceptsFile(path: string): Promise<Concept[]> {
  const text = await readFile(path, 'utf8').catch((error: unknown) => {
    throw new InputError(`${path}: the list of concepts cannot be read.`, { cause: error });
  });
  let list: Json;
  try {
    list = JSON.parse(text) as Json;
  } catch (error) {
    throw new InputError(
      `${path}: the list of concepts is not JSON (${error instanceof Error ? error.message : error}).`,
      {
        cause: error,
      },
    );
  }
  if (!Array.isArray(list)) throw new InputError(`${path}: expected a list of concepts: ${EXAMPLE}.`);
  return list.map((entry, i) => readConcept(entry, `${path}, concept ${i + 1}`));
}

const keys = ['instance_data_dir', 'instance_prompt', 'class_prompt', 'class_data_dir'] as const;

function readConcept(entry: Json, place: string): Concept {
  if (!isObject(entry)) throw new InputError(`${place}: expected an object such as ${EXAMPLE.slice(1, -1)}.`);
  const text = (key: (typeof keys)[number]): string | undefined => {
    const value = entry[key];
    if (value === undefined || (typeof value === 'string' && value.trim() !== '')) return value;
    throw new InputError(`${place}: "${key}" is ${JSON.stringify(value)}; expected a text.`);
  };
  const unknown = Object.keys(entry).filter((key) => !(keys as readonly string[]).includes(key));
  if (unknown.length > 0) {
    throw new InputError(`${place}: unknown key ${unknown.join(', ')}. The keys are ${keys.join(', ')}.`);
  }
  const [images, instancePrompt, classPrompt, classDataDir] = keys.map(text);
  if (images === undefined || instancePrompt === undefined) {
    throw new InputError(`${place}: "instance_data_dir" and "instance_prompt" are both needed.`);
  }
  return {
    images,
    instancePrompt,
    ...(classPrompt === undefined ? {} : { classPrompt }),
    ...(classDataDir === undefined ? {} : { classDataDir }),
  };
}

type WordSettings = Pick<
  PersonaliseSettings,
  'train' | 'placeholderToken' | 'modifierToken' | 'initializerToken' | 'numVectors'
>;

/**
 * How a concept is spoken of. An instance prompt that is about a new word alone ("a photo of <toy>") has the word that it starts as for its class ("a photo of backpack").
 */
export function conceptSubject(
  { instancePrompt, classPrompt }: Concept,
  { placeholderToken, initializerToken }: WordSettings,
): SubjectPrompt {
  if (classPrompt !== undefined) return readSubjectPrompt({ instancePrompt, classPrompt });
  const initializer = initializerToken?.[0];
  if (
    placeholderToken !== undefined &&
    initializer !== undefined &&
    instancePrompt.includes(placeholderToken)
  ) {
    const rest = instancePrompt.replaceAll(placeholderToken, '');
    try {
      return readSubjectPrompt({ instancePrompt, classPrompt: rest });
    } catch {
      return readSubjectPrompt({
        instancePrompt,
        classPrompt: instancePrompt.replaceAll(placeholderToken, initializer),
      });
    }
  }
  return readSubjectPrompt({ instancePrompt });
}

/** What the authors of Custom Diffusion start their words as, and diffusers' script after them: rare tokens of CLIP's vocabulary. */
const RARE = ['ktn', 'pll', 'ucd'];

/**
 * The words that these settings have a model learn.
 *
 * @throws InputError for a word that no prompt of a concept names, or a concept that names none of them.
 */
export function newWords(settings: WordSettings, subjects: readonly SubjectPrompt[]): NewWord[] {
  const { train, placeholderToken, modifierToken = [], initializerToken = [], numVectors } = settings;
  const words: NewWord[] =
    train === 'textual-inversion'
      ? [
          {
            word: placeholderToken!,
            vectors: numVectors,
            initializer: initializerToken[0] ?? subjects[0]!.className,
          },
        ]
      : train === 'custom-diffusion'
        ? modifierToken.map((word, i) => ({ word, vectors: 1, initializer: initializerToken[i] ?? RARE[i]! }))
        : [];
  const names = (prompt: string, word: string): boolean => mentionsSubject(prompt, { token: word });
  for (const { word } of words) {
    if (!subjects.some(({ instancePrompt }) => names(instancePrompt, word))) {
      throw new InputError(
        `The new word "${word}" is in none of the instance prompts (${subjects.map((s) => `"${s.instancePrompt}"`).join(', ')}), so nothing would be learnt of it. Put it where the subject is named: "a photo of a ${word} ${subjects[0]!.className}".`,
      );
    }
  }
  for (const { instancePrompt } of subjects) {
    if (words.length > 0 && !words.some(({ word }) => names(instancePrompt, word))) {
      throw new InputError(
        `The instance prompt "${instancePrompt}" names none of the new words ${words.map(({ word }) => `"${word}"`).join(', ')}, so its pictures would teach nothing of them.`,
      );
    }
  }
  return words;
}
