import { Command, type CommanderError, type Option } from 'commander';
import { UsageError } from '../errors.js';
import { SwitchOption, shownName } from './option.js';
import type { ProgressStream } from './progress.js';
import { nearestWord } from './suggestion.js';

/** Where a command writes: what it made to `out`, one path a line; everything for the person watching to `err`. */
export interface Terminal {
  readonly out: ProgressStream;
  readonly err: ProgressStream;
}

/** A command of the command line, made when it is called for. */
export type CommandFactory = (terminal: Terminal) => Command;

/** A command whose help is laid out for reading and whose errors are thrown instead of ending the process. */
export function createCommand(name: string, terminal: Terminal): Command {
  return new Command(name)
    .exitOverride()
    .optionsGroup('Flags:')
    .helpOption('-h, --help', 'Show this help')
    .configureHelp({
      showGlobalOptions: false,
      styleTitle: (title) => `\x1b[1m${title}\x1b[22m`,
      styleOptionTerm: (term) => `\x1b[36m${term}\x1b[39m`,
      styleSubcommandTerm: (term) => `\x1b[36m${term}\x1b[39m`,
      optionTerm: (option) => optionTerm(option),
    })
    .configureOutput({
      writeOut: (text) => terminal.out.write(text),
      // Errors are thrown and told by whoever catches them, once.
      writeErr: () => undefined,
      getOutHelpWidth: () => Math.min(terminal.out.columns ?? 100, 120),
      getOutHasColors: () => terminal.out.isTTY === true && !process.env.NO_COLOR,
    });
}

function optionTerm(option: Option): string {
  if (option instanceof SwitchOption) return `--[no-]${option.long!.slice(2)}`;
  // Two long names: the short one here, the other at the end of the description.
  return option.short?.startsWith('--') ? option.flags.replace(`, ${option.long}`, '') : option.flags;
}

/** `--max_train_steps` means `--max-train-steps`: both spellings are in use. */
export function withDashes(args: readonly string[]): string[] {
  return args.map((arg) => {
    const name = /^--[a-z][\w-]*/i.exec(arg)?.[0];
    return name === undefined ? arg : name.replaceAll('_', '-') + arg.slice(name.length);
  });
}

/** @throws UsageError naming all flags that are missing at once. */
export function requireFlags(command: Command, needed: readonly string[], example: string): void {
  const given = command.opts();
  const missing = command.options.filter(
    (option) => needed.includes(option.attributeName()) && given[option.attributeName()] === undefined,
  );
  if (missing.length === 0) return;
  throw new UsageError(
    `portrayal ${command.name()} needs ${inWords(missing.map(shownName))}. For example:\n  ${example}`,
  );
}

function inWords(names: readonly string[]): string {
  return names.length < 2 ? names.join('') : `${names.slice(0, -1).join(', ')} and ${names.at(-1)}`;
}

/** What was wrong with the command line, with the nearest thing that would be right. */
export function usageError(error: CommanderError, command: Command): UsageError {
  const more = `See "portrayal ${command.parent ? `${command.name()} ` : ''}--help".`;
  const named = /'([^']+)'/.exec(error.message)?.[1] ?? '';
  if (error.code === 'commander.unknownOption') {
    const flag = named.split('=')[0]!;
    const known = command.options.flatMap((option) =>
      [option.short, option.long].filter((n) => n !== undefined),
    );
    const nearest = nearestWord(flag, known);
    return new UsageError(`Unknown flag ${flag}. ${nearest ? `Did you mean ${nearest}? ` : ''}${more}`);
  }
  if (error.code === 'commander.optionMissingArgument') {
    return new UsageError(`${named.split(/[ ,]/)[0]}: expected a value, found none. ${more}`);
  }
  if (error.code === 'commander.excessArguments') {
    const stray = command.args[0] ?? '';
    return new UsageError(
      `Did not expect "${stray}" here: every value belongs to a flag, and text with spaces needs quotes. ${more}`,
    );
  }
  return new UsageError(`${error.message.replace(/^error: /, '')} ${more}`);
}
