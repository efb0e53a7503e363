import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { decodePng, encodePng, type RgbImage } from '../../src/data/image-grid.js';
import { readSubjectPrompt } from '../../src/data/prompts.js';
import { RunError } from '../../src/errors.js';
import { RunFolder } from '../../src/training/run-folder.js';
import { readEnvironment } from '../../src/workflows/environment.js';
import { personaliseDefaults } from '../../src/workflows/personalisation-settings.js';
import { readSampleGrid, sampleGrid, writeRunReport } from '../../src/workflows/run-report.js';
import { trainingKind } from '../../src/workflows/training-kind.js';
import { temporaryFolder } from '../temporary-folder.js';

/** Plain, so that it is quickly encoded, but for its first and last rows and columns: a cut that is off by one shows. */
function picture(width: number, height: number, seed: number): RgbImage {
  const pixels = new Uint8Array(3 * width * height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const edge = y === 0 || x === 0 || y === height - 1 || x === width - 1;
      pixels.fill(edge ? x + y : 20 * seed, 3 * (y * width + x), 3 * (y * width + x) + 2);
    }
  }
  return { width, height, pixels };
}

const equal = (a: RgbImage, b: RgbImage) =>
  a.width === b.width && a.height === b.height && Buffer.compare(a.pixels, b.pixels) === 0;

for (const { rows, columns, width, height } of [
  { rows: 3, columns: 3, width: 800, height: 800 },
  { rows: 2, columns: 3, width: 17, height: 9 },
  { rows: 1, columns: 1, width: 1, height: 1 },
]) {
  test(`${rows} x ${columns} pictures of ${width} x ${height} come out of their grid as they went in`, async (t) => {
    const path = join(await temporaryFolder(t), 'grid.png');
    const pictures = Array.from({ length: rows }, (_, r) =>
      Array.from({ length: columns }, (_, c) => picture(width, height, r * columns + c)),
    );
    const png = await sampleGrid(pictures);
    await writeFile(path, png);
    assert.ok(equal(await decodePng(path), await decodePng(png)));
    const cells = await readSampleGrid(path, rows, columns);
    assert.deepEqual(
      cells.map((row) => row.length),
      pictures.map((row) => row.length),
    );
    for (const [r, row] of cells.entries()) {
      for (const [c, cell] of row.entries())
        assert.ok(equal(cell, pictures[r]![c]!), `row ${r}, column ${c}`);
    }
  });
}

test('a file that is not the grid of the run is an error that names it', async (t) => {
  const path = join(await temporaryFolder(t), 'grid.png');
  const png = await encodePng(picture(63, 64, 1));
  await writeFile(path, png);
  const refused = (pattern: RegExp) => (error: unknown) =>
    error instanceof RunError && error.message.startsWith(path) && pattern.test(error.message);
  await assert.rejects(readSampleGrid(path, 2, 3), refused(/grid of 2 x 3 pictures.*63 x 64.*Delete it/));
  await writeFile(path, png.subarray(0, 40));
  await assert.rejects(readSampleGrid(path, 2, 3), refused(/cannot be read/));
});

async function report(
  t: Parameters<typeof temporaryFolder>[0],
  name: string,
  token: string,
  seconds: number[],
) {
  const run = await RunFolder.open(join(await temporaryFolder(t), name), { config: {} });
  try {
    for (const [i, value] of seconds.entries()) await run.timings.append({ step: i + 1, seconds: value });
    const path = await writeRunReport({
      run,
      subjects: [
        readSubjectPrompt({
          instancePrompt: `a photo of ${token} backpack`,
          classPrompt: 'a photo of backpack',
        }),
      ],
      usages: trainingKind(personaliseDefaults, []).usages(run.path),
      settings: personaliseDefaults,
      model: 'models/world',
      resolution: 16,
      references: [],
      samples: [],
      environment: readEnvironment({ threads: 1 }),
      steps: { done: 400, kept: 400 },
      trainableParameters: 12,
      seconds: 9,
      notes: [],
    });
    return { path: run.path, html: await readFile(path, 'utf8') };
  } finally {
    await run.close();
  }
}

test('the training time is that of all steps, also of those before a resume', async (t) => {
  const { html } = await report(t, 'run', 'sks', [100, 60, 7200, 60, 20]);
  // 7440 s of steps, though the process that wrote the report had lived for 9.
  assert.match(html, /Training time[^0-9]*2 h 04 min/);
  assert.match(html, /training steps[^0-9]*2 h 04 min/);
  assert.match(html, /median step[^0-9]*60\.000 s/);
  assert.match(html, /since the last start, with loading and drawing[^0-9]*9\.0 s/);
  assert.doesNotMatch(html, /whole run/);
});

test('the commands of the report reach the shell as they are meant, whatever the names hold', async (t) => {
  const { path, html } = await report(t, `it's $(touch x) "a" \`b\``, `s'$(k)s`, [1]);
  const commands = [...html.matchAll(/<pre>(.*?)<\/pre>/gs)].map(([, code]) =>
    code!
      .replaceAll('&lt;', '<')
      .replaceAll('&gt;', '>')
      .replaceAll('&quot;', '"')
      .replaceAll('&#39;', "'")
      .replaceAll('&amp;', '&'),
  );
  const words = async (command: string | undefined) => {
    assert.ok(command);
    const show = `cp() { printf '%s\\n' "$@"; }\nnpx() { printf '%s\\n' "$@"; }\n`;
    const { stdout } = await promisify(execFile)('sh', ['-c', show + command]);
    return stdout.trimEnd().split('\n');
  };
  const copied = await words(commands.find((c) => c.startsWith('cp ')));
  assert.ok(copied[0]!.startsWith(`${path}/`), copied[0]);
  assert.equal(copied.length, 2);
  const drawn = await words(commands.find((c) => c.startsWith('npx ')));
  assert.deepEqual(drawn.slice(0, 6), [
    'portrayal',
    'generate',
    '--run',
    path,
    '--prompt',
    `a s'$(k)s backpack on the beach`,
  ]);
  const python = commands.find((c) => c.startsWith('pipe.'));
  assert.ok(python?.includes(`load_lora_weights(${JSON.stringify(path)}, `), python);

  const plain = await report(t, 'run', 'sks', [1]);
  assert.ok(plain.html.includes(`--run ${plain.path} --prompt &#39;a sks backpack`));
});
