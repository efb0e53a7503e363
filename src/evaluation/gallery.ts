import type { Comparison } from './comparison.js';
import {
  differenceText,
  fixed,
  measuredMetrics,
  metricTitles,
  type TableContext,
} from './comparison-table.js';
import { escapeHtml } from './escape-html.js';
import { galleryScript } from './gallery-script.js';
import { galleryStyle } from './gallery-style.js';
import { reportStyle } from './report-style.js';
import { type Metric, metrics, type Scores } from './scores.js';

/** A picture beside the page. */
export interface GalleryPicture {
  /** The path of what is shown, relative to the page, with slashes. */
  readonly shown: string;
  /** The path of the whole picture, where another is shown. */
  readonly whole?: string;
  /** Shown with its own pixels, not blurred. */
  readonly small?: boolean;
}

/** One prompt of a subject, drawn by every method. */
export interface GalleryPrompt {
  readonly text: string;
  /** In the order of the methods. */
  readonly methods: readonly { readonly pictures: readonly GalleryPicture[]; readonly scores: Scores }[];
}

export interface GallerySubject {
  readonly name: string;
  readonly className: string;
  readonly references: readonly GalleryPicture[];
  readonly prompts: readonly GalleryPrompt[];
}

/** All that the page shows. Every text may hold any characters. */
export interface GalleryData {
  readonly context: TableContext;
  readonly comparison: Comparison;
  readonly methods: readonly string[];
  readonly subjects: readonly GallerySubject[];
  /** "portrayal 0.1.0" */
  readonly producer: string;
}

/**
 * A page to leaf through an evaluation: the scores, then every prompt of every subject, methods side by side, the photographs on top. It needs the pictures beside it
 * and nothing else, and its own policy forbids the browser to load anything from the network. Without scripts it is one long page.
 */
export function renderGallery(data: GalleryData): string {
  const { context, subjects, producer } = data;
  const title = escapeHtml(context.title);
  const prompts = subjects.reduce((sum, s) => sum + s.prompts.length, 0);
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src 'self' file:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="generator" content="${escapeHtml(producer)}">
<title>${title} · portrayal</title>
<style>${reportStyle}${galleryStyle}</style>
</head>
<body>
<main>
<header>
<p class="eyebrow"><b>portrayal</b><span>evaluation</span></p>
<h1>${title}</h1>
<p class="lead">${counted(data.methods.length, 'method')}, ${counted(subjects.length, 'subject')}, ${counted(prompts, 'prompt')}. Means over subjects with their 95 % bootstrap intervals.</p>
${context.warnings.length > 0 ? `<div class="mind">${context.warnings.map((w) => `<p><b>Mind:</b> ${escapeHtml(w)}</p>`).join('')}</div>` : ''}
${scoreTable(data)}
${differenceTable(data)}
</header>
<section>
<h2>Every prompt</h2>
<p class="intro">Pictures that were drawn here have the same seed at the same place of every column. Nothing was picked by hand.</p>
${bar(subjects)}
<div class="wall" style="--methods:${data.methods.length}">
${subjects.map((subject) => subjectSection(subject, data.methods)).join('\n')}
</div>
</section>
<section>
<h2>How it was measured</h2>
<ul class="notes">${context.facts.map((fact) => `<li>${escapeHtml(fact)}</li>`).join('')}</ul>
</section>
</main>
<footer>Written by ${escapeHtml(producer)}. This page shows the pictures that lie beside it and loads nothing from the network; move the whole folder to share it.</footer>
<script>${galleryScript}</script>
</body>
</html>
`;
}

function counted(n: number, noun: string): string {
  return `${n} ${noun}${n === 1 ? '' : 's'}`;
}

function scoreTable({ comparison, context }: GalleryData): string {
  const shown = measuredMetrics(comparison);
  const best = new Map<Metric, number>();
  for (const { estimates } of comparison.methods) {
    for (const metric of shown) {
      best.set(
        metric,
        Math.max(
          best.get(metric) ?? Number.NEGATIVE_INFINITY,
          estimates[metric]?.mean ?? Number.NEGATIVE_INFINITY,
        ),
      );
    }
  }
  const cell = (estimates: Comparison['photographs'], metric: Metric, mark: boolean): string => {
    const estimate = estimates[metric];
    if (!estimate) return '<td>–</td>';
    const interval =
      estimate.low === undefined ? '' : `<small>${fixed(estimate.low)} to ${fixed(estimate.high)}</small>`;
    const isBest = mark && comparison.methods.length > 1 && estimate.mean === best.get(metric);
    return `<td${isBest ? ' class="best"' : ''}>${fixed(estimate.mean)}${interval}</td>`;
  };
  const rows = comparison.methods.map(
    ({ name, estimates }) =>
      `<tr><th scope="row">${escapeHtml(name)}</th>${shown.map((m) => cell(estimates, m, true)).join('')}<td class="words">${escapeHtml(context.rewards.get(name) ?? '–')}</td></tr>`,
  );
  return `<div class="scores"><table>
<thead><tr><th scope="col">Method</th>${shown.map((m) => `<th scope="col">${metricTitles[m]}</th>`).join('')}<td class="words">rewarded for</td></tr></thead>
<tbody>${rows.join('')}<tr class="ceiling"><th scope="row">the photographs themselves</th>${shown.map((m) => cell(comparison.photographs, m, false)).join('')}<td></td></tr></tbody>
</table></div>`;
}

function differenceTable({ comparison }: GalleryData): string {
  const [first] = comparison.differences;
  if (!first) return '';
  const shown = measuredMetrics(comparison);
  const rows = comparison.differences.map(({ name, differences }) => {
    const cells = shown.map((m) => {
      const text = differenceText(differences[m]);
      const at = text.indexOf(' (');
      return at < 0
        ? `<td>${text}</td>`
        : `<td>${text.slice(0, at)}<small>${escapeHtml(text.slice(at + 1))}</small></td>`;
    });
    return `<tr><th scope="row">${escapeHtml(name)}</th>${cells.join('')}</tr>`;
  });
  return `<div class="scores"><table>
<caption>Difference from ${escapeHtml(first.baseline)} <small>paired bootstrap over subjects, p two-sided and not corrected for several looks</small></caption>
<thead><tr><th scope="col">Method</th>${shown.map((m) => `<th scope="col">${metricTitles[m]}</th>`).join('')}</tr></thead>
<tbody>${rows.join('')}</tbody>
</table></div>`;
}

function bar(subjects: readonly GallerySubject[]): string {
  const options = subjects.map((s, i) => `<option value="${i}">${escapeHtml(s.name)}</option>`);
  return `<nav class="bar" aria-label="Leaf through">
<select class="subject-name" aria-label="Subject">${options.join('')}</select>
<button type="button" class="back" aria-label="Prompt before">←</button>
<select class="prompt" aria-label="Prompt"></select>
<button type="button" class="on" aria-label="Next prompt">→</button>
<button type="button" class="view">Show all prompts</button>
<span class="keys"><kbd>←</kbd> <kbd>→</kbd> prompts, with <kbd>⇧</kbd> subjects</span>
</nav>`;
}

function subjectSection(subject: GallerySubject, methods: readonly string[]): string {
  const { name, className, references, prompts } = subject;
  const photographs = references.map(
    (picture, i) => `<figure class="framed">${image(picture, `${name}, photograph ${i + 1}`)}</figure>`,
  );
  const articles = prompts.map(({ text, methods: columns }, p) => {
    const drawn = columns.map(({ pictures, scores }, m) => {
      const links = pictures.map(
        (picture, i) =>
          `<a href="${href(picture.whole ?? picture.shown)}">${image(picture, `${text}, by ${methods[m]}, picture ${i + 1}`)}</a>`,
      );
      return `<div><h4>${escapeHtml(methods[m]!)}</h4><p>${scoreLine(scores)}</p><div class="pictures${pictures.length === 1 ? ' single' : ''}">${links.join('')}</div></div>`;
    });
    const label = `${p + 1}. ${text}`;
    return `<article class="prompt-pictures" data-prompt="${escapeHtml(label)}"><h3><span>${p + 1} of ${prompts.length}</span>${escapeHtml(text)}</h3><div class="methods">${drawn.join('')}</div></article>`;
  });
  return `<section class="subject">
<h2>${escapeHtml(name)}<small>${escapeHtml(className)}</small></h2>
<div class="photographs">${photographs.join('')}</div>
${articles.join('\n')}
</section>`;
}

function scoreLine(scores: Scores): string {
  return metrics
    .flatMap((metric) =>
      scores[metric] === undefined ? [] : [`${metricTitles[metric]} ${fixed(scores[metric])}`],
    )
    .join(' · ');
}

function image({ shown, small }: GalleryPicture, alt: string): string {
  return `<img${small ? ' class="small"' : ''} src="${href(shown)}" alt="${escapeHtml(alt)}" loading="lazy" decoding="async">`;
}

/** A path as a link: any characters may be in its names. */
function href(path: string): string {
  return escapeHtml(path.split('/').map(encodeURIComponent).join('/'));
}
