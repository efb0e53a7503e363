import { join, resolve } from 'node:path';
import { type Comparison, compareMethods, type MethodScores } from '../evaluation/comparison.js';
import {
  markdownTables,
  subjectsCsv,
  summaryCsv,
  type TableContext,
} from '../evaluation/comparison-table.js';
import type { Judge } from '../evaluation/judge.js';
import { describeTransform } from '../evaluation/picture-transform.js';
import type { Protocol } from '../evaluation/protocol.js';
import { writeFileAtomic } from '../formats/atomic-file.js';
import { writeJsonFile } from '../formats/json-config-file.js';
import { type Judged, type Judges, listJudges } from './evaluation-judging.js';
import { evaluationPage } from './evaluation-page.js';
import type { EvaluationPlan } from './evaluation-plan.js';
import { rewardsOf } from './reward-encoders.js';

export interface EvaluateResult {
  /** Paths of what was written. */
  readonly table: string;
  readonly csv: string;
  readonly subjectsCsv: string;
  readonly scores: string;
  readonly page: string;
  readonly comparison: Comparison;
  /** Of every method and subject. */
  readonly methods: readonly MethodScores[];
}

/** The names in an evaluation's folder. */
export const evaluationFiles = {
  settings: 'evaluation.json',
  pictures: 'pictures',
  references: 'references',
  thumbnails: 'thumbnails',
  embeddings: 'embeddings',
  table: 'table.md',
  csv: 'table.csv',
  subjectsCsv: 'subjects.csv',
  scores: 'scores.json',
  page: 'index.html',
} as const;

export const EVALUATION_FORMAT = 'portrayal-evaluation/1';

/** What an evaluation was told, with everything that was left out filled in. */
export interface EvaluationSettings {
  readonly protocol: Protocol;
  readonly textWithToken: boolean;
  readonly numImages: number;
  readonly seed: number;
  readonly steps: number;
  readonly guidanceScale: number;
  readonly resamples: number;
}

interface ResultPlace {
  readonly output: string;
  /** By method, subject and prompt. */
  readonly files: readonly (readonly (readonly (readonly string[])[])[])[];
  readonly baseline?: string;
}

export function describeSettings(settings: EvaluationSettings, plan: EvaluationPlan, judges: Judges) {
  const { protocol, ...rest } = settings;
  return {
    protocol: protocol.name,
    ...rest,
    subjects: Object.fromEntries(
      plan.subjects.map(({ name, className, live, references }) => [
        name,
        { class: className, live, photographs: references.length },
      ]),
    ),
    methods: Object.fromEntries(
      plan.methods.map(({ name, sources }) => [name, sources.map((source) => resolve(source.path))]),
    ),
    judges: Object.fromEntries(
      listJudges(judges).map(({ role, encoder, digest, transform }) => [
        role,
        { folder: encoder.folder, kind: encoder.kind, digest, transform: describeTransform(transform) },
      ]),
    ),
  };
}

/** Writes tables, scores and the page. */
export async function writeResults(
  plan: EvaluationPlan,
  judges: Judges,
  settings: EvaluationSettings,
  judged: Judged,
  warnings: readonly string[],
  { output, files, baseline }: ResultPlace,
): Promise<EvaluateResult> {
  const methods: MethodScores[] = plan.methods.map(({ name }, m) => ({
    name,
    subjects: judged.methods[m]!.map(({ scores }) => scores),
  }));
  const comparison = compareMethods(methods, judged.photographs, {
    resamples: settings.resamples,
    ...(baseline === undefined ? {} : { baseline }),
  });
  const context = contextOf(plan, judges, settings, warnings);
  const path = (name: keyof typeof evaluationFiles): string => join(output, evaluationFiles[name]);
  const result: EvaluateResult = {
    table: path('table'),
    csv: path('csv'),
    subjectsCsv: path('subjectsCsv'),
    scores: path('scores'),
    page: path('page'),
    comparison,
    methods,
  };
  await writeFileAtomic(result.table, markdownTables(comparison, methods, context));
  await writeFileAtomic(result.csv, summaryCsv(comparison));
  await writeFileAtomic(result.subjectsCsv, subjectsCsv(context.subjects, methods));
  const json = {
    format: EVALUATION_FORMAT,
    ...describeSettings(settings, plan, judges),
    warnings,
    rewards: Object.fromEntries(context.rewards),
    comparison,
    photographs: Object.fromEntries(plan.subjects.map(({ name }, i) => [name, judged.photographs[i]!])),
    scores: Object.fromEntries(
      plan.methods.map(({ name }, m) => [
        name,
        Object.fromEntries(
          plan.subjects.map((subject, i) => {
            const { scores, prompts } = judged.methods[m]![i]!;
            return [
              subject.name,
              { ...scores, prompts: prompts.map((own, p) => ({ prompt: subject.texts[p]!, ...own })) },
            ];
          }),
        ),
      ]),
    ),
  };
  await writeJsonFile(result.scores, json);
  await writeFileAtomic(
    result.page,
    await evaluationPage(plan, judged, comparison, context, { output, files }),
  );
  return result;
}

function contextOf(
  plan: EvaluationPlan,
  judges: Judges,
  settings: EvaluationSettings,
  warnings: readonly string[],
): TableContext {
  const { protocol, textWithToken } = settings;
  const drawn = plan.methods.some(({ sources }) => sources.some(({ kind }) => kind === 'run'));
  const judge = ({ encoder, digest, transform }: Judge): string =>
    `${encoder.folder} (${encoder.kind}, weights ${digest.slice(0, 12)}); ${describeTransform(transform)}; mean ${transform.mean.join(', ')}, deviation ${transform.std.join(', ')}`;
  return {
    title: protocol.title,
    subjects: plan.subjects.map(({ name }) => name),
    warnings,
    rewards: new Map(
      plan.methods.map(({ name, sources }) => [
        name,
        [
          ...new Set(
            sources.map((source) =>
              source.kind === 'run'
                ? rewardsOf(source.config).description
                : 'not known (pictures were given)',
            ),
          ),
        ].join('; '),
      ]),
    ),
    facts: [
      'DINO and CLIP-I: mean cosine over all pairs of a picture and a photograph of a subject, then the mean over subjects.',
      `CLIP-T: ${protocol.textScoreName} of each picture with its prompt, ${textWithToken ? 'with the rare token ("a sks dog on the beach")' : 'without the rare token ("a dog on the beach")'}; mean over the pictures of a subject, then over subjects.`,
      `Diversity: mean of 1 - cosine over the pairs of pictures of a prompt, in the eyes of ${judges.dino ? 'DINO' : 'CLIP'}; then over prompts and subjects.`,
      'The photographs themselves: the same cosines between each photograph and the others of its subject.',
      ...(judges.dino ? [`DINO judge: ${judge(judges.dino)}.`] : []),
      ...(judges.clip ? [`CLIP judge: ${judge(judges.clip)}.`] : []),
      ...(drawn
        ? [
            `Pictures were drawn with ${settings.numImages} for each prompt, ${settings.steps} steps, guidance ${settings.guidanceScale}, seeds from ${settings.seed}.`,
          ]
        : []),
      `Intervals: percentile bootstrap over subjects, ${settings.resamples} resamples.`,
    ],
  };
}
