import { allocatorSettings } from '../engine/allocator.js';

/** What Node has on Linux from 22.15 on: puts another program in this one's place, with its process number, its terminal and its signals. */
type Execve = (file: string, args: readonly string[], env: NodeJS.ProcessEnv) => never;

/**
 * Starts this program again in its own place with the allocator's settings in the environment. Returns where there is nothing to do: on other systems, on a Node
 * that cannot, and where the user or an earlier start has set any of them.
 */
export function restartWithAllocatorSettings(): void {
  const { execve, env, platform } = process as typeof process & { readonly execve?: Execve };
  if (platform !== 'linux' || !execve) return;
  if (env.GLIBC_TUNABLES !== undefined || Object.keys(allocatorSettings).some((name) => name in env)) return;
  execve(process.execPath, [process.execPath, ...process.execArgv, ...process.argv.slice(1)], {
    ...env,
    ...allocatorSettings,
  });
}
