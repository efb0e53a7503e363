import { readFileSync } from 'node:fs';
import { type Command, CommanderError } from 'commander';
import { PortrayalError, UsageError } from '../errors.js';
import { type CommandFactory, createCommand, type Terminal, usageError, withDashes } from './command.js';
import type { ProgressStream } from './progress.js';
import { nearestWord } from './suggestion.js';

/** A command as listed: its file is loaded only when it is called. */
export interface CommandEntry {
  readonly summary: string;
  readonly load: () => Promise<CommandFactory>;
}

const commands: Readonly<Record<string, CommandEntry>> = {
  demo: {
    summary: 'Learn the bundled subject with the shipped base model, in a few minutes',
    load: async () => (await import('./demo.js')).demoCommand,
  },
  train: {
    summary: 'Teach a model one subject from a handful of photographs',
    load: async () => (await import('./train.js')).trainCommand,
  },
  generate: {
    summary: 'Draw pictures from prompts, with a trained run or a plain model',
    load: async () => (await import('./generate.js')).generateCommand,
  },
  evaluate: {
    summary: 'Score runs, or sets of them, by the rules of a benchmark',
    load: async () => (await import('./evaluate.js')).evaluateCommand,
  },
  merge: {
    summary: 'Bake LoRAs into a copy of a model',
    load: async () => (await import('./merge.js')).mergeCommand,
  },
  convert: {
    summary: 'Turn a LoRA into another format, or a model from folder to single file and back',
    load: async () => (await import('./convert.js')).convertCommand,
  },
  pretrain: {
    summary: 'Train the small base model from nothing, on the synthetic world',
    load: async () => (await import('./pretrain.js')).pretrainCommand,
  },
};

/** Where the width of the terminal is not known. */
const DEFAULT_COLUMNS = 80;
/** The exit status for a bug of ours (EX_SOFTWARE of sysexits.h). */
const INTERNAL_ERROR = 70;

/**
 * The command line. Errors that the user can cause are told by their message alone; anything else with its stack, as a bug of ours.
 *
 * @param args what follows the program's name
 * @returns the exit status
 */
export async function main(
  args: readonly string[],
  { out, err }: Terminal = { out: process.stdout, err: process.stderr },
  entries: Readonly<Record<string, CommandEntry>> = commands,
): Promise<number> {
  const watched = watchLines(err);
  const terminal: Terminal = { out, err: watched };
  const program = createProgram(terminal);
  let called: Command = program;
  try {
    const name = args[0] === 'help' ? args[1] : args[0];
    if (name !== undefined && !name.startsWith('-') && !Object.hasOwn(entries, name)) {
      throw unknownCommand(name, Object.keys(entries));
    }
    for (const [entryName, { summary, load }] of Object.entries(entries)) {
      const command = entryName === name ? (await load())(terminal) : createCommand(entryName, terminal);
      if (entryName === name) called = command;
      program.addCommand(command.description(summary));
    }
    if (args.length === 0 || (args[0] === 'help' && name === undefined)) return helped(program);
    if (args[0] === 'help') return helped(called);
    await program.parseAsync(withDashes(args), { from: 'user' });
    return 0;
  } catch (error) {
    if (error instanceof CommanderError && error.exitCode === 0) return 0;
    if (!watched.atLineStart()) err.write('\n');
    return tell(error instanceof CommanderError ? usageError(error, called) : error, err);
  }
}

function createProgram(terminal: Terminal): Command {
  return createCommand('portrayal', terminal)
    .description(
      'Teach a text-to-image model one subject from a handful of photographs, by reinforcement learning.',
    )
    .usage('COMMAND [FLAGS]')
    .version(version(), '-V, --version', 'Show the version')
    .helpCommand(false)
    .addHelpText(
      'after',
      '\n"portrayal COMMAND --help" shows the flags of a command. Start with "portrayal demo".',
    );
}

function helped(command: Command): number {
  command.outputHelp();
  return 0;
}

function version(): string {
  const text = readFileSync(new URL('../../../package.json', import.meta.url), 'utf8');
  return (JSON.parse(text) as { version: string }).version;
}

function unknownCommand(name: string, known: readonly string[]): UsageError {
  const nearest = nearestWord(name, known);
  const suggestion = nearest ? `Did you mean ${nearest}?` : `The commands are ${known.join(', ')}.`;
  return new UsageError(`Unknown command ${name}. ${suggestion} See "portrayal --help".`);
}

/** The same stream, knowing whether something stands on its last line: a progress bar that an error must not be appended to. */
function watchLines(stream: ProgressStream): ProgressStream & { atLineStart(): boolean } {
  let last = '\n';
  return {
    isTTY: stream.isTTY === true,
    get columns() {
      return stream.columns ?? DEFAULT_COLUMNS;
    },
    write(text) {
      last = text === '' ? last : text;
      return stream.write(text);
    },
    atLineStart: () => last.endsWith('\n'),
  };
}

function tell(error: unknown, err: ProgressStream): number {
  if (error instanceof PortrayalError) {
    err.write(`${error.message}\n`);
    return error.exitCode;
  }
  const stack = error instanceof Error ? (error.stack ?? error.message) : String(error);
  err.write(`internal error: this is a bug of portrayal; please report it with the lines below.\n${stack}\n`);
  return INTERNAL_ERROR;
}
