import type { Estimate, PairedDifference } from './bootstrap.js';
import type { Comparison, MethodScores } from './comparison.js';
import { type Metric, metrics } from './scores.js';

/** What stands above a metric's column. */
export const metricTitles: Readonly<Record<Metric, string>> = {
  dino: 'DINO',
  clipI: 'CLIP-I',
  clipT: 'CLIP-T',
  diversity: 'Diversity',
};

/** The metrics' names as columns of files. */
const columnNames: Readonly<Record<Metric, string>> = {
  dino: 'dino',
  clipI: 'clip_i',
  clipT: 'clip_t',
  diversity: 'diversity',
};

/** What a reader has to know to compare the numbers with others. */
export interface TableContext {
  readonly title: string;
  readonly subjects: readonly string[];
  /** How it was measured, one sentence each. */
  readonly facts: readonly string[];
  /** What to mind before believing it, one sentence each. */
  readonly warnings: readonly string[];
  /** What each method was rewarded for, by its name. */
  readonly rewards: ReadonlyMap<string, string>;
}

/** The metrics that anything in the comparison has. */
export function measuredMetrics({ methods, photographs }: Comparison): Metric[] {
  const all = [...methods.map(({ estimates }) => estimates), photographs];
  return metrics.filter((metric) => all.some((estimates) => estimates[metric] !== undefined));
}

/** Tables of a comparison in Markdown: the methods, their differences from the baseline, every subject, and how it was measured. */
export function markdownTables(
  comparison: Comparison,
  scores: readonly MethodScores[],
  context: TableContext,
): string {
  const shown = measuredMetrics(comparison);
  const titles = shown.map((metric) => metricTitles[metric]);
  const row = (cells: readonly string[]): string => `| ${cells.map(escapeCell).join(' | ')} |`;
  const table = (head: readonly string[], rows: readonly (readonly string[])[]): string =>
    [row(head), `|${head.map((_, i) => (i === 0 ? '---' : '---:')).join('|')}|`, ...rows.map(row)].join('\n');
  const parts = [
    `# ${context.title}`,
    ...(context.warnings.length > 0 ? [context.warnings.map((w) => `> **Mind:** ${w}`).join('\n>\n')] : []),
    `Mean over ${context.subjects.length === 1 ? 'one subject' : `${context.subjects.length} subjects`} and its 95 % bootstrap interval.`,
    table(
      ['Method', ...titles, 'Rewarded for'],
      [
        ...comparison.methods.map(({ name, estimates }) => [
          name,
          ...shown.map((metric) => estimateText(estimates[metric])),
          context.rewards.get(name) ?? '–',
        ]),
        [
          'The photographs themselves',
          ...shown.map((metric) => estimateText(comparison.photographs[metric])),
          '–',
        ],
      ],
    ),
  ];
  if (comparison.differences.length > 0) {
    parts.push(
      `## Difference from ${comparison.differences[0]!.baseline}`,
      'Paired bootstrap over subjects; p is two-sided and not corrected for looking at several methods and metrics.',
      table(
        ['Method', ...titles],
        comparison.differences.map(({ name, differences }) => [
          name,
          ...shown.map((metric) => differenceText(differences[metric])),
        ]),
      ),
    );
  }
  parts.push(
    '## Each subject',
    table(
      ['Subject', 'Method', ...titles],
      context.subjects.flatMap((subject, i) =>
        scores.map(({ name, subjects }) => [
          subject,
          name,
          ...shown.map((metric) => fixed(subjects[i]![metric])),
        ]),
      ),
    ),
    '## How it was measured',
    context.facts.map((fact) => `- ${fact}`).join('\n'),
  );
  return `${parts.join('\n\n')}\n`;
}

/** One line for each method and metric: mean, interval, and the difference from the baseline. */
export function summaryCsv(comparison: Comparison): string {
  const head = 'method,metric,mean,low,high,baseline,difference,difference_low,difference_high,p';
  const lines = comparison.methods.flatMap(({ name, estimates }) =>
    metrics.flatMap((metric) => {
      const estimate = estimates[metric];
      if (!estimate) return [];
      const against = comparison.differences.find((d) => d.name === name);
      const difference = against?.differences[metric];
      const cells = [name, columnNames[metric], estimate.mean, estimate.low, estimate.high];
      const paired = difference
        ? [against?.baseline, difference.mean, difference.low, difference.high, difference.p]
        : ['', '', '', '', ''];
      return [[...cells, ...paired].map(csvCell).join(',')];
    }),
  );
  return `${[head, ...lines].join('\n')}\n`;
}

/** One line for each subject and method. */
export function subjectsCsv(subjects: readonly string[], scores: readonly MethodScores[]): string {
  const head = ['subject', 'method', ...metrics.map((metric) => columnNames[metric])].join(',');
  const lines = subjects.flatMap((subject, i) =>
    scores.map(({ name, subjects: own }) =>
      [subject, name, ...metrics.map((metric) => own[i]![metric])].map(csvCell).join(','),
    ),
  );
  return `${[head, ...lines].join('\n')}\n`;
}

/** "0.694 (0.651 to 0.738)" */
export function estimateText(estimate: Estimate | undefined): string {
  if (!estimate) return '–';
  const { low, high } = estimate;
  return low === undefined || high === undefined
    ? fixed(estimate.mean)
    : `${fixed(estimate.mean)} (${fixed(low)} to ${fixed(high)})`;
}

/** "+0.044 (+0.021 to +0.068), p = 0.002" */
export function differenceText(difference: PairedDifference | undefined): string {
  if (!difference) return '–';
  const { mean, low, high, p } = difference;
  if (low === undefined || high === undefined) return signed(mean);
  const chance = p === undefined ? '' : `, p ${p < 0.001 ? '< 0.001' : `= ${p.toFixed(3)}`}`;
  return `${signed(mean)} (${signed(low)} to ${signed(high)})${chance}`;
}

export function fixed(value: number | undefined): string {
  return value === undefined ? '–' : value.toFixed(3).replace('-', '−');
}

function signed(value: number): string {
  const text = fixed(value);
  return text.startsWith('−') ? text : `+${text}`;
}

const escapeCell = (text: string): string => text.replaceAll('|', '\\|').replaceAll('\n', ' ');

function csvCell(value: string | number | undefined): string {
  if (value === undefined) return '';
  if (typeof value === 'number') return String(value);
  // A leading =, +, - or @ would be a formula to a spreadsheet.
  const safe = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
  return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}
