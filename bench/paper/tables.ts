import { differenceText, fixed } from '../../src/evaluation/comparison-table.js';
import type { Scores } from '../../src/evaluation/scores.js';
import { mean } from '../../src/evaluation/similarity.js';
import { promptsOf } from './job.js';
import {
  BASELINE,
  IMAGES,
  type Job,
  jobOf,
  type Method,
  methodNamed,
  OURS,
  REPORT_SUBJECTS,
  SEEDS,
  STEPS,
  TUNING_SUBJECTS,
} from './plan.js';
import {
  type Choice,
  type Column,
  columns,
  type MethodResult,
  type Row,
  type Spread,
  similarities,
  worth,
} from './results.js';
import { SHEET_PROMPTS } from './sheet.js';

const titles: Readonly<Record<Column, string>> = {
  dino: 'DINO',
  clipI: 'CLIP-I',
  clipT: 'CLIP-T',
  diversity: 'Diversity',
  noun: 'class',
  colour: 'colour',
  pattern: 'pattern',
  scene: 'scene',
};

const table = (head: readonly string[], rows: readonly (readonly string[])[]): string =>
  [head, head.map((_, i) => (i === 0 ? '---' : '---:')), ...rows]
    .map((cells) => `| ${cells.join(' | ')} |`)
    .join('\n');
const percent = (share: number): string => `${(100 * share).toFixed(1)} %`;
const cell = (column: Column, value: number): string =>
  (similarities as readonly Column[]).includes(column) ? fixed(value) : percent(value);

/** The main table: our numbers, and the paper's beside them. */
export function mainTable(results: readonly MethodResult[], photographs: readonly Scores[]): string {
  const ceiling = (of: (s: Scores) => number | undefined): string =>
    fixed(mean(photographs.map((s) => of(s)!)));
  return table(
    [
      'method',
      ...columns.map((c) => titles[c]),
      ...['DINO', 'CLIP-I', 'CLIP-T'].map((name) => `paper: ${name}`),
    ],
    [
      ...results.map(({ method, estimates }) => [
        method.name,
        ...columns.map((c) => cell(c, estimates[c].mean)),
        ...(method.published
          ? [method.published.dino, method.published.clipI, method.published.clipT].map(fixed)
          : ['–', '–', '–']),
      ]),
      [
        'the photographs themselves',
        ceiling((s) => s.dino),
        ceiling((s) => s.clipI),
        ...new Array<string>(columns.length - 2).fill('–'),
        '–',
        '–',
        '–',
      ],
    ],
  );
}

/** Differences from the baselines with their intervals. */
export function differenceTable(results: readonly MethodResult[]): string {
  return table(
    ['method', 'less', ...columns.map((c) => titles[c])],
    results.flatMap(({ method, differences }) =>
      differences
        ? [[method.name, method.baseline!, ...columns.map((c) => differenceText(differences[c]))]]
        : [],
    ),
  );
}

/** Each bar, and whether it was reached. */
export function bars(results: readonly MethodResult[]): string[] {
  const significant = (name: string, column: Column): string => {
    const { mean: d, p } = results.find(({ method }) => method.name === name)!.differences![column];
    return `${titles[column]} ${differenceText({ mean: d, ...(p === undefined ? {} : { p }) })}${
      p === undefined ? '' : ` (p ${p < 0.001 ? '< 0.001' : `= ${p.toFixed(3)}`})`
    }: ${d > 0 && p !== undefined && p < 0.05 ? 'reached' : '**missed**'}`;
  };
  return [
    ...['DreamBooth + look forward', 'DreamBooth + DINO reward'].map(
      (name) =>
        `- ${name} over ${BASELINE}: ${(['dino', 'clipI'] as const).map((c) => significant(name, c)).join('; ')}`,
    ),
    `- ${OURS} over ${BASELINE}: ${(['dino', 'clipI', 'clipT'] as const).map((c) => significant(OURS, c)).join('; ')}`,
  ];
}

/** Every subject of every method. */
export function subjectTable(results: readonly MethodResult[]): string {
  return table(
    ['subject', 'method', ...columns.map((c) => titles[c])],
    REPORT_SUBJECTS.flatMap(({ name }, i) =>
      results.map(({ method, subjects }) => [
        name,
        method.name,
        ...columns.map((c) => cell(c, subjects[i]![c])),
      ]),
    ),
  );
}

/** What was tried on the tuning subjects; what was chosen stands out. */
export function tuningTable(
  tried: ReadonlyMap<Method, { choices: readonly Choice[]; chosen: Choice }>,
  spread: Spread,
): string {
  return table(
    ['method', 'settings', 'DINO', 'CLIP-I', 'CLIP-T', 'worth'],
    [...tried].flatMap(([method, { choices, chosen }]) =>
      choices.map((choice) => {
        const mark = choice === chosen ? '**' : '';
        const { dino, clipI, clipT } = choice.row;
        return [
          method.name,
          `${mark}${settingsText(choice.settings, method)}${mark}`,
          ...[dino, clipI, clipT, worth(choice.row, spread)].map(fixed),
        ];
      }),
    ),
  );
}

/** What sets a choice apart from the method's others. */
function settingsText(settings: Job['settings'], method: Method): string {
  const keys = Object.keys(settings) as (keyof Job['settings'])[];
  const telling = keys.filter(
    (key) => new Set(method.choices.map((choice) => JSON.stringify(choice[key]))).size > 1,
  );
  return telling.map((key) => `${key} ${valueText(settings[key])}`).join(', ');
}

function valueText(value: unknown): string {
  if (!Array.isArray(value)) return String(value);
  return (value as readonly { kind: string; name?: string; weight?: number }[])
    .map(({ kind, name = kind, weight = 1 }) => `${name} x ${weight}`)
    .join(' + ');
}

/** A row a variation. They draw one picture a prompt, which has no diversity. */
export function variationTable(title: string, rows: readonly (readonly [label: string, row: Row])[]): string {
  const shown = columns.filter((c) => c !== 'diversity');
  return table(
    [title, ...shown.map((c) => titles[c])],
    rows.map(([label, row]) => [label, ...shown.map((c) => cell(c, row[c]))]),
  );
}

/** How it was measured, a sentence each. */
export function facts(): string[] {
  const names = (subjects: readonly { readonly name: string }[]) =>
    subjects.map(({ name }) => name).join(', ');
  return [
    `Subjects of the table: ${names(REPORT_SUBJECTS)}. None was seen in pretraining or by the encoders, and no setting was chosen on them.`,
    `Subjects for choosing settings, ablations and curves: ${names(TUNING_SUBJECTS)}.`,
    `Each method: ${STEPS} steps of 4 pictures of the subject (and 4 of its class, but for textual inversion), ${REPORT_SUBJECTS.length} subjects x ${SEEDS.length} seeds; then DreamBench's 25 prompts x ${IMAGES} pictures.`,
    'Means are over prompts and pictures, then seeds, then subjects; intervals and p-values by bootstrap over subjects, paired, two-sided, not corrected for looking at several.',
    'Judges: models/encoders/dino-judge and clip-judge, with the transforms of the protocol. Rewards: dino-reward and clip-reward, trained from other seeds on other pictures.',
    'class, colour, pattern and scene: the share of pictures in which the world classifier sees what is true; colour without the two prompts that ask for another, pattern without those that dress the subject, scene for the prompts that name a place.',
  ];
}

/** Says what is where on the sheet of pictures. */
export function sheetLegend(image: string): string {
  const [subject] = REPORT_SUBJECTS;
  const prompts = promptsOf(jobOf(methodNamed(BASELINE), {}, subject!, SEEDS[0], 1));
  const shown = SHEET_PROMPTS.map((p) => `"${prompts[p]}"`).join(', ');
  return [
    `Three rows a subject, in the order of the table above: one of its photographs, then each method, in the order of the first table, with the first picture of its run with seed ${SEEDS[0]} for ${shown} (of a ${subject!.noun}; the others likewise). Nothing is picked by its looks.`,
    `![Every subject, every method](${image})`,
  ].join('\n\n');
}
