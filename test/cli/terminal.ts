import type { CommandFactory, Terminal } from '../../src/cli/command.js';
import { type CommandEntry, main } from '../../src/cli/main.js';

/** What a call of the command line ended with and wrote. */
export interface Outcome {
  readonly status: number;
  readonly out: string;
  readonly err: string;
}

/** Calls the command line in this process, with the commands given or its own. */
export async function callMain(
  args: readonly string[],
  entries?: Readonly<Record<string, CommandEntry>>,
): Promise<Outcome> {
  const written = { out: '', err: '' };
  const terminal: Terminal = {
    out: { columns: 100, write: (text) => (written.out += text) },
    err: { columns: 100, write: (text) => (written.err += text) },
  };
  const status = await main(args, terminal, entries);
  return { status, ...written };
}

/** A command as the command line lists it. */
export function entry(factory: CommandFactory): CommandEntry {
  return { summary: 'For the test', load: async () => factory };
}
