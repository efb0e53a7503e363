import type { Device } from '../engine/device.js';
import type { Engine } from '../engine/engine.js';
import { createNodeEngine } from '../engine/node.js';
import { UsageError } from '../errors.js';
import type { Cleanup } from './cleanup.js';

/** An engine that lives as long as the work. @throws UsageError for a number of threads that makes no sense. */
export function ownEngine(
  cleanup: Cleanup,
  { threads, device }: { readonly threads?: number; readonly device?: Device },
): Engine {
  if (threads !== undefined && !(Number.isInteger(threads) && threads >= 1)) {
    throw new UsageError(`--threads ${threads}: expected a whole number of at least 1.`);
  }
  const engine = createNodeEngine({
    ...(threads === undefined ? {} : { threads }),
    ...(device === undefined ? {} : { device }),
  });
  cleanup.defer(() => engine.close());
  return engine;
}
