import type { MetricsRecord } from '../training/metrics-log.js';
import type { LineChart, Series } from './line-chart.js';

/**
 * The curves of a run's validations: what the judges say, and how far the run is from the base. Reads the fields `judge.NAME`, `judge.NAME-text`,
 * `judge.NAME-diversity`, `judge.score`, `updateNorm` and `klToBase`.
 */
export function watchCharts(metrics: readonly MetricsRecord[]): LineChart[] {
  const series = (label: string, field: string): Series => ({
    label,
    points: metrics.flatMap((record) => {
      const value = record[field];
      return typeof value === 'number' ? [[record.step, value] as const] : [];
    }),
  });
  const chart = (title: string, hint: string, field: string): LineChart => ({
    title,
    hint,
    series: [series(title, field)],
  });
  const charts = judgeNames(metrics).flatMap((name) => [
    chart(
      `Judge ${name}: likeness`,
      'Of the sample pictures to the photographs, by an encoder that is no reward: the mean cosine. A reward that rises while this falls is being hacked.',
      `judge.${name}`,
    ),
    chart(
      `Judge ${name}: text`,
      'How well the sample pictures show their prompts, without the rare word: the mean cosine. It falls when scenes fade.',
      `judge.${name}-text`,
    ),
    chart(
      `Judge ${name}: diversity`,
      'How different the sample pictures of one prompt are: the mean of 1 - cosine. Near 0 they are all the same picture.',
      `judge.${name}-diversity`,
    ),
  ]);
  charts.push(
    chart(
      'Judges: score',
      'The geometric mean of all likenesses and alignments, on which a run can stop early. Up is better.',
      'judge.score',
    ),
    chart(
      'Size of the update',
      'The norm of what was learnt over that of the weights that it changes.',
      'updateNorm',
    ),
    chart(
      'Divergence from the base',
      'Kullback-Leibler, of the whole way from noise to picture, in nats for each element of the latents.',
      'klToBase',
    ),
  );
  return charts.filter(({ series: [only] }) => only!.points.length > 0);
}

/** The judges by the names of their curves, in the order of the log. */
function judgeNames(metrics: readonly MetricsRecord[]): string[] {
  const names = metrics.flatMap((record) =>
    Object.keys(record).flatMap((key) => /^judge\.((?:dino|clip)(?:-\d+)?)$/.exec(key)?.[1] ?? []),
  );
  return [...new Set(names)];
}
