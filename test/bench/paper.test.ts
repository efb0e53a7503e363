import assert from 'node:assert/strict';
import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { promptsOf, subjectNamed, Workplace } from '../../bench/paper/job.js';
import { Marking } from '../../bench/paper/marks.js';
import {
  BASELINE,
  jobOf,
  METHODS,
  methodNamed,
  OURS,
  REPORT_SUBJECTS,
  TUNING_SUBJECTS,
} from '../../bench/paper/plan.js';
import { best, columns, compare, type Row, spreadOf, worth } from '../../bench/paper/results.js';
import { composeGrid, encodePng } from '../../src/data/image-grid.js';
import type { Depiction } from '../../src/data/world/example.js';
import { DEMO_SUBJECT, isHeldOut } from '../../src/data/world/held-out.js';
import { drawSvg } from '../../src/data/world/picture.js';
import { renderSvg } from '../../src/data/world/render.js';
import { SCENES } from '../../src/data/world/scenes.js';
import type { Engine } from '../../src/engine/engine.js';
import { createNodeEngine } from '../../src/engine/node.js';
import { writeFileAtomic } from '../../src/formats/atomic-file.js';
import { Random } from '../../src/tensor/random.js';
import { completeSettings } from '../../src/workflows/personalisation-settings.js';

let root: string;
let engine: Engine;
before(async () => {
  root = await mkdtemp(join(tmpdir(), 'portrayal-paper-'));
  engine = createNodeEngine({ threads: 1 });
});
after(async () => {
  await engine.close();
  await rm(root, { recursive: true, force: true });
});

test('no subject of the table was seen in pretraining, shown in the demo, or used to choose settings', () => {
  assert.equal(REPORT_SUBJECTS.length, 12);
  assert.equal(new Set(REPORT_SUBJECTS.map(({ noun }) => noun)).size, 9);
  for (const subject of [...REPORT_SUBJECTS, ...TUNING_SUBJECTS]) {
    assert.ok(isHeldOut(subject), subject.name);
    assert.notEqual(subject.name, DEMO_SUBJECT.name);
  }
  assert.ok(REPORT_SUBJECTS.every(({ use }) => use === 'report'));
  assert.ok(TUNING_SUBJECTS.every(({ use }) => use === 'tuning'));
});

test('every method gets the same effort: as many settings to choose from, as many steps, valid ones', () => {
  const [first] = METHODS;
  for (const method of METHODS) {
    assert.equal(method.choices.length, first!.choices.length, method.name);
    for (const choice of method.choices) {
      const { settings } = jobOf(method, choice, TUNING_SUBJECTS[0]!, 1, 1);
      assert.doesNotThrow(() => completeSettings(settings), method.name);
      assert.equal(settings.steps, 200);
    }
  }
});

test('prompts name the subject by what was trained', () => {
  const prompts = (name: string) =>
    promptsOf(jobOf(methodNamed(name), methodNamed(name).choices[0]!, TUNING_SUBJECTS[0]!, 1, 1));
  assert.equal(prompts(BASELINE)[0], 'a sks backpack in the jungle');
  assert.equal(prompts('Custom Diffusion')[20], 'a red <new1> backpack');
  assert.equal(prompts('Textual inversion')[1], 'a <toy> in the snow');
});

test('a method is compared with its own baseline, subject by subject', () => {
  const row = (value: number): Row => Object.fromEntries(columns.map((c) => [c, value])) as Row;
  const subjects = REPORT_SUBJECTS.slice(0, 6);
  const [base, ours] = [methodNamed(BASELINE), methodNamed(OURS)];
  const results = compare(
    new Map([
      [base, subjects.map((_, i) => [row(i), row(i + 0.2)])],
      [ours, subjects.map((_, i) => [row(i + 0.5), row(i + 0.7)])],
    ]),
    subjects,
  );
  assert.equal(results[0]!.differences, undefined);
  assert.ok(Math.abs(results[0]!.estimates.dino.mean - 2.6) < 1e-9, 'mean over seeds, then subjects');
  const { mean, low, high, p } = results[1]!.differences!.dino;
  assert.ok(
    [mean, low!, high!].every((d) => Math.abs(d - 0.5) < 1e-9),
    'what subjects differ by cancels out',
  );
  assert.ok(p! < 0.01);
});

test('what is chosen is worth most, each score counted in its own spread, among what loses nothing to the baseline', () => {
  const row = (dino: number, clipI: number, clipT: number): Row => ({
    ...(Object.fromEntries(columns.map((c) => [c, 0])) as Row),
    dino,
    clipI,
    clipT,
  });
  // By hand: deviations of (0.9, 0.5), (0.3, 0.1) and (0.70, 0.74) are 0.2, 0.1 and 0.02.
  const pair = [row(0.9, 0.3, 0.7), row(0.5, 0.1, 0.74)];
  const spread = spreadOf(pair);
  const near = (found: number, wanted: number) => assert.ok(Math.abs(found - wanted) < 1e-9, `${found}`);
  near(spread.dino, 0.2);
  near(spread.clipI, 0.1);
  near(spread.clipT, 0.02);
  near(worth(pair[0]!, spread), 4.5 + 3 + 35);
  const choices = [...pair, row(0.9, 0.25, 0.735), row(0.6, 0.2, 0.73)].map((r) => ({
    settings: {},
    row: r,
  }));
  assert.equal(best(choices, spread), choices[2]);
  const baseline = (...scores: [number, number, number]) => ({ settings: {}, row: row(...scores) });
  assert.equal(best(choices, spread, baseline(0.5, 0.1, 0.74)), choices[1], 'the only one that keeps CLIP-T');
  assert.equal(best(choices, spread, baseline(0.55, 0.2, 0.72)), choices[2], 'of two that lose nothing');
  assert.equal(best(choices, spread, baseline(1, 0.1, 0.7)), choices[2], 'all lose something');
});

test('drawings of the subject itself are found right, those of another wrong', async () => {
  const place = new Workplace(root, { drawing: 'this', marking: 'that' });
  const marking = await Marking.open(place, engine);
  const method = methodNamed(BASELINE);
  const job = jobOf(method, method.choices[0]!, subjectNamed('red-checked-star-sneaker'), 1, 1);
  const draw = async (name: string) => {
    const pictures = [];
    for (const [p] of promptsOf(job).entries()) {
      const { name: scene } = SCENES[p < SCENES.length - 1 ? p + 1 : 0]!;
      const depiction: Depiction = { subject: subjectNamed(name), scene };
      const svg = drawSvg(depiction, 64, new Random(5, 'drawing', p));
      pictures.push({ width: 64, height: 64, pixels: await renderSvg(svg, 64) });
    }
    await mkdir(place.jobFolder(job), { recursive: true });
    await writeFileAtomic(place.pictures(job), await encodePng(composeGrid(pictures, { columns: 1 })));
    return marking.mark(job);
  };
  const [own, other] = [await draw('red-checked-star-sneaker'), await draw('black-zigzag-heart-sneaker')];
  assert.ok(
    own.truth.noun > 0.9 && own.truth.colour > 0.9 && own.truth.pattern > 0.7,
    JSON.stringify(own.truth),
  );
  assert.ok(own.truth.scene > 0.9, JSON.stringify(own.truth));
  assert.ok(
    other.truth.noun > 0.9 && other.truth.colour < 0.1 && other.truth.pattern < 0.3,
    JSON.stringify(other.truth),
  );
  assert.ok(own.scores.dino! > other.scores.dino! + 0.1, 'the judge sees another subject');
  assert.ok(own.scores.clipI! > other.scores.clipI!, 'CLIP sees another subject');
  const ceiling = await marking.photographs(job.subject);
  assert.ok(ceiling.dino! > other.scores.dino!);
});
