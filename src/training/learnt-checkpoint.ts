import { join } from 'node:path';
import { isObject } from '../formats/json-config.js';
import { type CheckpointEntry, listCheckpoints } from './checkpoint.js';
import { EarlyStopping } from './early-stopping.js';
import { readMetrics } from './metrics-log.js';
import { latestCheckpoint, readRunConfig, runFiles } from './run-folder.js';

/** The early stopping of a run as far as it has come; undefined where none was asked for. */
export async function runStopping(path: string): Promise<EarlyStopping | undefined> {
  const { settings } = await readRunConfig(path);
  const patience = isObject(settings) ? settings.earlyStopping : undefined;
  if (typeof patience !== 'number') return undefined;
  return new EarlyStopping(patience, await readMetrics(join(path, runFiles.metrics)));
}

/** The checkpoint that holds what a run has learnt: the newest, or, with early stopping, the best so far. It can be read while another process trains. */
export async function learntCheckpoint(path: string): Promise<CheckpointEntry | undefined> {
  const best = (await runStopping(path))?.best?.step;
  const all = best === undefined ? [] : await listCheckpoints(join(path, runFiles.checkpoints));
  return all.find(({ step }) => step === best) ?? (await latestCheckpoint(path));
}
