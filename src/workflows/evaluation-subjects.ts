import { readFile } from 'node:fs/promises';
import { resolve } from 'node:path';
import { InputError } from '../errors.js';
import { isObject, type Json } from '../formats/json-config.js';

/** What is known of a subject beside its photographs. */
export interface SubjectInput {
  /** What kind of thing it is: "dog". Default: what the runs were told. */
  readonly class?: string;
  /** Which of DreamBench's lists it takes. Default: whether the class is one of DreamBench's animals. */
  readonly live?: boolean;
  /** A folder of its photographs. Default: the folder of its name among the references. */
  readonly references?: string;
  /** Prompts of its own in place of the protocol's, with {} where the subject goes; or a text file of them, one a line. */
  readonly prompts?: string | readonly string[];
}

/**
 * Reads what is known of subjects from JSON: an object with a class, or a {@link SubjectInput}, for each name. Paths are relative to the file.
 *
 * @throws InputError naming the subject and the key.
 */
export async function readSubjects(path: string): Promise<Record<string, SubjectInput>> {
  const expected =
    'Expected {"dog6": "dog"} or {"dog6": {"class": "dog", "live": true, "references": "photos/dog6"}}.';
  const text = await readFile(path, 'utf8').catch((error: unknown) => {
    throw new InputError(`${path}: the file of the subjects cannot be read. ${expected}`, { cause: error });
  });
  let parsed: Json;
  try {
    parsed = JSON.parse(text) as Json;
  } catch (error) {
    throw new InputError(`${path}: this is not JSON (${(error as Error).message}). ${expected}`, {
      cause: error,
    });
  }
  if (!isObject(parsed)) throw new InputError(`${path}: this is not an object. ${expected}`);
  const near = (file: string): string => resolve(path, '..', file);
  return Object.fromEntries(
    Object.entries(parsed).map(([name, value]) => [name, readSubject(path, name, value ?? null, near)]),
  );
}

function readSubject(path: string, name: string, value: Json, near: (file: string) => string): SubjectInput {
  if (name === '' || name.startsWith('.') || /[/\\]/.test(name)) {
    throw new InputError(`${path}: "${name}" cannot be the name of a subject, since it is that of a folder.`);
  }
  if (typeof value === 'string') return { class: value };
  const wrong = (key: string, expected: string) =>
    new InputError(`${path}: ${name}.${key} is not known or not ${expected}.`);
  if (!isObject(value)) {
    throw new InputError(`${path}: ${name} is ${JSON.stringify(value)}; expected its class, or an object.`);
  }
  const input: { -readonly [K in keyof SubjectInput]: SubjectInput[K] } = {};
  for (const [key, given] of Object.entries(value)) {
    if (key === 'live') {
      if (typeof given !== 'boolean') throw wrong(key, 'true or false');
      input.live = given;
    } else if (key === 'class' || key === 'references' || key === 'prompts') {
      if (typeof given !== 'string') throw wrong(key, 'a text');
      input[key] = key === 'class' ? given : near(given);
    } else {
      throw wrong(key, 'one of class, live, references, prompts');
    }
  }
  return input;
}
