import { mkdir, readdir, readFile, rm } from 'node:fs/promises';
import { basename, join, resolve } from 'node:path';
import { OutputError, RunError } from '../errors.js';
import { outputError, removeStaleTemporaries, writeFileAtomic } from '../formats/atomic-file.js';
import { isObject, type Json } from '../formats/json-config.js';
import type { TensorStream } from '../formats/safetensors.js';
import { kohyaFileName, peftFileName } from '../pretrained/lora-file.js';
import {
  type Checkpoint,
  type CheckpointEntry,
  listCheckpoints,
  openCheckpoint,
  removeCheckpoint,
  removeUnfinishedCheckpoints,
  writeCheckpoint,
} from './checkpoint.js';
import { MetricsLog } from './metrics-log.js';
import { lockName, RunLock } from './run-lock.js';
import { TensorboardLog } from './tensorboard-log.js';

/** All settings of a run, enough to repeat it. No times and no output path: two equal runs have equal files. */
export type RunConfig = { readonly [key: string]: Json };

/** The names in a run folder. */
export const runFiles = {
  config: 'config.json',
  metrics: 'metrics.jsonl',
  timings: 'timings.jsonl',
  samples: 'samples',
  checkpoints: 'checkpoints',
  classImages: 'class_images',
  latents: 'latents',
  tensorboard: 'tensorboard/events.out.tfevents.0000000000.portrayal',
  lora: peftFileName,
  kohyaLora: kohyaFileName,
  model: 'model',
  report: 'report.html',
} as const;

export interface OpenRunOptions {
  readonly config: RunConfig;
  /** Go on from the newest checkpoint ("latest"; from the start if there is none yet), or from this one: its path or its name, "step-000500". */
  readonly resumeFromCheckpoint?: string;
  /** Keep only this many checkpoints, the newest ones. Default: all. */
  readonly checkpointsTotalLimit?: number;
  /** Settings (dotted paths) that a resumed run may change, such as the number of steps. `config.json` then takes the new values. */
  readonly adjustable?: readonly string[];
  /** What the run is made by: versions, threads. Kept in `config.json`; a resumed run with other ones is warned that its bytes will differ. */
  readonly environment?: RunConfig;
  /** Write the metrics for TensorBoard too. Default false. */
  readonly tensorboard?: boolean;
}

const FORMAT = 'portrayal-run/1';
const sampleName = /^step-(\d+)/;

/** A run folder open for writing. Only one process has it open; {@link RunFolder.close} gives it free. */
export class RunFolder {
  private constructor(
    readonly path: string,
    readonly config: RunConfig,
    /** The checkpoint to go on from; undefined for a start from nothing. */
    readonly restored: Checkpoint | undefined,
    /** What was measured, the same bytes for the same run. */
    readonly metrics: MetricsLog,
    /** How long things took, which no two runs share. */
    readonly timings: MetricsLog,
    /** Metrics and pictures for TensorBoard, where they were asked for. */
    readonly tensorboard: TensorboardLog | undefined,
    /** What the user should know about the opening. */
    readonly warnings: readonly string[],
    private readonly checkpointsTotalLimit: number,
    private readonly lock: RunLock,
  ) {}

  /**
   * Creates the folder of a new run, or reopens that of the same run to go on with it. Going on from a checkpoint drops later checkpoints, samples and metric
   * lines: they will be made again, the same.
   *
   * @throws OutputError when the folder holds something that is not a run, or cannot be written. RunError when it holds another run (naming the settings that
   * differ), holds checkpoints of this run that were not asked to be resumed, the checkpoint asked for is not there or damaged, or another process has it open.
   */
  static async open(path: string, options: OpenRunOptions): Promise<RunFolder> {
    await refuseForeignFolder(path);
    const lock = await RunLock.acquire(path);
    try {
      return await RunFolder.openLocked(path, options, lock);
    } catch (error) {
      await lock.release();
      throw error;
    }
  }

  private static async openLocked(path: string, options: OpenRunOptions, lock: RunLock): Promise<RunFolder> {
    const { config, resumeFromCheckpoint, checkpointsTotalLimit = Number.POSITIVE_INFINITY } = options;
    const checkpointFolder = join(path, runFiles.checkpoints);
    for (const name of ['', runFiles.samples, runFiles.classImages])
      await removeStaleTemporaries(join(path, name));
    await removeUnfinishedCheckpoints(checkpointFolder);

    const before = await readConfig(path);
    if (before !== undefined) refuseOtherRun(path, before.config, config, options.adjustable ?? []);
    const checkpoints = await listCheckpoints(checkpointFolder);
    const chosen = chooseCheckpoint(path, checkpoints, resumeFromCheckpoint);
    const restored = chosen && (await openCheckpoint(chosen.path));

    const warnings: string[] = [];
    if (resumeFromCheckpoint === 'latest' && restored === undefined) {
      warnings.push(`${path}: there is no checkpoint to resume yet, so the run starts from the beginning.`);
    }
    const later = checkpoints.filter(({ step }) => step > (restored?.step ?? 0));
    if (later.length > 0) {
      warnings.push(
        `${path}: going back to step ${restored?.step ?? 0}; the later checkpoints (${later.map((c) => basename(c.path)).join(', ')}) are removed and will be made again.`,
      );
    }
    const environment = options.environment ?? {};
    const elsewhere =
      restored && before ? differingSettings(objectIn(before.config.environment), environment) : [];
    if (elsewhere.length > 0) {
      warnings.push(
        `${path}: the steps so far were made with ${elsewhere.map(({ key, was, is }) => `${key} ${was} (now ${is})`).join(', ')}. The run goes on, but it will not end in the very same bytes as one that was never stopped.`,
      );
    }
    // Newest first: a kill in between must not leave a gap below a checkpoint.
    for (const entry of later.reverse()) await removeCheckpoint(entry);
    await removeLaterSamples(join(path, runFiles.samples), restored?.step ?? 0);

    const text = `${JSON.stringify({ format: FORMAT, ...config, ...(options.environment ? { environment } : {}) }, null, 2)}\n`;
    if (before?.text !== text) await writeFileAtomic(join(path, runFiles.config), text);
    // Only now: a folder without settings must hold nothing else of a run, or it could not be told from a stranger's.
    await mkdir(checkpointFolder, { recursive: true });
    await mkdir(join(path, runFiles.samples), { recursive: true });
    const opened: { close(): Promise<void> }[] = [];
    const opening = async <T extends { close(): Promise<void> }>(log: Promise<T>): Promise<T> => {
      opened.push(await log);
      return log;
    };
    try {
      // What was measured of the base, before the first step, stays.
      const metrics = await opening(MetricsLog.open(join(path, runFiles.metrics), restored?.step ?? 0));
      const timings = await opening(MetricsLog.open(join(path, runFiles.timings), restored?.step));
      const tensorboard = options.tensorboard
        ? await opening(TensorboardLog.open(join(path, runFiles.tensorboard), restored?.step))
        : undefined;
      return new RunFolder(
        path,
        config,
        restored,
        metrics,
        timings,
        tensorboard,
        warnings,
        checkpointsTotalLimit,
        lock,
      );
    } catch (error) {
      for (const log of opened) await log.close();
      throw error;
    }
  }

  /**
   * Saves the state after `step` and removes the oldest checkpoints beyond the limit. Metrics are flushed first, so no checkpoint is ahead of them.
   * @param kept the step of one that stays, whatever the limit is
   * @throws OutputError when the disk is full or cannot be written; what was there before stays.
   */
  async saveCheckpoint(
    step: number,
    tensors: readonly TensorStream[],
    progress: Checkpoint['progress'] = {},
    kept?: number,
  ): Promise<CheckpointEntry> {
    await this.metrics.flush();
    await this.tensorboard?.flush();
    const folder = join(this.path, runFiles.checkpoints);
    const saved = await writeCheckpoint(folder, { step, tensors, progress });
    const all = await listCheckpoints(folder);
    const surplus = Math.max(0, all.length - Math.max(1, this.checkpointsTotalLimit));
    for (const entry of all.slice(0, surplus)) if (entry.step !== kept) await removeCheckpoint(entry);
    return saved;
  }

  /** Writes a picture grid below `samples/`. Name it by its step ("step-000500.png") where it belongs to one. Returns its path. */
  async writeSample(name: string, png: Uint8Array): Promise<string> {
    return this.write(join(runFiles.samples, name), png);
  }

  /** Writes a file of the run (a LoRA, the report) as a whole or not at all. Returns its path. */
  async write(name: string, contents: Uint8Array | string): Promise<string> {
    const path = join(this.path, name);
    await writeFileAtomic(path, contents);
    return path;
  }

  /** Closes the logs and lets other processes open the folder. */
  async close(): Promise<void> {
    const closed = await Promise.allSettled(
      [this.metrics, this.timings, this.tensorboard].map((log) => log?.close()),
    );
    await this.lock.release();
    for (const result of closed) if (result.status === 'rejected') throw result.reason;
  }
}

/** The settings of a finished or a running run, for drawing with it. @throws RunError when the folder is not one of a run. */
export async function readRunConfig(path: string): Promise<RunConfig> {
  const found = await readConfig(path);
  if (found === undefined) {
    throw new RunError(
      `${path}: there is no ${runFiles.config} of a run here. Give the folder that "portrayal train --output" wrote.`,
    );
  }
  return found.config;
}

/** The newest complete checkpoint of a run folder, or undefined. It can be read while another process trains. */
export async function latestCheckpoint(path: string): Promise<CheckpointEntry | undefined> {
  return (await listCheckpoints(join(path, runFiles.checkpoints))).at(-1);
}

async function readConfig(path: string): Promise<{ config: RunConfig; text: string } | undefined> {
  const file = join(path, runFiles.config);
  let text: string;
  try {
    text = await readFile(file, 'utf8');
  } catch (error) {
    if (error instanceof Error && 'code' in error && (error.code === 'ENOENT' || error.code === 'ENOTDIR')) {
      return undefined;
    }
    throw new RunError(`${file}: cannot be read (${error instanceof Error ? error.message : error}).`, {
      cause: error,
    });
  }
  const parsed = parseObject(text);
  if (parsed?.format !== FORMAT) {
    throw new RunError(
      `${file}: expected the settings of a run (format ${FORMAT}), found something else. Choose the folder of a run, or an empty one.`,
    );
  }
  const { format: _, ...config } = parsed;
  return { config, text };
}

function objectIn(value: Json | undefined): RunConfig {
  return isObject(value) ? value : {};
}

function parseObject(text: string): RunConfig | undefined {
  try {
    const value = JSON.parse(text) as Json;
    return isObject(value) ? value : undefined;
  } catch {
    return undefined;
  }
}

/** A folder is free for a run if it is one already, or holds nothing but what a killed start of ours may have left. */
async function refuseForeignFolder(path: string): Promise<void> {
  let names: string[];
  try {
    names = await readdir(path);
  } catch (error) {
    if (!(error instanceof Error && 'code' in error)) throw error;
    if (error.code === 'ENOENT') return;
    if (error.code === 'ENOTDIR') {
      throw new OutputError(`${path}: this is a file; the output has to be a folder. Choose another path.`);
    }
    throw outputError(path, error);
  }
  if (names.includes(runFiles.config)) return;
  const foreign = names.filter((name) => name !== lockName && !name.startsWith('.'));
  if (foreign.length === 0) return;
  const shown = foreign.sort().slice(0, 5).join(', ');
  const more = foreign.length > 5 ? ` and ${foreign.length - 5} more` : '';
  throw new OutputError(
    `${path}: the folder is not empty and not a run of ours (it holds ${shown}${more}). Choose a new or empty folder, so that nothing of yours is overwritten.`,
  );
}

function refuseOtherRun(
  path: string,
  { environment: _, ...before }: RunConfig,
  config: RunConfig,
  adjustable: readonly string[],
): void {
  const differences = differingSettings(before, config).filter(({ key }) => !adjustable.includes(key));
  if (differences.length === 0) return;
  const shown = differences.slice(0, 6).map(({ key, was, is }) => `${key} (there ${was}, now ${is})`);
  const more = differences.length > 6 ? ` and ${differences.length - 6} more` : '';
  throw new RunError(
    `${path}: the folder holds a run with other settings: ${shown.join(', ')}${more}. Give the same settings to go on with it, or choose another output folder.`,
  );
}

/** The settings in which two configurations differ, by dotted path, with their values as JSON. */
export function differingSettings(
  before: RunConfig,
  after: RunConfig,
): { readonly key: string; readonly was: string; readonly is: string }[] {
  const [was, is] = [flatten(before), flatten(after)];
  const keys = [...new Set([...was.keys(), ...is.keys()])];
  return keys
    .filter((key) => was.get(key) !== is.get(key))
    .map((key) => ({ key, was: was.get(key) ?? 'not set', is: is.get(key) ?? 'not set' }));
}

function flatten(value: Json, prefix = '', into = new Map<string, string>()): Map<string, string> {
  if (isObject(value) && (prefix === '' || Object.keys(value).length > 0)) {
    for (const [key, inner] of Object.entries(value)) {
      if (inner !== undefined) flatten(inner, prefix === '' ? key : `${prefix}.${key}`, into);
    }
  } else {
    into.set(prefix, JSON.stringify(value));
  }
  return into;
}

function chooseCheckpoint(
  path: string,
  checkpoints: readonly CheckpointEntry[],
  wanted: string | undefined,
): CheckpointEntry | undefined {
  const latest = checkpoints.at(-1);
  if (wanted === 'latest') return latest;
  if (wanted === undefined) {
    if (latest === undefined) return undefined;
    throw new RunError(
      `${path}: this run is already there, up to step ${latest.step}. Add --resume-from-checkpoint latest to go on with it, or choose another output folder.`,
    );
  }
  const found = checkpoints.find((c) => basename(c.path) === wanted || resolve(c.path) === resolve(wanted));
  if (found) return found;
  const there =
    checkpoints.length === 0
      ? 'it has none yet'
      : `it has ${checkpoints.map((c) => basename(c.path)).join(', ')}`;
  throw new RunError(
    `${wanted}: not a checkpoint of the run in ${path}; ${there}. Give one of these or "latest". To go on with a checkpoint of another folder, copy that whole folder.`,
  );
}

async function removeLaterSamples(folder: string, step: number): Promise<void> {
  for (const name of await readdir(folder).catch(() => [])) {
    const taken = sampleName.exec(name)?.[1];
    if (taken !== undefined && Number(taken) > step) await rm(join(folder, name), { force: true });
  }
}
