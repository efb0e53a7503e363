import { ModelError } from '../errors.js';

/** Any value that JSON can hold. */
export type Json = null | boolean | number | string | readonly Json[] | { readonly [key: string]: Json };

/** Far beyond what any model's file needs. */
const maxDepth = 100;

type Scalar = boolean | number | string | null;

/**
 * Reads one configuration file of a model, key by key, with every value checked. Each method names the key it reads and throws a `ModelError` with the file,
 * the key, the value found and what is supported; there is no silent default. A `fallback` is what the model's own library uses where the key is absent
 * (configs leave out keys that are younger than they are); it is not used for a value that is there and wrong. Without a fallback the key is required.
 *
 * ```ts
 * const config = parseConfig(text, 'unet/config.json');
 * config.must('_class_name', 'UNet2DConditionModel');
 * const channels = config.integers('block_out_channels');
 * const depth = config.integerOrIntegers('layers_per_block', channels.length, 2);
 * const activation = config.oneOf('act_fn', ['silu', 'gelu'], 'silu');
 * config.must('dual_cross_attention', false, false);
 * config.ignore('sample_size');
 * config.finish();
 * ```
 */
export class Config {
  readonly #values: { readonly [key: string]: Json };
  readonly #read = new Set<string>();

  constructor(
    /** The file's name, as error messages give it. */
    readonly file: string,
    values: { readonly [key: string]: Json },
    private readonly prefix = '',
  ) {
    this.#values = values;
  }

  /** Whether the key is there with a value other than null. */
  has(key: string): boolean {
    return this.#at(key) != null;
  }

  /** All keys with their values, unchecked, in the order that JSON gives them. For files whose keys are data, such as vocabularies. */
  entries(): [string, Json][] {
    return Object.entries(this.#values);
  }

  /** A whole number, at least `min` (1 unless told). */
  integer(key: string, fallback?: number, min = 1): number {
    return this.#take(key, fallback, isIntegerFrom(min), `a whole number of at least ${min}`);
  }

  /** A whole number, or undefined where the key is null or absent. */
  optionalInteger(key: string, min = 1): number | undefined {
    return this.has(key) ? this.integer(key, undefined, min) : this.#absent(key);
  }

  /** A finite number. */
  number(key: string, fallback?: number): number {
    return this.#take(key, fallback, isNumber, 'a number');
  }

  /** A finite number, or undefined where the key is null or absent. */
  optionalNumber(key: string): number | undefined {
    return this.has(key) ? this.number(key) : this.#absent(key);
  }

  boolean(key: string, fallback?: boolean): boolean {
    return this.#take(key, fallback, (v) => typeof v === 'boolean', 'true or false');
  }

  string(key: string, fallback?: string): string {
    return this.#take(key, fallback, (v) => typeof v === 'string', 'a text');
  }

  optionalString(key: string): string | undefined {
    return this.has(key) ? this.string(key) : this.#absent(key);
  }

  /** One of the listed values, typed as such: `oneOf('act_fn', ['silu', 'gelu'])` is `'silu' | 'gelu'`. */
  oneOf<const T extends Scalar>(key: string, choices: readonly T[], fallback?: NoInfer<T>): T {
    const supported = choices.map((c) => JSON.stringify(c)).join(', ');
    return this.#take(key, fallback, (v): v is T & Json => choices.includes(v as T), supported);
  }

  /**
   * A key whose only supported value is `expected` (compared by its JSON). `whenAbsent` is what the model's library takes for an absent key; without it the key
   * is required. `must('upcast', false, false)` accepts an absent key, `must('mode', 'b', 'a')` does not.
   */
  must(key: string, expected: Json, whenAbsent?: Json): void {
    this.#read.add(key);
    const wanted = JSON.stringify(expected);
    const found = this.#at(key) === undefined ? whenAbsent : this.#at(key);
    if (JSON.stringify(found) !== wanted) throw this.unsupported(key, wanted);
  }

  /** A list of whole numbers, each at least `min`; of exactly `length` entries where that is given. */
  integers(
    key: string,
    options: { length?: number; fallback?: readonly number[]; min?: number } = {},
  ): number[] {
    const { length, fallback, min = 1 } = options;
    return this.#list(key, fallback, isIntegerFrom(min), `whole numbers of at least ${min}`, length);
  }

  /** A list of finite numbers. */
  numbers(key: string, options: { length?: number; fallback?: readonly number[] } = {}): number[] {
    return this.#list(key, options.fallback, isNumber, 'numbers', options.length);
  }

  /** A list of true and false. */
  booleans(key: string, options: { length?: number; fallback?: readonly boolean[] } = {}): boolean[] {
    return this.#list(
      key,
      options.fallback,
      (v): v is boolean => typeof v === 'boolean',
      'true or false',
      options.length,
    );
  }

  /** A list whose every entry is one of the listed texts: the block types of a UNet. */
  listOf<const T extends string>(
    key: string,
    choices: readonly T[],
    options: { length?: number; fallback?: readonly NoInfer<T>[] } = {},
  ): T[] {
    const supported = choices.map((c) => JSON.stringify(c)).join(', ');
    const isChoice = (v: Json): v is T & Json => choices.includes(v as T);
    return this.#list<T & Json>(
      key,
      options.fallback as readonly (T & Json)[] | undefined,
      isChoice,
      supported,
      options.length,
    );
  }

  /** A whole number for all of `length` levels, or a list with one for each; always returns the list. */
  integerOrIntegers(key: string, length: number, fallback?: number, min = 1): number[] {
    if (Array.isArray(this.#at(key))) return this.integers(key, { length, min });
    return Array<number>(length).fill(this.integer(key, fallback, min));
  }

  /** true or false for all of `length` levels, or a list with one for each; always returns the list. */
  booleanOrBooleans(key: string, length: number, fallback?: boolean): boolean[] {
    if (Array.isArray(this.#at(key))) return this.booleans(key, { length });
    return Array<boolean>(length).fill(this.boolean(key, fallback));
  }

  /** A nested object, read in the same way; its keys appear as `outer.inner` in errors. Absent or null is an empty object when `optional`. */
  object(key: string, optional = false): Config {
    const value = this.#at(key);
    this.#read.add(key);
    if (isObject(value)) return new Config(this.file, value, `${this.prefix}${key}.`);
    if (value == null && optional) return new Config(this.file, {}, `${this.prefix}${key}.`);
    throw this.unsupported(key, 'an object');
  }

  /** The same file with some keys replaced, as if it said so. */
  with(values: { readonly [key: string]: Json }): Config {
    return new Config(this.file, { ...this.#values, ...values }, this.prefix);
  }

  /** The value as it stands in the file, unchecked; undefined where the key is absent. */
  raw(key: string): Json | undefined {
    this.#read.add(key);
    return this.#at(key);
  }

  /** Declares keys that do not change what the model computes here (training-time dropout, ids of tokens, versions). */
  ignore(...keys: readonly string[]): this {
    for (const key of keys) this.#read.add(key);
    return this;
  }

  /**
   * Rejects a key that nobody has read or ignored and whose value is not neutral (null, false, an empty list or object), as it may change what the model
   * computes. Keys that start with an underscore are notes of the library that wrote the file.
   */
  finish(): void {
    for (const [key, value] of Object.entries(this.#values)) {
      if (this.#read.has(key) || key.startsWith('_') || isNeutral(value)) continue;
      throw new ModelError(
        `${this.file}: the setting ${JSON.stringify(this.prefix + key)} is ${showJson(value)}, which is not known here and may change what the model computes. ` +
          `Supported: the key left out, null or false. If the setting makes no difference to the model's output, remove it from the file.`,
      );
    }
  }

  /** The error for a value that cannot be used, for rules that take more than one key. `supported` completes "supported: …". */
  unsupported(key: string, supported: string): ModelError {
    const value = this.#at(key);
    const name = JSON.stringify(this.prefix + key);
    return new ModelError(
      value === undefined
        ? `${this.file}: the setting ${name} is missing; supported: ${supported}.`
        : `${this.file}: the setting ${name} is ${showJson(value)}, which is not supported; supported: ${supported}.`,
    );
  }

  #at(key: string): Json | undefined {
    return Object.hasOwn(this.#values, key) ? this.#values[key] : undefined;
  }

  #absent(key: string): undefined {
    this.#read.add(key);
    return undefined;
  }

  #take<T extends Scalar>(
    key: string,
    fallback: T | undefined,
    accepts: ((v: Json) => v is T & Json) | ((v: Json) => boolean),
    supported: string,
  ): T {
    this.#read.add(key);
    const value = this.#at(key);
    if (value === undefined && fallback !== undefined) return fallback;
    if (value === undefined || !accepts(value)) throw this.unsupported(key, supported);
    return value as T;
  }

  #list<T extends Json>(
    key: string,
    fallback: readonly T[] | undefined,
    accepts: (v: Json) => v is T,
    supported: string,
    length: number | undefined,
  ): T[] {
    this.#read.add(key);
    const value = this.#at(key);
    if (value === undefined && fallback !== undefined) return [...fallback];
    const fits = (v: Json | undefined): v is T[] =>
      Array.isArray(v) && v.every(accepts) && v.length === (length ?? v.length) && v.length > 0;
    if (!fits(value))
      throw this.unsupported(key, `a list of ${length === undefined ? '' : `${length} times `}${supported}`);
    return [...value];
  }
}

/**
 * Parses a configuration file's text.
 *
 * @param file the name that errors give, best the path as the user knows it.
 * @throws ModelError when the text is not one JSON object.
 */
export function parseConfig(text: string, file: string): Config {
  const value = parseJson(text, file);
  if (!isObject(value)) throw new ModelError(`${file}: expected a JSON object, found ${showJson(value)}.`);
  return new Config(file, value);
}

/**
 * Parses JSON, with a `ModelError` that names the file when it is malformed. A byte order mark is skipped. Python writes what JSON cannot hold: `Infinity` and
 * `-Infinity` are understood, and `NaN` becomes that text, for whoever wants a number to refuse by name.
 */
export function parseJson(text: string, file: string): Json {
  let value: Json;
  try {
    value = JSON.parse(withPythonNumbers(text.replace(/^\uFEFF/, ''))) as Json;
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new ModelError(`${file} is not valid JSON (${reason}). The file may be cut short; get it again.`, {
      cause: error,
    });
  }
  if (isTooDeep(value))
    throw new ModelError(`${file} is nested more than ${maxDepth} deep; no such file is expected.`);
  return value;
}

/** Python's words for numbers, outside of strings: infinities as numbers too large for a double, which JavaScript reads as infinite. */
function withPythonNumbers(text: string): string {
  if (!/Infinity|NaN/.test(text)) return text;
  const words: Readonly<Record<string, string>> = { Infinity: '1e999', NaN: '"NaN"' };
  return text.replace(/"(?:[^"\\]|\\.)*"|\b(?:Infinity|NaN)\b/g, (part) => words[part] ?? part);
}

/** Whether a JSON value is an object: neither null nor a list. */
export function isObject(value: Json | undefined): value is { readonly [key: string]: Json } {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function isNumber(value: Json): value is number {
  return typeof value === 'number' && Number.isFinite(value);
}

function isIntegerFrom(min: number): (value: Json) => value is number {
  return (value): value is number => Number.isSafeInteger(value) && (value as number) >= min;
}

function isNeutral(value: Json): boolean {
  if (value === null || value === false) return true;
  return typeof value === 'object' && Object.keys(value).length === 0;
}

/** A JSON value as error messages show it: at most 80 characters. */
export function showJson(value: Json): string {
  if (isTooDeep(value)) return 'a value nested too deep';
  const text = typeof value === 'number' ? String(value) : JSON.stringify(value);
  return text.length > 80 ? `${text.slice(0, 77)}...` : text;
}

/** Whether a value is nested so deep that no file of a model is, and that code which walks it would run out of stack. */
function isTooDeep(value: Json): boolean {
  let level: Json[] = [value];
  for (let depth = 0; depth < maxDepth; depth++) {
    level = level.flatMap((v) => (typeof v === 'object' && v !== null ? Object.values(v) : []));
    if (level.length === 0) return false;
  }
  return true;
}
