import type { MetricsRecord } from '../training/metrics-log.js';
import { escapeHtml } from './escape-html.js';
import { type LineChart, renderLineChart, type Series } from './line-chart.js';
import { reportStyle } from './report-style.js';

/** A picture on the page: an encoded PNG or JPEG. */
export interface ReportImage {
  readonly bytes: Uint8Array;
  readonly width: number;
  readonly height: number;
  /** What is to be seen, for those who cannot see it. */
  readonly alt: string;
}

/** One prompt, drawn by the base model and by the personalised one from the same noise. */
export interface Comparison {
  readonly prompt: string;
  readonly before: readonly ReportImage[];
  readonly after: readonly ReportImage[];
}

/** A figure to be seen first: "Steps", "200", "batch 4 + 4". */
export interface KeyFigure {
  readonly label: string;
  readonly value: string;
  readonly note?: string;
}

export interface SettingsTable {
  readonly title: string;
  readonly rows: readonly (readonly [name: string, value: string])[];
}

/** How to use a file of the run: a heading, the file, and something to copy. */
export interface Usage {
  readonly title: string;
  readonly file: string;
  readonly code: string;
}

/** All that the report of a run shows. Every text may hold any characters. */
export interface ReportData {
  /** "sks backpack" */
  readonly title: string;
  /** One or two sentences: what was learnt, from what, how. */
  readonly summary: string;
  /** "DPG with the look-forward reward" */
  readonly method: string;
  /** The rare token, marked wherever a prompt has it. */
  readonly token?: string;
  readonly figures: readonly KeyFigure[];
  readonly references: readonly ReportImage[];
  readonly comparisons: readonly Comparison[];
  /** The sample grids in the course of the run. */
  readonly course?: readonly { readonly step: number; readonly image: ReportImage }[];
  readonly charts: readonly LineChart[];
  readonly usages: readonly Usage[];
  readonly settings: readonly SettingsTable[];
  readonly timing: readonly (readonly [name: string, value: string])[];
  /** What the reader should know before believing the pictures. */
  readonly notes: readonly string[];
  /** "portrayal 0.1.0" */
  readonly producer: string;
}

/** Pictures up to this width are shown with their own pixels instead of being blurred to the page's. */
const PIXEL_ART_WIDTH = 96;
/** Reference pictures in one row; more make two. */
const MOST_COLUMNS = 6;

/**
 * The report of a run: one HTML page that needs nothing else. Pictures and curves are in it, there are no scripts, and its own policy forbids the browser to load
 * anything from anywhere. Light or dark as the reader's system is.
 */
export function renderReport(data: ReportData): string {
  const title = escapeHtml(data.title);
  const body = [
    header(data),
    data.comparisons.length > 0 ? comparisons(data) : '',
    data.course?.length ? course(data.course) : '',
    data.charts.length > 0 ? charts(data.charts) : '',
    data.usages.length > 0 ? usages(data.usages) : '',
    settings(data),
    data.notes.length > 0 ? notes(data.notes) : '',
  ];
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="generator" content="${escapeHtml(data.producer)}">
<title>${title} · portrayal</title>
<style>${reportStyle}</style>
</head>
<body>
<main>
${body.filter((part) => part !== '').join('\n')}
</main>
<footer>Written by ${escapeHtml(data.producer)}. This page holds its pictures and curves itself and loads nothing from the network.</footer>
</body>
</html>
`;
}

const CRITIC_AND_REWARD = 'Critic and reward';
const CRITIC_LOSS = 'Critic loss';

/**
 * The curves of a run from its metrics: loss, reward, what the critic expects beside the reward that came, learning rate. A curve without measurements is
 * left out. Reads the fields `loss`, `reward`, `criticValue`, `criticLoss` and `learningRate`, and for each reward of several, or of one that the critic learns,
 * `reward.NAME`, `critic.NAME`, `criticCorrelation.NAME` and `criticExplainedVariance.NAME`.
 */
export function chartsFromMetrics(metrics: readonly MetricsRecord[]): LineChart[] {
  const series = (label: string, field: string): Series => ({
    label,
    points: metrics.flatMap((record) => {
      const value = record[field];
      return typeof value === 'number' ? [[record.step, value] as const] : [];
    }),
  });
  const charts: LineChart[] = [
    {
      title: 'Loss',
      hint: 'What the training step minimises. It is noisy, as every step draws other noise and other timesteps.',
      series: [series('loss', 'loss')],
      smoothing: 0.1,
    },
    {
      title: 'Reward',
      hint: 'How close the picture that the model is heading for comes to the photograph. Up is better.',
      series: [series('reward', 'reward')],
      smoothing: 0.1,
    },
    {
      title: CRITIC_AND_REWARD,
      hint: 'The critic is of use where its expectation follows the reward.',
      series: [series('reward that came', 'reward'), series('reward the critic expects', 'criticValue')],
      smoothing: 0.1,
    },
    ...rewardNames(metrics).flatMap((name): LineChart[] => [
      {
        title: `Reward: ${name}`,
        hint: 'Of the pictures that the model is heading for, and what the critic expected of them where it learns this reward. Up is better.',
        series: [
          series('reward that came', `reward.${name}`),
          series('reward the critic expected', `critic.${name}`),
        ].filter(({ points }, i) => i === 0 || points.length > 0),
        smoothing: 0.1,
      },
      {
        title: `Critic's fit: ${name}`,
        hint: 'Of what the critic expected with what came, over the last fifty steps or so. 1 is perfect; at 0 the critic is no better than the mean.',
        series: [
          series('correlation', `criticCorrelation.${name}`),
          series('explained variance', `criticExplainedVariance.${name}`),
        ],
      },
    ]),
    {
      title: CRITIC_LOSS,
      hint: 'The squared difference between the reward that the critic expects and the one that came. Down is better.',
      series: [series('critic loss', 'criticLoss')],
      smoothing: 0.1,
    },
    {
      title: 'Learning rate',
      hint: 'The schedule of the policy.',
      series: [series('learning rate', 'learningRate')],
    },
  ];
  const measured = charts.filter((chart) => chart.series.every(({ points }) => points.length > 0));
  // Where the two lines can be compared, their squared difference tells nothing more.
  return measured.some(({ title }) => title === CRITIC_AND_REWARD)
    ? measured.filter(({ title }) => title !== CRITIC_LOSS)
    : measured;
}

/** The rewards that have curves of their own, in the order of the log. */
function rewardNames(metrics: readonly MetricsRecord[]): string[] {
  const names = metrics.flatMap((record) =>
    Object.keys(record).flatMap((key) => /^reward\.(.+)$/.exec(key)?.[1] ?? []),
  );
  const unique = [...new Set(names)];
  // A single reward that no critic learns is the chart of all rewards once more.
  const learnt = metrics.some((record) => unique.some((name) => `critic.${name}` in record));
  return unique.length > 1 || learnt ? unique : [];
}

function header({ title, summary, method, token, figures, references }: ReportData): string {
  const tiles = figures.map(
    ({ label, value, note }) =>
      `<div><dt>${escapeHtml(label)}</dt><dd>${escapeHtml(value)}${note ? `<small>${escapeHtml(note)}</small>` : ''}</dd></div>`,
  );
  const pictures = references.map((image) => `<figure class="framed">${picture(image)}</figure>`);
  const columns = references.length <= MOST_COLUMNS ? references.length : Math.ceil(references.length / 2);
  const caption =
    references.length === 1 ? 'The reference picture.' : `The ${references.length} reference pictures.`;
  return `<header>
<p class="eyebrow"><b>portrayal</b><span>${escapeHtml(method)}</span></p>
<h1>${marked(title, token)}</h1>
<p class="lead">${escapeHtml(summary)}</p>
${pictures.length > 0 ? `<div class="references" style="--columns:${columns}">${pictures.join('')}</div><p class="caption">${caption}</p>` : ''}
${tiles.length > 0 ? `<dl class="figures">${tiles.join('')}</dl>` : ''}
</header>`.replace(/\n+/g, '\n');
}

function comparisons({ comparisons: pairs, token }: ReportData): string {
  const strip = (images: readonly ReportImage[]) =>
    `<div class="strip" style="grid-template-columns:repeat(${Math.max(1, Math.min(4, images.length))},1fr)">${images
      .map((image) => `<figure class="framed">${picture(image)}</figure>`)
      .join('')}</div>`;
  const scenes = pairs.map(
    ({ prompt, before, after }) => `<article class="scene">
<h3>${marked(prompt, token)}</h3>
<div class="pair"><div><p class="side">Before</p>${strip(before)}</div><div><p class="side">After</p>${strip(after)}</div></div>
</article>`,
  );
  return `<section>
<h2>Before and after</h2>
<p class="intro">Left and right start from the same noise and the same prompt. Nothing was picked by hand.</p>
<div class="heads"><div><b>Before</b> <span>the base model</span></div><div><b>After</b> <span>with what was learnt here</span></div></div>
${scenes.join('\n')}
</section>`;
}

function course(steps: NonNullable<ReportData['course']>): string {
  const figures = steps.map(
    ({ step, image }) =>
      `<figure><div class="framed">${picture(image)}</div><figcaption class="caption">step ${step}</figcaption></figure>`,
  );
  return `<section>
<h2>On the way</h2>
<p class="intro">Samples from the same noise while the run went on.</p>
<div class="course">${figures.join('')}</div>
</section>`;
}

function charts(list: readonly LineChart[]): string {
  const cards = list.map((chart) => {
    const legend =
      chart.series.length > 1
        ? `<ul class="legend">${chart.series.map(({ label }, i) => `<li><i class="s${i}"></i>${escapeHtml(label)}</li>`).join('')}</ul>`
        : '';
    return `<article class="card"><h3>${escapeHtml(chart.title)}</h3><p>${escapeHtml(chart.hint)}</p>${legend}${renderLineChart(chart)}</article>`;
  });
  const faint = list.some(({ smoothing }) => smoothing)
    ? '<p class="intro">Bold: the running mean. Faint: the single steps.</p>'
    : '';
  return `<section>
<h2>How it went</h2>
${faint}
<div class="cards">${cards.join('\n')}</div>
</section>`;
}

function usages(list: readonly Usage[]): string {
  const entries = list.map(
    ({ title, file, code }) =>
      `<article><h3>${escapeHtml(title)} <small><code>${escapeHtml(file)}</code></small></h3><pre>${escapeHtml(code)}</pre></article>`,
  );
  return `<section>
<h2>Use what was learnt</h2>
<p class="intro">The run folder holds everything; nothing has to be converted.</p>
<div class="uses">${entries.join('\n')}</div>
</section>`;
}

function settings({ settings: tables, timing }: ReportData): string {
  const all = [...tables, { title: 'Time', rows: timing }].filter(({ rows }) => rows.length > 0);
  if (all.length === 0) return '';
  const rendered = all.map(({ title, rows }) => {
    const lines = rows.map(
      ([name, value]) => `<tr><th scope="row">${escapeHtml(name)}</th><td>${escapeHtml(value)}</td></tr>`,
    );
    return `<table><caption>${escapeHtml(title)}</caption>${lines.join('')}</table>`;
  });
  return `<section>
<h2>Settings</h2>
<p class="intro">All of them are in <code>config.json</code>; the same settings and photographs give the same bytes on the same machine.</p>
<div class="tables">${rendered.join('\n')}</div>
</section>`;
}

function notes(list: readonly string[]): string {
  return `<section>
<h2>Worth knowing</h2>
<ul class="notes">${list.map((note) => `<li>${escapeHtml(note)}</li>`).join('')}</ul>
</section>`;
}

/** Text with every whole word that is the rare token marked. */
function marked(text: string, token: string | undefined): string {
  if (!token) return escapeHtml(text);
  const pattern = new RegExp(
    `(?<![\\p{L}\\p{N}])${token.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')}(?![\\p{L}\\p{N}])`,
    'giu',
  );
  let [html, end] = ['', 0];
  for (const match of text.matchAll(pattern)) {
    html += `${escapeHtml(text.slice(end, match.index))}<mark>${escapeHtml(match[0])}</mark>`;
    end = match.index + match[0].length;
  }
  return html + escapeHtml(text.slice(end));
}

function picture({ bytes, width, height, alt }: ReportImage): string {
  const type = bytes[0] === 0x89 ? 'image/png' : 'image/jpeg';
  const small = width <= PIXEL_ART_WIDTH ? ' class="small"' : '';
  const source = `data:${type};base64,${base64(bytes)}`;
  return `<img${small} src="${source}" width="${width}" height="${height}" alt="${escapeHtml(alt)}">`;
}

function base64(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('base64');
}
