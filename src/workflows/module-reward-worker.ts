import { pathToFileURL } from 'node:url';
import { parentPort, workerData } from 'node:worker_threads';
import type { ScoreFunction } from '../rewards/function-reward.js';
import type { Picture } from '../rewards/reward.js';

/** The thread of a reward module: it loads the module and answers one question after another. */

const port = parentPort!;
const describe = (error: unknown): string => (error instanceof Error ? error.message : String(error));

interface Question {
  readonly pictures: Picture[];
  readonly step: number;
  readonly prompt: string;
  readonly prompts: string[];
}

async function load(): Promise<ScoreFunction> {
  const module = (await import(pathToFileURL(workerData as string).href)) as { default?: unknown };
  if (typeof module.default !== 'function') {
    throw new Error(
      `its default export is ${module.default === undefined ? 'missing' : `a ${typeof module.default}`}; expected a function of pictures that gives a number for each`,
    );
  }
  return module.default as ScoreFunction;
}

load().then(
  (score) => {
    port.on('message', async ({ pictures, step, prompt, prompts }: Question) => {
      try {
        const { signal } = new AbortController();
        const answer = await score(pictures, { step, prompt, prompts, signal });
        port.postMessage({ ok: true, answer });
      } catch (error) {
        port.postMessage({ ok: false, message: describe(error) });
      }
    });
    port.postMessage({ ok: true, answer: 'ready' });
  },
  (error) => port.postMessage({ ok: false, message: describe(error) }),
);
