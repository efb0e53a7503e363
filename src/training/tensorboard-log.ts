import { type FileHandle, mkdir, open } from 'node:fs/promises';
import { dirname } from 'node:path';
import { outputError } from '../formats/atomic-file.js';
import {
  type EventImage,
  encodeEvent,
  encodeFileVersion,
  readEvents,
  type SummaryValue,
} from '../formats/tfevents.js';
import type { MetricsRecord } from './metrics-log.js';

/**
 * The run's metrics and validation pictures as TensorBoard reads them: one event file that only grows. Reopened for a run that goes on from step s, it forgets what
 * came after s and a record that a kill cut short, like the metrics log. Apart from the times of day in it, it ends as that of a run that was never stopped.
 */
export class TensorboardLog {
  readonly #pictured: Set<number>;

  private constructor(
    readonly path: string,
    private readonly file: FileHandle,
    pictured: Set<number>,
  ) {
    this.#pictured = pictured;
  }

  /** @param lastStep events of later steps are dropped; without it only those of step 0 are kept. */
  static async open(path: string, lastStep = 0): Promise<TensorboardLog> {
    try {
      await mkdir(dirname(path), { recursive: true });
      const file = await open(path, 'a+');
      const bytes = await file.readFile();
      const pictured = new Set<number>();
      let length = 0;
      for (const { step, images, end } of readEvents(bytes)) {
        if (step > lastStep) break;
        if (images) pictured.add(step);
        length = end;
      }
      if (length < bytes.length) await file.truncate(length);
      if (length === 0) await file.appendFile(encodeFileVersion(now()));
      return new TensorboardLog(path, file, pictured);
    } catch (error) {
      throw outputError(path, error);
    }
  }

  /** Adds what was measured at a step. @param group before the names, "train" or "validation" */
  async append({ step, ...metrics }: MetricsRecord, group = 'train'): Promise<void> {
    const values = Object.entries(metrics).flatMap(([name, value]): SummaryValue[] =>
      typeof value === 'number' ? [{ tag: `${group}/${name}`, scalar: value }] : [],
    );
    await this.#write(step, values);
  }

  /** Whether the pictures of this step are in it. */
  hasPictures(step: number): boolean {
    return this.#pictured.has(step);
  }

  /** Adds the validation pictures of a step, by what was drawn. */
  async appendPictures(step: number, pictures: ReadonlyMap<string, EventImage>): Promise<void> {
    await this.#write(
      step,
      [...pictures].map(([name, image]) => ({ tag: `validation/${name}`, image })),
    );
    this.#pictured.add(step);
  }

  /** Returns once everything is on the disk. */
  async flush(): Promise<void> {
    await this.file.datasync().catch((error: unknown) => {
      throw outputError(this.path, error);
    });
  }

  async close(): Promise<void> {
    await this.file.close();
  }

  async #write(step: number, values: readonly SummaryValue[]): Promise<void> {
    await this.file.appendFile(encodeEvent({ step, wallTime: now(), values })).catch((error: unknown) => {
      throw outputError(this.path, error);
    });
  }
}

const now = (): number => Date.now() / 1000;
