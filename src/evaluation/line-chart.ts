import { escapeHtml } from './escape-html.js';

/** One line: [step, value] in the order of steps. Values that are not finite are left out. */
export interface Series {
  readonly label: string;
  readonly points: readonly (readonly [step: number, value: number])[];
}

export interface LineChart {
  readonly title: string;
  /** What the reader should look for, in one sentence. */
  readonly hint: string;
  /** One or two lines on the same scale. */
  readonly series: readonly Series[];
  /** Draw each line bold as a running mean over about this share of the run, with the single values faint behind it. 0: as it is. */
  readonly smoothing?: number;
}

const [WIDTH, HEIGHT] = [440, 228];
const [LEFT, RIGHT, TOP, BOTTOM] = [56, 428, 14, 200];
/** More points than these cannot be told apart at the chart's size (drawn) or in a running mean (measured); neighbours are averaged. */
const MOST_DRAWN = 400;
const MOST_MEASURED = 4000;
const HOVER_COLUMNS = 60;

/** Draws a chart as inline SVG; its colours are the page's style sheet's. */
export function renderLineChart(chart: LineChart): string {
  const lines = chart.series
    .map(({ label, points }) => ({
      label,
      points: thin(
        points.filter(([step, value]) => Number.isFinite(step) && Number.isFinite(value)),
        MOST_MEASURED,
      ),
    }))
    .filter(({ points }) => points.length > 0)
    .map(({ label, points }) => {
      const bold = chart.smoothing ? runningMean(points, chart.smoothing) : points;
      // Behind one line its single values are a help, behind two they are a tangle.
      const faint = chart.smoothing && chart.series.length === 1 ? thin(points, MOST_DRAWN) : [];
      return { label, faint, bold: thin(bold, MOST_DRAWN) };
    });
  if (lines.length === 0) return '<p class="empty">Nothing was measured.</p>';

  const steps = lines.flatMap(({ bold }) => bold.map(([step]) => step));
  const x = scale([Math.min(...steps), Math.max(...steps)], [LEFT, RIGHT]);
  const range = valueRange(lines);
  const yTicks = ticks(range[0], range[1], 4);
  const y = scale(
    [Math.min(range[0], yTicks[0] ?? range[0]), Math.max(range[1], yTicks.at(-1) ?? range[1])],
    [BOTTOM, TOP],
  );
  const decimals = decimalsFor(yTicks);

  const parts = [
    ...yTicks.map(
      (value) =>
        `<line class="rule" x1="${LEFT}" x2="${RIGHT}" y1="${at(y(value))}" y2="${at(y(value))}"/>` +
        `<text class="tick" x="${LEFT - 8}" y="${at(y(value) + 4)}" text-anchor="end">${tickLabel(value, decimals)}</text>`,
    ),
    ...ticks(x.from, x.to, 5)
      .filter((step) => Number.isInteger(step) && x(step) > LEFT - 6 && step <= x.to)
      .map(
        (step) =>
          `<text class="tick" x="${at(x(step))}" y="${BOTTOM + 20}" text-anchor="middle">${step}</text>`,
      ),
    `<text class="tick" x="${LEFT - 12}" y="${BOTTOM + 20}" text-anchor="end">step</text>`,
  ];
  lines.forEach(({ faint, bold }, index) => {
    if (faint.length > 0) parts.push(`<path class="raw s${index}" d="${path(faint, x, y)}"/>`);
    if (bold.length === 1) {
      parts.push(
        `<circle class="dot s${index}" cx="${at(x(bold[0]![0]))}" cy="${at(y(bold[0]![1]))}" r="3"/>`,
      );
    } else parts.push(`<path class="line s${index}" d="${path(bold, x, y)}"/>`);
  });
  parts.push(...hoverColumns(lines, x, y));

  const label = `${chart.title}: ${lines.map((l) => `${l.label} from ${readable(l.bold[0]![1])} to ${readable(l.bold.at(-1)![1])}`).join('; ')}`;
  return `<svg viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-label="${escapeHtml(label)}">${parts.join('')}</svg>`;
}

/** A number as a person reads it: at most four significant digits. */
export function readable(value: number): string {
  if (value === 0) return '0';
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-4) return value.toExponential(2).replace('e-', 'e−').replace('e+', 'e');
  return String(Number(value.toPrecision(4))).replace('-', '−');
}

type Points = readonly (readonly [number, number])[];

interface DrawnLine {
  readonly label: string;
  readonly faint: Points;
  readonly bold: Points;
}

interface Scale {
  (value: number): number;
  readonly from: number;
  readonly to: number;
}

function scale([from, to]: readonly [number, number], [start, end]: readonly [number, number]): Scale {
  const span = to - from || 1;
  return Object.assign((value: number) => start + ((value - from) / span) * (end - start), { from, to });
}

/** The values' range without the extreme hundredth, which is cut off at the frame, but with the whole of the bold lines. */
function valueRange(lines: readonly DrawnLine[]): [number, number] {
  const bold = lines.flatMap((line) => line.bold.map(([, value]) => value));
  const faint = lines.flatMap((line) => line.faint.map(([, value]) => value)).sort((a, b) => a - b);
  const cut = Math.floor(faint.length * 0.01);
  const low = Math.min(...faint.slice(cut, cut + 1), ...bold);
  const high = Math.max(...faint.slice(-1 - cut).slice(0, 1), ...bold);
  if (high > low) return [low, high];
  const room = Math.abs(low) * 0.5 || 1;
  return [low - room, high + room];
}

/** Round values that cover the range, about `wanted` of them. */
function ticks(low: number, high: number, wanted: number): number[] {
  const rough = (high - low) / wanted;
  if (!(rough > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999)!;
  const first = Math.floor(low / step + 1e-9);
  const last = Math.ceil(high / step - 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

function decimalsFor(values: readonly number[]): number | undefined {
  const largest = Math.max(...values.map(Math.abs));
  if (largest !== 0 && (largest < 1e-3 || largest >= 1e5)) return undefined;
  return Math.max(...values.map((value) => (String(value).split('.')[1] ?? '').length));
}

function tickLabel(value: number, decimals: number | undefined): string {
  if (decimals !== undefined) return value.toFixed(decimals).replace('-', '−');
  return value === 0
    ? '0'
    : String(Number(value.toPrecision(3)).toExponential())
        .replace(/-/g, '−')
        .replace('e+', 'e');
}

/** A centred mean over about a share of the points with triangular weights, which only those there are share at either end. */
function runningMean(points: Points, share: number): Points {
  const reach = Math.max(1, Math.round((points.length * share) / 2));
  return points.map(([step], i) => {
    let [sum, weights] = [0, 0];
    for (let k = Math.max(0, i - reach); k <= Math.min(points.length - 1, i + reach); k++) {
      const weight = reach + 1 - Math.abs(k - i);
      sum += weight * points[k]![1];
      weights += weight;
    }
    return [step, sum / weights] as const;
  });
}

function thin(points: Points, most: number): Points {
  if (points.length <= most) return points;
  return Array.from({ length: most }, (_, i) => {
    const from = Math.floor((i * points.length) / most);
    const group = points.slice(from, Math.floor(((i + 1) * points.length) / most));
    const mean = group.reduce((sum, [, value]) => sum + value, 0) / group.length;
    return [group[Math.floor(group.length / 2)]![0], mean] as const;
  });
}

function path(points: Points, x: Scale, y: Scale): string {
  const inside = (value: number) => Math.min(BOTTOM, Math.max(TOP, value));
  return points
    .map(([step, value], i) => `${i === 0 ? 'M' : 'L'}${at(x(step))} ${at(inside(y(value)))}`)
    .join('');
}

/** Columns that show the values under the pointer, without a script: the browser's own tooltip and a line. */
function hoverColumns(lines: readonly DrawnLine[], x: Scale, y: Scale): string[] {
  const longest = lines.reduce((a, b) => (b.bold.length > a.bold.length ? b : a)).bold;
  const columns = Math.min(HOVER_COLUMNS, longest.length);
  const width = (RIGHT - LEFT) / columns;
  return Array.from({ length: columns }, (_, i) => {
    const step = longest[Math.floor(((i + 0.5) * longest.length) / columns)]![0];
    const values = lines.map((line) => ({ label: line.label, value: valueAt(line.bold, step) }));
    const dots = values
      .map(({ value }, s) => `<circle class="dot s${s}" cx="${at(x(step))}" cy="${at(y(value))}" r="3"/>`)
      .join('');
    const text = [`step ${step}`, ...values.map(({ label, value }) => `${label}: ${readable(value)}`)].join(
      '\n',
    );
    return (
      `<g class="hover"><title>${escapeHtml(text)}</title><rect x="${at(LEFT + i * width)}" y="${TOP}" width="${at(width)}" height="${BOTTOM - TOP}"/>` +
      `<line x1="${at(x(step))}" x2="${at(x(step))}" y1="${TOP}" y2="${BOTTOM}"/>${dots}</g>`
    );
  });
}

function valueAt(points: Points, step: number): number {
  let best = points[0]!;
  for (const point of points) if (Math.abs(point[0] - step) < Math.abs(best[0] - step)) best = point;
  return best[1];
}

function at(coordinate: number): string {
  return String(Number(coordinate.toFixed(1)));
}
