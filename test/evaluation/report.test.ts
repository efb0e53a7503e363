import assert from 'node:assert/strict';
import { test } from 'node:test';
import sharp from 'sharp';
import { composeGrid, encodePng, encodeThumbnail } from '../../src/data/image-grid.js';
import { type LineChart, readable, renderLineChart } from '../../src/evaluation/line-chart.js';
import {
  chartsFromMetrics,
  type ReportData,
  type ReportImage,
  renderReport,
} from '../../src/evaluation/report.js';

const HOSTILE = `"><script>alert('1')</script>&<img src=x onerror=alert(2)>`;

async function picture(red: number): Promise<ReportImage> {
  const pixels = new Uint8Array(12 * 12 * 3).fill(red);
  return {
    bytes: await encodePng({ width: 12, height: 12, pixels }),
    width: 12,
    height: 12,
    alt: `red ${red}`,
  };
}

async function sample(text: string): Promise<ReportData> {
  const chart: LineChart = {
    title: text,
    hint: text,
    smoothing: 0.1,
    series: [
      {
        label: text,
        points: [
          [1, 2],
          [2, 4],
        ],
      },
      {
        label: `${text} two`,
        points: [
          [1, 1],
          [2, 3],
        ],
      },
    ],
  };
  return {
    title: text,
    summary: text,
    method: text,
    token: 'sks',
    figures: [{ label: text, value: text, note: text }],
    references: [{ ...(await picture(10)), alt: text }],
    comparisons: [
      { prompt: text, before: [await picture(20)], after: [await picture(30), await picture(40)] },
    ],
    course: [{ step: 50, image: await picture(50) }],
    charts: [chart],
    usages: [{ title: text, file: text, code: text }],
    settings: [{ title: text, rows: [[text, text]] }],
    timing: [[text, text]],
    notes: [text],
    producer: text,
  };
}

/** Every element of the page, checked to be closed in order. */
function elements(html: string): { name: string; attributes: string }[] {
  const single = new Set(['meta', 'img', 'br', '!doctype']);
  const open: string[] = [];
  const found = [];
  const withoutStyle = html.replace(/<style>[^<]*<\/style>/, '');
  for (const [, close, name, attributes, self] of withoutStyle.matchAll(
    /<(\/?)([!a-z][a-z0-9]*)((?:\s+[^\s=>/]+(?:="[^"]*")?)*)\s*(\/?)>/gi,
  )) {
    if (close) assert.equal(open.pop(), name);
    else {
      found.push({ name: name!, attributes: attributes! });
      if (!self && !single.has(name!)) open.push(name!);
    }
  }
  assert.deepEqual(open, []);
  // Nothing that looks like markup is left once all elements are taken out.
  assert.doesNotMatch(withoutStyle.replace(/<\/?[!a-z][^<>]*>/gi, ''), /[<>]/);
  return found;
}

test('every text is shown as text, whatever it holds', async () => {
  const html = renderReport(await sample(HOSTILE));
  const found = elements(html);
  assert.ok(found.every(({ name }) => name !== 'script'));
  assert.ok(found.every(({ attributes }) => !/\son\w+=/.test(attributes.replace(/"[^"]*"/g, ''))));
  assert.ok(!html.includes(HOSTILE));
  const escaped =
    '&quot;&gt;&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&amp;&lt;img src=x onerror=alert(2)&gt;';
  // Title twice, summary, method, figure 3, alt, prompt, chart title, hint and labels, usage 3, setting 3, time 2, note, producer twice.
  assert.ok(html.split(escaped).length - 1 >= 20);
});

test('the page needs nothing but itself, and forbids the browser to fetch anything', async () => {
  const html = renderReport(await sample('plain'));
  assert.match(html, /^<!doctype html>/);
  assert.match(html, /content="default-src 'none'; img-src data:; style-src 'unsafe-inline'"/);
  assert.doesNotMatch(html, /https?:|src="(?!data:)|href=|@import|url\(/);
});

test('the pictures are in it, byte for byte, before on the left and after on the right', async () => {
  const data = await sample('plain');
  const html = renderReport(data);
  const found = [...html.matchAll(/<img[^>]* src="data:image\/png;base64,([^"]*)"/g)].map((m) => m[1]);
  const expected = [
    ...data.references,
    ...data.comparisons[0]!.before,
    ...data.comparisons[0]!.after,
    data.course![0]!.image,
  ];
  assert.deepEqual(
    found,
    expected.map(({ bytes }) => Buffer.from(bytes).toString('base64')),
  );
  const photo = await encodeThumbnail({ width: 40, height: 20, pixels: new Uint8Array(2400).fill(99) }, 20);
  const jpeg = renderReport({ ...data, references: [{ bytes: photo, width: 20, height: 10, alt: '' }] });
  assert.match(jpeg, /src="data:image\/jpeg;base64,\/9j/);
});

test('the rare token is marked where it is a word of its own', async () => {
  const data = await sample('plain');
  const html = renderReport({ ...data, title: 'A Sks dog, not a skskater', token: 'sks' });
  assert.match(html, /<h1>A <mark>Sks<\/mark> dog, not a skskater<\/h1>/);
  const symbols = renderReport({ ...data, title: 'a <new1> dog', token: '<new1>' });
  assert.match(symbols, /<h1>a <mark>&lt;new1&gt;<\/mark> dog<\/h1>/);
});

test('parts without contents are left out', async () => {
  const html = renderReport({
    ...(await sample('plain')),
    references: [],
    comparisons: [],
    course: [],
    charts: [],
    usages: [],
    settings: [],
    timing: [],
    notes: [],
    figures: [],
  });
  elements(html);
  assert.ok(!html.includes('<section>') && !html.includes('<img') && !html.includes('<dl'));
});

function lines(svg: string, kind: 'line' | 'raw'): [number, number][][] {
  return [...svg.matchAll(new RegExp(`class="${kind} s\\d" d="([^"]*)"`, 'g'))].map((m) =>
    [...m[1]!.matchAll(/[ML]([\d.-]+) ([\d.-]+)/g)].map((p) => [Number(p[1]), Number(p[2])]),
  );
}

test('a curve stands where its axis says', () => {
  const svg = renderLineChart({
    title: 't',
    hint: '',
    series: [
      {
        label: 'a',
        points: [
          [0, 0],
          [50, 10],
          [100, 5],
        ],
      },
    ],
  });
  const tickAt = (axis: 'x' | 'y', label: string) => {
    const found = new RegExp(
      `class="tick" x="([\\d.]+)" y="([\\d.]+)" text-anchor="${axis === 'x' ? 'middle' : 'end'}">${label}<`,
    ).exec(svg);
    assert.ok(found, `a tick ${label}`);
    // A label's baseline is 4 below the line that it names.
    return axis === 'x' ? Number(found[1]) : Number(found[2]) - 4;
  };
  const [points] = lines(svg, 'line');
  assert.deepEqual(points, [
    [tickAt('x', '0'), tickAt('y', '0.0')],
    [(tickAt('x', '0') + tickAt('x', '100')) / 2, tickAt('y', '10.0')],
    [tickAt('x', '100'), tickAt('y', '5.0')],
  ]);
});

test('a running mean is bold over the faint values, keeps a constant constant and a slope straight', () => {
  const chart = (value: (step: number) => number): LineChart => ({
    title: 't',
    hint: '',
    smoothing: 0.2,
    series: [{ label: 'a', points: Array.from({ length: 101 }, (_, i) => [i, value(i)] as const) }],
  });
  const noisy = renderLineChart(chart((i) => (i % 2 === 0 ? 1 : -1)));
  const spread = (points: [number, number][]) => {
    const ys = points.map(([, y]) => y);
    return Math.max(...ys) - Math.min(...ys);
  };
  assert.ok(spread(lines(noisy, 'line')[0]!) < 0.12 * spread(lines(noisy, 'raw')[0]!));
  assert.ok(spread(lines(renderLineChart(chart(() => 3)), 'line')[0]!) === 0);
  const slope = lines(renderLineChart(chart((i) => i)), 'line')[0]!.slice(15, 86);
  const rise = (slope.at(-1)![1] - slope[0]![1]) / 70;
  slope.forEach(([, y], i) => {
    assert.ok(Math.abs(y - (slope[0]![1] + rise * i)) <= 0.11);
  });
});

test('odd measurements do not break a curve', () => {
  const draw = (points: [number, number][]) =>
    renderLineChart({ title: 't', hint: '', smoothing: 0.1, series: [{ label: 'a', points }] });
  assert.match(draw([]), /Nothing was measured/);
  assert.match(draw([[3, Number.NaN]]), /Nothing was measured/);
  for (const svg of [
    draw([[7, 2]]),
    draw([
      [1, 5],
      [2, 5],
      [3, 5],
    ]),
    draw([
      [1, 0],
      [2, 0],
    ]),
    draw([
      [1, 1e-9],
      [2, 3e-9],
    ]),
    draw([
      [1, -2e12],
      [2, 3e12],
    ]),
    draw([
      [1, 1],
      [2, Number.POSITIVE_INFINITY],
      [3, 2],
    ]),
    draw(Array.from({ length: 20000 }, (_, i) => [i + 1, Math.sin(i / 900)])),
  ]) {
    elements(svg);
    assert.doesNotMatch(svg, /NaN|Infinity|undefined/);
    assert.ok(svg.length < 60000);
  }
});

test('one wild step does not flatten the rest of a curve', () => {
  const svg = renderLineChart({
    title: 't',
    hint: '',
    smoothing: 0.05,
    series: [
      { label: 'a', points: Array.from({ length: 300 }, (_, i) => [i, i === 150 ? 500 : 1 + Math.sin(i)]) },
    ],
  });
  const ys = lines(svg, 'raw')[0]!.map(([, y]) => y);
  assert.ok(Math.min(...ys) >= 14, 'what is cut off stays inside the frame');
});

test('the metrics become the curves that they hold', () => {
  const record = (step: number, more: object) => ({ step, loss: 1 / step, learningRate: 1e-4, ...more });
  const titles = (more: object) => chartsFromMetrics([record(1, more), record(2, more)]).map((c) => c.title);
  assert.deepEqual(titles({}), ['Loss', 'Learning rate']);
  assert.deepEqual(titles({ reward: -1, criticLoss: 0.5 }), [
    'Loss',
    'Reward',
    'Critic loss',
    'Learning rate',
  ]);
  assert.deepEqual(titles({ reward: -1, criticLoss: 0.5, criticValue: -0.9 }), [
    'Loss',
    'Reward',
    'Critic and reward',
    'Learning rate',
  ]);
  const [loss] = chartsFromMetrics([record(1, { loss: null }), record(4, {})]);
  assert.deepEqual(loss!.series[0]!.points, [[4, 0.25]]);
});

test('numbers are written for people', () => {
  assert.deepEqual([0, 0.123456, -1234.56, 1e-6, 3e7].map(readable), [
    '0',
    '0.1235',
    '−1235',
    '1.00e−6',
    '3.00e7',
  ]);
});

test('a grid puts each picture into its place, and comes back from PNG as it was', async () => {
  const flat = (value: number) => ({ width: 2, height: 1, pixels: new Uint8Array(6).fill(value) });
  const grid = composeGrid([flat(10), flat(20), flat(30)], { columns: 2, gap: 1, enlarge: 2 });
  assert.deepEqual([grid.width, grid.height], [11, 7]);
  const row = (y: number) => Array.from({ length: 11 }, (_, x) => grid.pixels[3 * (11 * y + x)]);
  const white = Array<number>(11).fill(255);
  assert.deepEqual(row(0), white);
  assert.deepEqual(row(1), [255, 10, 10, 10, 10, 255, 20, 20, 20, 20, 255]);
  assert.deepEqual(row(2), row(1));
  assert.deepEqual(row(3), white);
  assert.deepEqual(row(4), [255, 30, 30, 30, 30, 255, 255, 255, 255, 255, 255]);
  const png = await encodePng(grid);
  const { data, info } = await sharp(png).raw().toBuffer({ resolveWithObject: true });
  assert.equal(info.channels, 3);
  assert.deepEqual(new Uint8Array(data), grid.pixels);
  assert.deepEqual(await encodePng(grid), png);
});
