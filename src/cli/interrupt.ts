/** One Ctrl-C can arrive twice: npm and npx pass on what the terminal has sent to all of them already. In milliseconds. */
const SAME_KEYSTROKE = 500;
const signals = ['SIGINT', 'SIGTERM'] as const;

/**
 * Does work that Ctrl-C (or SIGTERM) stops in order: the first raises the abort signal, so that the step ends and everything is saved; a second stops at
 * once. That one is the signal's own default action, not an exit: an exit waits for the engine in mid-step, or aborts it with a core dump. Files
 * are written whole or not at all, so it loses nothing but the step.
 *
 * @param say tells the person what happens
 * @param ending what the first Ctrl-C does: "finishing this step, then saving"
 */
export async function interruptible<T>(
  say: (message: string) => void,
  ending: string,
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const controller = new AbortController();
  let askedAt: number | undefined;
  const asked = (signal: NodeJS.Signals): void => {
    if (askedAt === undefined) {
      askedAt = Date.now();
      say(`${ending} … Press Ctrl-C again to stop at once.`);
      controller.abort();
    } else if (Date.now() - askedAt > SAME_KEYSTROKE) {
      say('Stopped.');
      process.removeAllListeners(signal);
      process.kill(process.pid, signal);
    }
  };
  for (const signal of signals) process.on(signal, asked);
  try {
    return await work(controller.signal);
  } finally {
    for (const signal of signals) process.off(signal, asked);
  }
}
