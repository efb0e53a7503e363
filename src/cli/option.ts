import { Option } from 'commander';
import { schedulerNames } from '../diffusion/scheduler-config.js';
import { UsageError } from '../errors.js';
import { predictionTypes } from '../pretrained/architectures.js';
import { readMixedPrecision } from '../workflows/mixed-precision.js';

/** What a number has to be; in words, for the message. */
export interface NumberRange {
  readonly whole?: boolean;
  readonly atLeast?: number;
  readonly above?: number;
  readonly atMost?: number;
  readonly below?: number;
}

/** A flag that can be turned off too: `--random-flip` and `--no-random-flip`, shown as one in the help. */
export class SwitchOption extends Option {}

/** The name by which messages speak of an option: the short one of `--steps, --max-train-steps`. */
export function shownName(option: Option): string {
  return option.short ?? option.long ?? option.flags;
}

/** A flag with a text value; with `<name...>` it takes all that follow. @throws UsageError (when parsing) for an empty value, or a flag where the value should be. */
export function textOption(flags: string, description: string): Option {
  const option = described(flags, description);
  return option.argParser((value: string, previous: unknown) => {
    requireText(option, value);
    return option.variadic ? appended(previous, value) : value;
  });
}

/** A flag that may be given several times, one text each: a text whose quotes were forgotten is an error and not many texts. */
export function repeatedOption(flags: string, description: string): Option {
  const option = described(flags, description);
  return option.argParser((value: string, previous: unknown) => {
    requireText(option, value);
    return appended(previous, value);
  });
}

function requireText(option: Option, value: string): void {
  if (value.trim() === '') throw new UsageError(`${shownName(option)} "": expected a value.`);
  if (value.startsWith('--')) {
    throw new UsageError(`${shownName(option)}: expected a value, found the flag ${value} instead.`);
  }
}

function appended(previous: unknown, value: string): string[] {
  return Array.isArray(previous) ? [...previous, value] : [value];
}

/** A flag with a number, written in decimals or as 1e-4. @throws UsageError (when parsing) naming flag, value and what was expected. */
export function numberOption(flags: string, description: string, range: NumberRange = {}): Option {
  const option = described(flags, description);
  return option.argParser((value: string) => {
    const number = decimal.test(value) ? Number(value) : Number.NaN;
    if (!holds(number, range)) {
      throw new UsageError(`${shownName(option)} ${value}: expected ${inWords(range)}.`);
    }
    return number;
  });
}

/** A flag with a whole number. */
export function wholeOption(flags: string, description: string, range: NumberRange = {}): Option {
  return numberOption(flags, description, { ...range, whole: true });
}

/** A flag with one of a few words. @throws UsageError (when parsing) listing them. */
export function choiceOption(flags: string, description: string, choices: readonly string[]): Option {
  const option = described(flags, description);
  return option.argParser((value: string) => {
    if (choices.includes(value)) return value;
    throw new UsageError(`${shownName(option)} ${value}: expected ${list(choices)}.`);
  });
}

/** A flag without a value. */
export function flagOption(flag: string, description: string): Option {
  return new Option(flag, description);
}

/** LoRA files, each with a weight after a colon if it is not 1: `style.safetensors:0.8`. */
export function loraOption(description: string): Option {
  const option = described('--lora <file[:weight]>', description);
  return option.argParser((value: string, previous: unknown) => {
    requireText(option, value);
    const [, file, weight] = /^(.+):([^:/\\]*)$/.exec(value) ?? [];
    // A colon that no number follows is part of the name.
    const weighted = file !== undefined && decimal.test(weight!);
    const choice = weighted ? { file, weight: Number(weight) } : { file: value };
    return [...(Array.isArray(previous) ? previous : []), choice];
  });
}

/** What the denoiser predicts, for models that do not say it. */
export function predictionTypeOption(): Option {
  return choiceOption(
    '--prediction-type <name>',
    'epsilon or v_prediction (default: as the model says)',
    predictionTypes,
  );
}

/** Which weights of a model to take, and whether to ask the hub for it. */
export function modelSourceOptions(variant = 'full'): [Option, Option] {
  return [
    choiceOption(
      '--variant <name>',
      `Weights of the model: full, or fp16 at half the size (default: ${variant})`,
      ['full', 'fp16'],
    ),
    flagOption('--offline', 'Open no connection: a model of the hub has to be on this machine'),
  ];
}

/** `--mixed-precision`, for whatever runs a model. */
export function mixedPrecisionOption(description: string): Option {
  return described('--mixed-precision <kind>', description).argParser(readMixedPrecision);
}

/** `--scheduler`, the same wherever pictures are drawn. */
export function schedulerOption(): Option {
  return choiceOption(
    '--scheduler <name>',
    "Sampler: ddim, pndm, euler, euler-ancestral, dpm (DPM++ 2M) or ddpm, or its class's name in diffusers (default: the model's own)",
    schedulerNames,
  );
}

/** A switch and its opposite, `--no-…`. */
export function switchOptions(flag: string, description: string): [Option, Option] {
  return [new SwitchOption(flag, description), new Option(`--no-${flag.slice(2)}`).hideHelp()];
}

const decimal = /^[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?$/i;

function described(flags: string, description: string): Option {
  const option = new Option(flags, description);
  if (!option.short?.startsWith('--')) return option;
  option.description = description.endsWith(')')
    ? `${description.slice(0, -1)}; also ${option.long})`
    : `${description} (also ${option.long})`;
  return option;
}

function holds(number: number, { whole, atLeast, above, atMost, below }: NumberRange): boolean {
  return (
    Number.isFinite(number) &&
    (!whole || Number.isSafeInteger(number)) &&
    (atLeast === undefined || number >= atLeast) &&
    (above === undefined || number > above) &&
    (atMost === undefined || number <= atMost) &&
    (below === undefined || number < below)
  );
}

function inWords({ whole, atLeast, above, atMost, below }: NumberRange): string {
  const bounds = [
    atLeast === undefined ? '' : `of at least ${atLeast}`,
    above === undefined ? '' : `above ${above}`,
    atMost === undefined ? '' : `at most ${atMost}`,
    below === undefined ? '' : `below ${below}`,
  ].filter((bound) => bound !== '');
  return `${whole ? 'a whole number' : 'a number'}${bounds.length > 0 ? ` ${bounds.join(' and ')}` : ''}`;
}

function list(words: readonly string[]): string {
  return words.length === 1 ? words[0]! : `${words.slice(0, -1).join(', ')} or ${words.at(-1)}`;
}
