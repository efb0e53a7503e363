import assert from 'node:assert/strict';
import { cp, mkdir, readdir, readFile, rm, stat, truncate, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { after, describe, type TestContext, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { encodePng } from '../../src/data/image-grid.js';
import { createNodeEngine } from '../../src/engine/node.js';
import {
  CancelledError,
  InputError,
  ModelError,
  OutputError,
  RunError,
  UsageError,
} from '../../src/errors.js';
import type { Metric } from '../../src/evaluation/scores.js';
import type { TrainingEvent } from '../../src/training/events.js';
import { type EvaluateOptions, evaluate } from '../../src/workflows/evaluate.js';
import { readSubjects } from '../../src/workflows/evaluation-subjects.js';
import { personalise } from '../../src/workflows/personalise.js';
import { goldenJson, goldenPath, goldenTensors } from '../goldens.js';
import { temporaryFolder } from '../temporary-folder.js';
import { tinyRun, writePictures } from './tiny-run.js';

interface Golden {
  readonly prompts: string[];
  readonly subjects: Record<string, string>;
  readonly cases: {
    readonly dino: string | null;
    readonly clip: string | null;
    readonly protocol: 'dreambench' | 'customconcept101';
    readonly scores: Record<string, Partial<Record<Metric, number>>>;
    readonly photographs: Record<string, Partial<Record<Metric, number>>>;
  }[];
}
const golden = goldenJson<Golden>('evaluation/scores.json');
const encoder = (name: string): string => fileURLToPath(goldenPath(`encoders/${name}`));
const engine = createNodeEngine({ threads: 1 });
after(() => engine.close());

/** The golden pictures as files: references/<subject>/0.png and pictures/<subject>/01/0.png. */
async function goldenFolder(t: TestContext): Promise<string> {
  const folder = await temporaryFolder(t);
  for (const [name, { shape, data }] of goldenTensors('evaluation/pictures.safetensors')) {
    if (name.startsWith('resized/')) continue;
    const path = join(folder, `${name}.png`);
    await mkdir(dirname(path), { recursive: true });
    const [height, width] = shape as [number, number];
    await writeFile(path, await encodePng({ width, height, pixels: data as unknown as Uint8Array }));
  }
  return folder;
}

function goldenOptions(folder: string): EvaluateOptions {
  return {
    references: join(folder, 'references'),
    methods: [{ name: 'A | "tool"', pictures: join(folder, 'pictures') }],
    subjects: Object.fromEntries(
      Object.entries(golden.subjects).map(([name, noun]) => [name, { class: noun, prompts: golden.prompts }]),
    ),
    output: join(folder, 'evaluation'),
    dino: encoder('vit-tiny'),
    clip: encoder('clip-tiny'),
    resamples: 200,
    engine,
  };
}

interface Written {
  readonly scores: Record<string, Record<string, Partial<Record<Metric, number>> & { prompts: object[] }>>;
  readonly photographs: Record<string, Partial<Record<Metric, number>>>;
  readonly warnings: string[];
  readonly rewards: Record<string, string>;
}
const readScores = async (path: string): Promise<Written> =>
  JSON.parse(await readFile(path, 'utf8')) as Written;

describe('scores of given pictures are those of the reference script', () => {
  for (const { dino, clip, protocol, scores, photographs } of golden.cases) {
    test(`${dino}, ${clip}, ${protocol}`, async (t) => {
      const folder = await goldenFolder(t);
      const { dino: _d, clip: _c, ...options } = goldenOptions(folder);
      const result = await evaluate({
        ...options,
        protocol,
        ...(dino === null ? {} : { dino: encoder(dino) }),
        ...(clip === null ? {} : { clip: encoder(clip) }),
      });
      const written = await readScores(result.scores);
      for (const [subject, expected] of Object.entries(scores)) {
        const found = written.scores['A | "tool"']![subject]!;
        const { prompts, ...own } = found;
        assert.equal(prompts.length, golden.prompts.length);
        assertNear(own, expected, subject);
        assertNear(written.photographs[subject]!, photographs[subject]!, `photographs of ${subject}`);
      }
    });
  }
});

function assertNear(
  found: Partial<Record<Metric, number>>,
  expected: Partial<Record<Metric, number>>,
  what: string,
): void {
  assert.deepEqual(Object.keys(found).sort(), Object.keys(expected).sort(), what);
  for (const [metric, value] of Object.entries(expected)) {
    const actual = found[metric as Metric]!;
    assert.ok(Math.abs(actual - value) < 2e-6, `${what}, ${metric}: ${actual}, expected ${value}`);
  }
}

test('tables and page tell the same numbers; names with odd characters stay text', async (t) => {
  const options = goldenOptions(await goldenFolder(t));
  const result = await evaluate({
    ...options,
    methods: [...options.methods, { name: '<b>B</b>', pictures: join(options.references, '..', 'pictures') }],
  });
  const [first] = result.comparison.methods;
  const dino = first!.estimates.dino!.mean.toFixed(3);
  const table = await readFile(result.table, 'utf8');
  assert.match(table, /\| Method \| DINO \| CLIP-I \| CLIP-T \| Diversity \| Rewarded for \|/);
  assert.ok(table.includes(`| A \\| "tool" | ${dino} (`), table);
  assert.match(table, /\| <b>B<\/b> \| \+0\.000 \(\+0\.000 to \+0\.000\) \|/);
  assert.match(table, /without the rare token/);
  assert.match(table, /shorter side to 14 pixels \(bicubic/);
  assert.match(await readFile(result.csv, 'utf8'), /^"A \| ""tool""",dino,0\.98/m);
  assert.equal((await readFile(result.subjectsCsv, 'utf8')).trimEnd().split('\n').length, 1 + 2 * 2);

  const page = await readFile(result.page, 'utf8');
  assert.ok(
    page.includes(`${dino}<small>`) && page.includes('&lt;b&gt;B&lt;/b&gt;') && !page.includes('<b>B</b>'),
  );
  assert.doesNotMatch(page, /https?:|\/\//);
  const shown = [...page.matchAll(/(?:src|href)="([^"]+)"/g)].map(([, link]) => decodeURIComponent(link!));
  assert.equal(shown.length, 2 * 3 + 2 * 2 * (2 * 3 * 2));
  for (const link of shown) await stat(join(options.output, link));
});

test('only what changed is looked at again', async (t) => {
  const options = goldenOptions(await goldenFolder(t));
  const first = await evaluate(options);
  const seen: TrainingEvent[] = [];
  const again = await evaluate({ ...options, onEvent: (event) => seen.push(event) });
  assert.deepEqual(again.methods, first.methods);
  const embeddings = join(options.output, 'embeddings');
  const files = (await readdir(embeddings, { recursive: true })).filter((f) => f.endsWith('.safetensors'));
  assert.equal(files.length, 2 * (2 + 2));
  const times = async () => Promise.all(files.map(async (f) => (await stat(join(embeddings, f))).mtimeMs));
  const before = await times();
  await cp(
    join(options.references, 'rex', '0.png'),
    join(options.references, '..', 'pictures', 'rex', '02', '1.png'),
  );
  await truncate(join(embeddings, files.find((f) => f.includes('mug'))!), 20);
  const changed = await evaluate(options);
  const [subjectsBefore, subjectsAfter] = [first, changed].map(({ methods }) => methods[0]!.subjects);
  assert.deepEqual(subjectsAfter![0], subjectsBefore![0]);
  assert.notEqual(subjectsAfter![1]!.dino, subjectsBefore![1]!.dino);
  assert.equal((await times()).filter((time, i) => time !== before[i]).length, 2 + 1);
  const fresh = await evaluate({ ...options, output: `${options.output}-fresh` });
  assert.deepEqual(changed.methods, fresh.methods);
});

test('bad input is told before any work, with the way to mend it', async (t) => {
  const folder = await goldenFolder(t);
  const options = goldenOptions(folder);
  const pictures = join(folder, 'pictures');
  const refused = (
    change: Partial<EvaluateOptions>,
    type: new (message: string) => Error,
    pattern: RegExp,
  ): Promise<void> =>
    assert.rejects(evaluate({ ...options, ...change }), (error) => {
      assert.ok(error instanceof type, String(error));
      assert.match(error.message, pattern);
      return true;
    });
  const { dino: _d, clip: _c, ...unjudged } = options;
  await assert.rejects(evaluate(unjudged), /There is no judge\. Give --dino/);
  await refused({ dino: encoder('clip-tiny') }, ModelError, /this is a CLIP; .*--clip/);
  await refused({ clip: encoder('vit-tiny') }, ModelError, /knows no text/);
  await refused({ dino: pictures }, ModelError, /no config.json/);
  await refused({ methods: [] }, UsageError, /nothing to evaluate/);
  await refused({ methods: [...options.methods, ...options.methods] }, UsageError, /cannot be told apart/);
  await refused({ only: ['rex', 'dora'] }, InputError, /no photographs of dora; there are those of mug, rex/);
  await refused({ references: join(folder, 'nowhere') }, InputError, /nowhere: expected a folder/);
  await refused({ subjects: {} }, InputError, /what kind of thing.*--subjects/);
  await refused(
    { subjects: golden.subjects && { rex: { class: 'dog' }, mug: { class: 'cup' } } },
    InputError,
    /22 of 25 prompts have no pictures: 04-/,
  );
  await refused(
    { protocol: 'customconcept101', subjects: { rex: { class: 'dog' }, mug: { class: 'cup' } } },
    InputError,
    /prompts of CustomConcept101 come with the benchmark/,
  );
  await refused({ baseline: 'C' }, UsageError, /--baseline C: expected one of the methods, A/);
  await refused({ textWithToken: true }, UsageError, /which token/);

  await mkdir(join(pictures, 'rex', '04-a-dog-on-the-moon'));
  await refused({}, InputError, /04-a-dog-on-the-moon: this folder is that of no prompt.*01 to 03/);
  await rm(join(pictures, 'rex', '04-a-dog-on-the-moon'), { recursive: true });
  await mkdir(join(pictures, 'rex', '01-a-dog-in-the-snow'));
  await refused({}, InputError, /the number in front is that of "a dog on the beach"/);
  await rm(join(pictures, 'rex', '01-a-dog-in-the-snow'), { recursive: true });

  await truncate(join(pictures, 'rex', '02', '0.png'), 700);
  await refused({}, InputError, /02\/0\.png.*damaged or incomplete/);
  await rm(join(pictures, 'mug'), { recursive: true });
  await refused({ only: ['rex', 'mug'] }, InputError, /has no mug: .*mug is not there\. .*--subject/);
  await rm(join(folder, 'references', 'rex'), { recursive: true });
  await mkdir(join(folder, 'references', 'rex'));
  await refused({ only: ['rex'] }, InputError, /rex: there are no photographs in/);

  const foreign = join(folder, 'mine');
  await mkdir(foreign);
  await writeFile(join(foreign, 'thesis.doc'), 'x');
  const whole = await goldenFolder(t);
  await assert.rejects(
    evaluate({ ...goldenOptions(whole), output: foreign }),
    (error) =>
      error instanceof OutputError && /thesis\.doc.*nothing of yours is overwritten/.test(error.message),
  );
  assert.deepEqual(await readdir(foreign), ['thesis.doc']);
});

test('what is known of subjects is read from JSON, paths beside it', async (t) => {
  const folder = await temporaryFolder(t);
  const path = join(folder, 'subjects.json');
  const read = async (value: unknown) => {
    await writeFile(path, typeof value === 'string' ? value : JSON.stringify(value));
    return readSubjects(path);
  };
  assert.deepEqual(await read({ a: 'dog', b: { class: 'hen', live: true, prompts: 'hen.txt' } }), {
    a: { class: 'dog' },
    b: { class: 'hen', live: true, prompts: join(folder, 'hen.txt') },
  });
  await assert.rejects(read('{'), /not JSON.*Expected \{"dog6": "dog"\}/);
  await assert.rejects(
    read({ a: { kind: 'dog' } }),
    /a\.kind is not known.*class, live, references, prompts/,
  );
  await assert.rejects(read({ a: { live: 'yes' } }), /a\.live is not known or not true or false/);
  await assert.rejects(read({ '../a': 'dog' }), /cannot be the name of a subject/);
  await assert.rejects(read({ a: 3 }), /a is 3; expected its class/);
});

test('runs: pictures are drawn once, kept when stopped, and drawn again where they are missing', async (t) => {
  const folder = await temporaryFolder(t);
  const photographs = await writePictures(join(folder, 'pack'));
  const run = join(folder, 'run');
  await personalise({ ...tinyRun(photographs, run), steps: 2, withPriorPreservation: false, engine });
  const options: EvaluateOptions = {
    references: photographs,
    methods: [{ name: 'DPG', runs: run }],
    subjects: { pack: { prompts: ['a {} in the snow', 'a red {}'] } },
    dino: encoder('vit-tiny'),
    clip: encoder('clip-tiny'),
    numImages: 2,
    steps: 2,
    output: join(folder, 'evaluation'),
    engine,
  };
  const stop = new AbortController();
  const stopping = evaluate({
    ...options,
    signal: stop.signal,
    onEvent: (event) => {
      if (event.kind === 'stage' && event.name === 'drawing pictures' && event.done === 2) stop.abort();
    },
  });
  await assert.rejects(stopping, (error) => error instanceof CancelledError && /goes on/.test(error.message));
  const place = join(options.output, 'pictures', 'dpg', 'pack');
  const drawn = async () =>
    (await readdir(place, { recursive: true })).filter((name) => name.endsWith('.png')).sort();
  assert.deepEqual(await drawn(), ['01-a-backpack-in-the-snow/0.png', '01-a-backpack-in-the-snow/1.png']);

  const result = await evaluate(options);
  const all = await drawn();
  assert.equal(all.length, 4);
  const bytes = await Promise.all(all.map((name) => readFile(join(place, name))));
  assert.equal(new Set(bytes.map((b) => b.toString('base64'))).size, 4);
  const { scores, rewards, warnings } = await readScores(result.scores);
  assert.deepEqual(Object.keys(scores.DPG!.pack!).sort(), ['clipI', 'clipT', 'dino', 'diversity', 'prompts']);
  assert.match(rewards.DPG!, /look-forward/);
  assert.ok(warnings.some((w) => /one subject/.test(w)));

  await rm(join(place, all[1]!));
  const again = await evaluate(options);
  assert.deepEqual(await Promise.all(all.map((name) => readFile(join(place, name)))), bytes);
  assert.deepEqual(again.methods, result.methods);

  // The pictures that were drawn are a method's pictures too.
  const given = await evaluate({
    ...options,
    methods: [{ name: 'DPG', pictures: join(options.output, 'pictures', 'dpg') }],
    subjects: { pack: { class: 'backpack', prompts: ['a {} in the snow', 'a red {}'] } },
    output: join(folder, 'given'),
  });
  assert.deepEqual(given.methods, result.methods);

  await assert.rejects(
    evaluate({ ...options, seed: 24 }),
    (error) =>
      error instanceof InputError && /seed \(there 23, now 24\).*Choose another --output/.test(error.message),
  );
  await truncate(join(place, all[0]!), 100);
  await assert.rejects(
    evaluate(options),
    (error) =>
      error instanceof InputError && /0\.png.*delete it, and the same command draws it/.test(error.message),
  );

  const config = join(run, 'config.json');
  const before = JSON.parse(await readFile(config, 'utf8')) as { settings: object };
  await writeFile(config, JSON.stringify({ ...before, settings: { ...before.settings, steps: 9 } }));
  await assert.rejects(
    evaluate(options),
    (error) =>
      error instanceof RunError &&
      /not finished \(step 2 of 9\).*--resume-from-checkpoint latest/.test(error.message),
  );

  const reward = [{ kind: 'image-similarity', encoder: encoder('vit-tiny'), name: 'dino', weight: 1 }];
  await writeFile(config, JSON.stringify({ ...before, settings: { ...before.settings, reward } }));
  await rm(join(place, all[0]!));
  const rewarded = await readScores((await evaluate(options)).scores);
  assert.ok(rewarded.warnings.some((w) => /rewarded by the very encoder that judges here \(--dino/.test(w)));
  assert.match(rewarded.rewards.DPG!, /^dino:.*vit-tiny$/);
});
