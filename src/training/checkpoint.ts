import { mkdir, readdir, readFile, rename, rm } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { OutputError, RunError } from '../errors.js';
import { flushFolder, outputError } from '../formats/atomic-file.js';
import { isObject, type Json } from '../formats/json-config.js';
import { writeJsonFile } from '../formats/json-config-file.js';
import type { TensorStream } from '../formats/safetensors.js';
import { openSafetensors, type SafetensorsFile, writeTensorStreams } from '../formats/safetensors-file.js';

/** Everything that training carries from one step to the next, apart from the run's configuration. */
export interface Checkpoint {
  /** Steps done when it was taken. */
  readonly step: number;
  readonly path: string;
  /** Weights, optimiser moments, critic, moving averages, caches: by name, in their file. */
  readonly tensors: SafetensorsFile;
  /** What is not a tensor: counters, running means, the position in the data order. */
  readonly progress: { readonly [name: string]: Json };
}

/** What a checkpoint is made of. */
export interface CheckpointContents extends Pick<Checkpoint, 'step' | 'progress'> {
  /** Read when their turn comes, so that no more than one of them has to be in memory. */
  readonly tensors: readonly TensorStream[];
}

/** A checkpoint's place, as listed without reading it. */
export interface CheckpointEntry {
  readonly step: number;
  readonly path: string;
}

const FORMAT = 'portrayal-checkpoint/1';
const TENSORS = 'state.safetensors';
const PROGRESS = 'state.json';
const named = /^step-(\d{6,})$/;
/** Folders being written or removed: hidden, so that neither a person nor {@link listCheckpoints} takes one for a checkpoint. */
const unfinished = /^\.step-\d+\.(partial|removed)$/;

function folderName(step: number): string {
  return `step-${String(step).padStart(6, '0')}`;
}

/** The complete checkpoints below `folder`, oldest first. */
export async function listCheckpoints(folder: string): Promise<CheckpointEntry[]> {
  const names = await readdir(folder).catch(() => []);
  return names
    .flatMap((name) => {
      const step = named.exec(name)?.[1];
      return step === undefined ? [] : [{ step: Number(step), path: join(folder, name) }];
    })
    .sort((a, b) => a.step - b.step);
}

/**
 * Writes a checkpoint so that it is there whole or not at all, whenever the process is killed or the power fails: its files go into a hidden folder and are
 * flushed, and the folder takes its final name in one step. One that is already there for this step is kept: in one run the same step has the same state.
 *
 * @throws OutputError when the disk is full or cannot be written; earlier checkpoints stay.
 */
export async function writeCheckpoint(folder: string, state: CheckpointContents): Promise<CheckpointEntry> {
  const entry = { step: state.step, path: join(folder, folderName(state.step)) };
  if ((await listCheckpoints(folder)).some(({ step }) => step === state.step)) return entry;
  const partial = join(folder, `.${folderName(state.step)}.partial`);
  try {
    await rm(partial, { recursive: true, force: true });
    await mkdir(partial, { recursive: true });
    await writeTensorStreams(join(partial, TENSORS), state.tensors);
    const progress = { format: FORMAT, step: state.step, progress: state.progress };
    await writeJsonFile(join(partial, PROGRESS), progress);
    await rename(partial, entry.path);
  } catch (error) {
    await rm(partial, { recursive: true, force: true }).catch(() => undefined);
    const reason = outputError(entry.path, error);
    if (!(reason instanceof OutputError)) throw reason;
    throw new OutputError(
      `The checkpoint of step ${state.step} could not be saved; the earlier ones are whole. ${reason.message}`,
      { cause: error },
    );
  }
  await flushFolder(folder);
  return entry;
}

/**
 * Opens a checkpoint: its tensors stay in their file.
 *
 * @throws RunError naming the file when the checkpoint is not whole or was not written by this program.
 */
export async function openCheckpoint(path: string): Promise<Checkpoint> {
  try {
    const state: Json = JSON.parse(await readFile(join(path, PROGRESS), 'utf8'));
    if (!isObject(state) || state.format !== FORMAT) {
      throw new Error(`${PROGRESS} is not of the format ${FORMAT}`);
    }
    const { step, progress } = state;
    if (typeof step !== 'number' || folderName(step) !== basename(path) || !isObject(progress)) {
      throw new Error(`${PROGRESS} does not belong to ${basename(path)}`);
    }
    return { step, path, tensors: await openSafetensors(join(path, TENSORS)), progress };
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new RunError(
      `${path}: this checkpoint cannot be used (${reason}). Resume from an earlier one by giving its path to --resume-from-checkpoint.`,
      { cause: error },
    );
  }
}

/** Removes one checkpoint. It is renamed first, so that a kill halfway leaves no half checkpoint that looks whole. */
export async function removeCheckpoint({ path }: CheckpointEntry): Promise<void> {
  const removed = join(path, '..', `.${basename(path)}.removed`);
  await rm(removed, { recursive: true, force: true });
  await rename(path, removed).catch((error: unknown) => {
    throw outputError(path, error);
  });
  await rm(removed, { recursive: true, force: true });
}

/** Removes what a killed process has left of checkpoints that it was writing or removing. Only for who holds the run's lock. */
export async function removeUnfinishedCheckpoints(folder: string): Promise<void> {
  const names = await readdir(folder).catch(() => []);
  for (const name of names.filter((n) => unfinished.test(n))) {
    await rm(join(folder, name), { recursive: true, force: true });
  }
}
