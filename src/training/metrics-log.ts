import { type FileHandle, open, readFile } from 'node:fs/promises';
import { RunError } from '../errors.js';
import { outputError } from '../formats/atomic-file.js';
import type { Json } from '../formats/json-config.js';

/** One line of the log: what was measured at a step. Numbers that are not finite are written as null. */
export interface MetricsRecord {
  readonly step: number;
  readonly [name: string]: Json;
}

/**
 * An append-only file of JSON lines in the order of steps. Reopened for a run that goes on from step s, it forgets what came after s and a line that a kill cut
 * short, so that the resumed run's file ends in the same bytes as that of a run that was never stopped.
 */
export class MetricsLog {
  private constructor(
    readonly path: string,
    private readonly file: FileHandle,
  ) {}

  /** @param lastStep lines of later steps are dropped; without it the log starts empty. */
  static async open(path: string, lastStep = Number.NEGATIVE_INFINITY): Promise<MetricsLog> {
    try {
      const file = await open(path, 'a+');
      const text = await file.readFile();
      const length = lengthThrough(text, lastStep);
      if (length < text.length) await file.truncate(length);
      return new MetricsLog(path, file);
    } catch (error) {
      throw outputError(path, error);
    }
  }

  /** Adds one line. @throws OutputError when it cannot be written; the next opening drops what was written of it. */
  async append(record: MetricsRecord): Promise<void> {
    await this.file.appendFile(`${JSON.stringify(record)}\n`).catch((error: unknown) => {
      throw outputError(this.path, error);
    });
  }

  /** Returns once all lines are on the disk, so that a checkpoint never knows of a step that the log has lost. */
  async flush(): Promise<void> {
    await this.file.datasync().catch((error: unknown) => {
      throw outputError(this.path, error);
    });
  }

  async close(): Promise<void> {
    await this.file.close();
  }
}

/** Reads the lines of a log, for a report or a listener that came late. A last line that is still being written is left out. */
export async function readMetrics(path: string): Promise<MetricsRecord[]> {
  const bytes = await readFile(path).catch((error: unknown) => {
    throw new RunError(`${path}: the run's metrics cannot be read. Is this the folder of a run?`, {
      cause: error,
    });
  });
  return [...wholeLines(bytes)].map(({ record }) => record);
}

/** Bytes up to the end of the last line before one that is cut short, damaged or later than `lastStep`. */
function lengthThrough(bytes: Uint8Array, lastStep: number): number {
  let length = 0;
  for (const { record, end } of wholeLines(bytes)) {
    if (record.step > lastStep) break;
    length = end;
  }
  return length;
}

function* wholeLines(bytes: Uint8Array): Generator<{ record: MetricsRecord; end: number }> {
  const decoder = new TextDecoder();
  for (let start = 0; start < bytes.length; ) {
    const newline = bytes.indexOf(0x0a, start);
    if (newline < 0) return;
    const record = parseRecord(decoder.decode(bytes.subarray(start, newline)));
    if (record === undefined) return;
    start = newline + 1;
    yield { record, end: start };
  }
}

function parseRecord(line: string): MetricsRecord | undefined {
  try {
    const value: unknown = JSON.parse(line);
    return typeof value === 'object' && value !== null && 'step' in value && typeof value.step === 'number'
      ? (value as MetricsRecord)
      : undefined;
  } catch {
    return undefined;
  }
}
