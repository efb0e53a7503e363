// The paper's table, reproduced small: trains every method on subjects of the synthetic world and scores what they draw, with ablations and learning curves.
// npm run bench:paper -- [--work DIR] [--processes N] [--only tuning|table|ablations|curves] [--write]; stopped at any moment, the same command goes on.
// --write puts tables and pictures into docs/. About three hours on two processors.
import { mkdir } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import type { HeldOutSubject } from '../src/data/world/held-out.js';
import { createNodeEngine } from '../src/engine/node.js';
import { writeFileAtomic } from '../src/formats/atomic-file.js';
import { formatDuration } from '../src/training/duration.js';
import { writeDocsSection } from './docs-section.js';
import { Workplace } from './paper/job.js';
import { keptMarks, Marking } from './paper/marks.js';
import { readMaterial } from './paper/material.js';
import {
  ABLATIONS,
  CURVE_METHODS,
  CURVE_STEPS,
  IMAGES,
  type Job,
  jobOf,
  METHODS,
  type Method,
  methodNamed,
  REPORT_SUBJECTS,
  SEEDS,
  TUNING_SUBJECTS,
} from './paper/plan.js';
import { best, type Choice, compare, meanRow, type Row, rowOf, spreadOf } from './paper/results.js';
import { pictureSheet } from './paper/sheet.js';
import {
  bars,
  differenceTable,
  facts,
  mainTable,
  sheetLegend,
  subjectTable,
  tuningTable,
  variationTable,
} from './paper/tables.js';
import { LineProcess } from './process-lines.js';

const PHASES = ['tuning', 'table', 'ablations', 'curves'] as const;
type Phase = (typeof PHASES)[number];

const root = fileURLToPath(new URL('../../', import.meta.url));
const { values: options } = parseArgs({
  options: {
    work: { type: 'string', default: join(root, 'runs', 'paper') },
    processes: { type: 'string', default: String(availableParallelism()) },
    only: { type: 'string' },
    write: { type: 'boolean', default: false },
  },
});
const work = resolve(options.work);
// Encoders are named from the package's root.
process.chdir(root);
const place = new Workplace(work, await readMaterial());
const SECTION = {
  page: 'paper.md',
  begin: '<!-- tables: written by npm run bench:paper -- --write -->',
  end: '<!-- end of the tables -->',
};
const SHEET = join('docs', 'images', 'paper.jpg');

const wants = (phase: Phase): boolean => options.only === undefined || options.only === phase;

/** Has worker processes do the jobs that are not done yet. */
async function perform(phase: string, jobs: readonly Job[]): Promise<void> {
  const open: Job[] = [];
  for (const job of jobs) if (!(await keptMarks(job, place))) open.push(job);
  console.error(`${phase}: ${jobs.length} runs, ${open.length} to do`);
  if (open.length === 0) return;
  for (const job of open) {
    await place.references(job.subject);
    await mkdir(place.jobFolder(job), { recursive: true });
  }
  const started = performance.now();
  let [next, done] = [0, 0];
  const failures: string[] = [];
  const work = async (): Promise<void> => {
    const worker = new LineProcess(process.execPath, [
      fileURLToPath(new URL('./paper/worker.js', import.meta.url)),
      place.folder,
    ]);
    try {
      while (next < open.length) {
        const job = open[next++]!;
        const { error, seconds } = await worker.ask<{ error?: string; seconds?: number }>(
          JSON.stringify(job),
        );
        done++;
        const left = ((performance.now() - started) / 1000 / done) * (open.length - done);
        const told = error === undefined ? `${seconds!.toFixed(0)} s` : `FAILED: ${error}`;
        if (error !== undefined) failures.push(`${place.jobFolder(job)}: ${error}`);
        console.error(
          `${phase} ${done}/${open.length}  ${job.subject} seed ${job.settings.seed}: ${told}  ${formatDuration(left)} left`,
        );
      }
    } finally {
      worker.stop();
    }
  };
  await Promise.all(Array.from({ length: Number(options.processes) }, work));
  if (failures.length > 0) throw new Error(`${failures.length} runs failed:\n${failures.join('\n')}`);
}

async function rowsOf(jobs: readonly Job[]): Promise<Row[]> {
  const rows: Row[] = [];
  for (const job of jobs) {
    const marks = await keptMarks(job, place);
    if (!marks) throw new Error('Not all runs are there yet: leave --only out, or run the phases in turn.');
    rows.push(rowOf(marks));
  }
  return rows;
}

const TUNING_IMAGES = 1;
const onTuning = (method: Method, settings: Job['settings']): Job[] =>
  TUNING_SUBJECTS.map((subject) => jobOf(method, settings, subject, SEEDS[0], TUNING_IMAGES));

/** Tries every method's choices on the tuning subjects. */
async function tune() {
  const jobs = METHODS.flatMap((method) => method.choices.flatMap((settings) => onTuning(method, settings)));
  if (wants('tuning')) await perform('tuning', jobs);
  const choices = new Map<Method, Choice[]>();
  for (const method of METHODS) {
    const own: Choice[] = [];
    for (const settings of method.choices) {
      own.push({ settings, row: meanRow(await rowsOf(onTuning(method, settings))) });
    }
    choices.set(method, own);
  }
  const spread = spreadOf([...choices.values()].flat().map(({ row }) => row));
  const tried = new Map<Method, { choices: readonly Choice[]; chosen: Choice }>();
  // Baselines stand before what is compared with them.
  for (const [method, own] of choices) {
    const baseline =
      method.baseline === undefined ? undefined : tried.get(methodNamed(method.baseline))!.chosen;
    tried.set(method, { choices: own, chosen: best(own, spread, baseline) });
  }
  return { tried, spread };
}

async function main(): Promise<void> {
  if (options.only !== undefined && !(PHASES as readonly string[]).includes(options.only)) {
    throw new Error(`--only ${options.only}: expected ${PHASES.join(', ')}.`);
  }
  const { tried, spread } = await tune();
  const say: string[] = [];
  say.push('## Choosing settings', tuningTable(tried, spread));
  const settingsOf = (method: Method) => tried.get(method)!.chosen.settings;
  const tableJobs = (method: Method, subject: HeldOutSubject): Job[] =>
    SEEDS.map((seed) => jobOf(method, settingsOf(method), subject, seed, IMAGES));
  if (wants('table')) {
    // Seed by seed and subject by subject, so that what is there when it is stopped can be compared.
    await perform(
      'table',
      SEEDS.flatMap((_, s) =>
        REPORT_SUBJECTS.flatMap((subject) => METHODS.map((method) => tableJobs(method, subject)[s]!)),
      ),
    );
    const rows = new Map<Method, Row[][]>();
    for (const method of METHODS) {
      const bySubject: Row[][] = [];
      for (const subject of REPORT_SUBJECTS) bySubject.push(await rowsOf(tableJobs(method, subject)));
      rows.set(method, bySubject);
    }
    const results = compare(rows, REPORT_SUBJECTS);
    const engine = createNodeEngine({ threads: Number(options.processes) });
    const marking = await Marking.open(place, engine);
    const photographs = [];
    for (const { name } of REPORT_SUBJECTS) photographs.push(await marking.photographs(name));
    await engine.close();
    say.unshift(
      '## The table',
      mainTable(results, photographs),
      '### Bars',
      bars(results).join('\n'),
      '### Differences, paired over subjects',
      differenceTable(results),
      '### Every subject',
      subjectTable(results),
      '### Pictures',
      sheetLegend('images/paper.jpg'),
    );
    if (options.write) {
      await writeFileAtomic(
        SHEET,
        await pictureSheet(place, (method, subject) => tableJobs(method, subject)[0]!),
      );
    }
  }
  const onTuningWith = (name: string, change: Job['settings']): Job[] => {
    const method = methodNamed(name);
    return onTuning(method, { ...settingsOf(method), ...change });
  };
  if (wants('ablations')) {
    say.push('## Ablations', 'On the tuning subjects, everything else as chosen.');
    say.push(
      ...(await performVariations(
        'ablations',
        ABLATIONS.map(({ method, title, variations }) => ({
          title: `${title}: ${method}`,
          rows: variations.map(({ label, change }) => [label, onTuningWith(method, change)]),
        })),
      )),
    );
  }
  if (wants('curves')) {
    say.push(
      '## Learning curves',
      'On the tuning subjects; each number of steps is a run of its own, with its own schedule.',
      ...(await performVariations(
        'curves',
        CURVE_METHODS.map((name) => ({
          title: `Steps: ${name}`,
          rows: CURVE_STEPS.map((steps) => [String(steps), onTuningWith(name, { steps })]),
        })),
      )),
    );
  }
  const text = `${[
    ...say,
    '## How it was measured',
    facts()
      .map((f) => `- ${f}`)
      .join('\n'),
  ].join('\n\n')}\n`;
  console.log(text);
  if (options.write) await writeDocsSection(SECTION, text);
}

/** What is varied in one table: the runs of each of its rows, by label. */
interface Varied {
  readonly title: string;
  readonly rows: readonly (readonly [label: string, jobs: readonly Job[]])[];
}

/** Has all runs of these tables made, and writes the tables. */
async function performVariations(phase: Phase, varied: readonly Varied[]): Promise<string[]> {
  await perform(
    phase,
    varied.flatMap(({ rows }) => rows.flatMap(([, jobs]) => jobs)),
  );
  const tables: string[] = [];
  for (const { title, rows } of varied) {
    const found: [string, Row][] = [];
    for (const [label, jobs] of rows) found.push([label, meanRow(await rowsOf(jobs))]);
    tables.push(variationTable(title, found));
  }
  return tables;
}

// Workers belong to the same terminal and are interrupted with this process; a run that was not finished is done again.
process.once('SIGINT', () => {
  console.error('\nStopped. The same command goes on from there.');
  process.exit(130);
});
await main();
