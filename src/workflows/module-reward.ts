import { access } from 'node:fs/promises';
import { resolve } from 'node:path';
import { Worker } from 'node:worker_threads';
import { RewardError, UsageError } from '../errors.js';
import type { BlackBoxReward } from '../rewards/reward.js';

type Reply =
  | { readonly ok: true; readonly answer: unknown }
  | { readonly ok: false; readonly message: string };

/**
 * A reward whose function is the default export of a JavaScript module. It runs in a thread of its own, so that neither a long computation nor an endless loop holds
 * the run up: one that takes longer than allowed is ended, and the module is loaded again for the next question.
 *
 * @throws UsageError when there is no such file. RewardError when it cannot be loaded or exports no function.
 */
export async function openModuleReward(name: string, path: string, timeout: number): Promise<BlackBoxReward> {
  const file = resolve(path);
  await access(file).catch((error: unknown) => {
    throw new UsageError(
      `--reward ${path}: there is no such file. Give the path of a module whose default export is a function.`,
      {
        cause: error,
      },
    );
  });
  let thread: Worker | undefined = await started(name, path, file);
  return {
    kind: 'black box',
    name,
    timeout,
    async score(pictures, { step, prompt, prompts, signal }) {
      thread ??= await started(name, path, file);
      const end = (): void => {
        void thread?.terminate();
        thread = undefined;
      };
      signal.addEventListener('abort', end);
      try {
        thread.postMessage({ pictures, step, prompt, prompts });
        return await reply(thread);
      } catch (error) {
        end();
        throw error;
      } finally {
        signal.removeEventListener('abort', end);
      }
    },
    async close() {
      await thread?.terminate();
    },
  };
}

async function started(name: string, path: string, file: string): Promise<Worker> {
  const thread = new Worker(new URL('./module-reward-worker.js', import.meta.url), { workerData: file });
  try {
    await reply(thread);
    thread.unref();
    return thread;
  } catch (error) {
    await thread.terminate();
    throw new RewardError(
      `The reward ${name}: ${path} cannot be used: ${error instanceof Error ? error.message : String(error)}.`,
      { cause: error },
    );
  }
}

/** The thread's next answer. */
function reply(thread: Worker): Promise<unknown> {
  return new Promise((accept, reject) => {
    const settle = (): void => {
      thread.off('message', onMessage);
      thread.off('error', reject);
      thread.off('exit', onExit);
      thread.unref();
    };
    const onMessage = (message: Reply): void => {
      settle();
      if (message.ok) accept(message.answer);
      else reject(new Error(message.message));
    };
    const onExit = (): void => {
      settle();
      reject(new Error('its thread ended'));
    };
    thread.ref();
    thread.on('message', onMessage);
    thread.on('error', reject);
    thread.on('exit', onExit);
  });
}
