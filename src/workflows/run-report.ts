import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import {
  composeGrid,
  cutGrid,
  decodePng,
  encodePng,
  encodeThumbnail,
  type RgbImage,
} from '../data/image-grid.js';
import { type SubjectPrompt, subjectName } from '../data/prompts.js';
import type { ReferenceImage } from '../data/reference-images.js';
import { RunError } from '../errors.js';
import { chartsFromMetrics, type ReportImage, renderReport } from '../evaluation/report.js';
import { watchCharts } from '../evaluation/watch-charts.js';
import type { EventImage } from '../formats/tfevents.js';
import { formatDuration } from '../training/duration.js';
import { readMetrics } from '../training/metrics-log.js';
import { type RunFolder, runFiles } from '../training/run-folder.js';
import { type Environment, packageVersion } from './environment.js';
import type { PersonaliseSettings } from './personalisation-settings.js';
import { completeRewards } from './reward-spec.js';
import { shellWord } from './shell-word.js';
import type { Usage } from './training-kind.js';

/** Longer side of a reference picture on the page, in pixels. */
const THUMBNAIL = 320;

/** One prompt's pictures, drawn from the same noise before and after. */
export interface PromptSamples {
  readonly prompt: string;
  readonly before: readonly RgbImage[];
  readonly after: readonly RgbImage[];
}

export interface RunReportInputs {
  readonly run: RunFolder;
  /** What was taught; the first is the page's title where there are several. */
  readonly subjects: readonly SubjectPrompt[];
  readonly settings: PersonaliseSettings;
  readonly model: string;
  readonly resolution: number;
  readonly references: readonly ReferenceImage[];
  readonly samples: readonly PromptSamples[];
  readonly trainableParameters: number;
  /** Steps that were taken, and the one whose weights are kept. */
  readonly steps: { readonly done: number; readonly kept: number };
  /** Since the process that finishes the run was started: a resumed run has taken longer. */
  readonly seconds: number;
  readonly environment: Environment;
  readonly notes: readonly string[];
  /** How other tools take the run's files. */
  readonly usages: readonly Usage[];
}

/** All pictures of one time as a grid, a row a prompt. */
export function sampleGrid(rows: readonly (readonly RgbImage[])[]): Promise<Uint8Array> {
  const columns = rows[0]?.length ?? 1;
  return encodePng(composeGrid(rows.flat(), { columns }));
}

/**
 * Cuts the pictures of a grid that `sampleGrid` wrote out of it again.
 * @throws RunError when the file is damaged, or is no grid of so many pictures.
 */
export async function readSampleGrid(path: string, rows: number, columns: number): Promise<RgbImage[][]> {
  const mend = 'Delete it, and the run draws it again when it is resumed.';
  const grid = await decodePng(path).catch((error: unknown) => {
    throw new RunError(
      `${path}: expected the pictures that the run drew, but the file cannot be read. ${mend}`,
      { cause: error },
    );
  });
  const cells = cutGrid(grid, rows, columns);
  if (cells === undefined) {
    throw new RunError(
      `${path}: expected a grid of ${rows} x ${columns} pictures, found a picture of ${grid.width} x ${grid.height} pixels. ${mend}`,
    );
  }
  return cells;
}

/** The pictures of each prompt side by side, as TensorBoard shows them. */
export async function eventPictures(
  prompts: readonly string[],
  rows: readonly (readonly RgbImage[])[],
): Promise<Map<string, EventImage>> {
  const pictures = new Map<string, EventImage>();
  for (const [i, prompt] of prompts.entries()) {
    const row = composeGrid(rows[i]!, { columns: rows[i]!.length });
    pictures.set(prompt, { width: row.width, height: row.height, png: await encodePng(row) });
  }
  return pictures;
}

/** Grids on the way that the report shows: more are thinned out evenly. */
const MOST_GRIDS = 12;
/** Longer side of a grid on the page, in pixels. */
const GRID_SIDE = 640;

/** The sample grids in the course of the run, where there are any between before and after. */
async function courseOf(run: RunFolder): Promise<{ step: number; image: ReportImage }[]> {
  const folder = join(run.path, runFiles.samples);
  const names = (await readdir(folder)).filter((name) => /^step-\d+\.png$/.test(name)).sort();
  if (names.length <= 2) return [];
  const shown = Math.min(MOST_GRIDS, names.length);
  const chosen = Array.from(
    { length: shown },
    (_, i) => names[Math.round((i * (names.length - 1)) / (shown - 1))]!,
  );
  return Promise.all(
    chosen.map(async (name) => {
      const step = Number(name.slice(5, -4));
      const grid = await decodePng(join(folder, name));
      const scale = Math.min(1, GRID_SIDE / Math.max(grid.width, grid.height));
      const image = {
        bytes: await encodeThumbnail(grid, GRID_SIDE),
        width: Math.round(grid.width * scale),
        height: Math.round(grid.height * scale),
        alt: `All prompts at step ${step}`,
      };
      return { step, image };
    }),
  );
}

async function pictureFor(image: RgbImage, alt: string): Promise<ReportImage> {
  const { width, height } = image;
  return { bytes: await encodePng(image), width, height, alt };
}

async function thumbnailFor(image: ReferenceImage, alt: string): Promise<ReportImage> {
  const scale = Math.min(1, THUMBNAIL / Math.max(image.width, image.height));
  return {
    bytes: await encodeThumbnail(image, THUMBNAIL),
    width: Math.round(image.width * scale),
    height: Math.round(image.height * scale),
    alt,
  };
}

/** "DPG with the dino and jpeg-size rewards, on photographs and roll-outs" */
function methodName({ method, reward, rewardCombination, rolloutFraction }: PersonaliseSettings): string {
  if (method === 'dreambooth') return 'DreamBooth';
  const names = completeRewards(reward, rewardCombination).map((r) => r.name);
  const states =
    rolloutFraction === 0 ? '' : `, on ${rolloutFraction === 1 ? '' : 'photographs and '}roll-outs`;
  return `DPG with the ${names.join(', ').replace(/, ([^,]*)$/, ' and $1')} reward${names.length > 1 ? 's' : ''}${states}`;
}

/** '"sks" was' */
function taught(subjects: readonly SubjectPrompt[]): string {
  return `${subjects.map(({ token }) => `"${token}"`).join(' and ')} ${subjects.length === 1 ? 'was' : 'were'}`;
}

/** Settings as the page shows them. */
function shown(settings: PersonaliseSettings): [string, string][] {
  const rewards = completeRewards(settings.reward, settings.rewardCombination).map(
    ({ name, kind, weight }) =>
      `${name}${name === kind ? '' : ` (${kind})`}${weight === 1 ? '' : ` x ${weight}`}`,
  );
  // The prompts of samples stand beside their pictures.
  const { validationPrompts: _, ...rest } = settings;
  return Object.entries({ ...rest, reward: rewards.join(', ') })
    .filter(([, value]) => value !== undefined && !(Array.isArray(value) && value.length === 0))
    .map(([key, value]): [string, string] => [
      words(key),
      Array.isArray(value) ? value.join('; ') : String(value),
    ]);
}

/** Writes the report of a finished run into its folder; gives its path. */
export async function writeRunReport(inputs: RunReportInputs): Promise<string> {
  const { run, subjects, settings, references, samples, steps } = inputs;
  const subject = subjects[0]!;
  const metrics = await readMetrics(join(run.path, runFiles.metrics));
  const timings = await readMetrics(join(run.path, runFiles.timings));
  const seconds = timings.map((t) => Number(t.seconds)).sort((a, b) => a - b);
  // The log keeps one line a step through every stop and resume.
  const training = seconds.reduce((sum, step) => sum + step, 0);
  const name = subjectName(subject);
  const comparisons = await Promise.all(
    samples.map(async ({ prompt, before, after }) => ({
      prompt,
      before: await Promise.all(before.map((i) => pictureFor(i, `${prompt}, by the base model`))),
      after: await Promise.all(after.map((i) => pictureFor(i, `${prompt}, after training`))),
    })),
  );
  const html = renderReport({
    title: subjects.map((s) => subjectName(s)).join(', '),
    summary: `${taught(subjects)} taught to a text-to-image model from ${references.length} pictures${subjects.length === 1 ? ` of one ${subject.className}` : ''}, in ${steps.kept} steps.`,
    method: methodName(settings),
    token: subject.token,
    figures: [
      { label: 'Pictures', value: String(references.length) },
      {
        label: 'Steps',
        value: String(steps.kept),
        note: [
          `batch ${settings.trainBatchSize}${settings.withPriorPreservation ? ` + ${settings.trainBatchSize} of the class` : ''}`,
          ...(steps.done === steps.kept ? [] : [`best of ${steps.done}`]),
        ].join(', '),
      },
      { label: 'Trained parameters', value: inputs.trainableParameters.toLocaleString('en') },
      { label: 'Training time', value: formatDuration(training) },
    ],
    references: await Promise.all(references.map((r, i) => thumbnailFor(r, `Reference picture ${i + 1}`))),
    comparisons,
    course: await courseOf(run),
    charts: [...chartsFromMetrics(metrics), ...watchCharts(metrics)],
    usages: [
      ...inputs.usages,
      {
        title: 'portrayal',
        file: run.path,
        code: `npx portrayal generate --run ${shellWord(run.path)} --prompt ${shellWord(`a ${name} on the beach`)} --num-images 4 --output out/`,
      },
    ],
    settings: [
      {
        title: 'Settings',
        rows: [
          ['model', inputs.model],
          ...subjects.flatMap(({ instancePrompt, classPrompt }): [string, string][] => [
            ['instance prompt', instancePrompt],
            ['class prompt', classPrompt],
          ]),
          ['resolution', `${inputs.resolution} px`],
          ...shown(settings),
        ],
      },
      {
        title: 'Made by',
        rows: Object.entries(inputs.environment).map(([key, value]): [string, string] => [
          key,
          String(value),
        ]),
      },
    ],
    timing: [
      ['training steps', formatDuration(training)],
      ['median step', `${(seconds[Math.floor(seconds.length / 2)] ?? 0).toFixed(3)} s`],
      ['since the last start, with loading and drawing', formatDuration(inputs.seconds)],
    ],
    notes: inputs.notes,
    producer: `portrayal ${packageVersion()}`,
  });
  return run.write(runFiles.report, html);
}

const words = (key: string): string => key.replace(/[A-Z0-9]+/g, (c) => ` ${c.toLowerCase()}`);
