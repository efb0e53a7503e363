import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import type { RgbImage } from '../../src/data/image-grid.js';
import { createNodeEngine } from '../../src/engine/node.js';
import { openClipJudge, openDinoJudge } from '../../src/evaluation/judge.js';
import { RunJudges } from '../../src/evaluation/run-judges.js';
import { watchCharts } from '../../src/evaluation/watch-charts.js';
import { goldenJson, goldenPath, goldenTensors } from '../goldens.js';

/** Scores of the golden pictures, by scripts/goldens/evaluation.py. */
type Scored = Readonly<Record<'dino' | 'clipI' | 'clipT' | 'diversity', number>>;
const golden = goldenJson<{
  prompts: string[];
  subjects: Record<string, string>;
  cases: { dino: string | null; clip: string | null; scores: Record<string, Scored> }[];
}>('evaluation/scores.json');
const pictures = goldenTensors('evaluation/pictures.safetensors');
const folder = (name: string): string => fileURLToPath(goldenPath(`encoders/${name}`));

function picture(name: string): RgbImage {
  const { shape, data } = pictures.get(name)!;
  return { width: shape[1]!, height: shape[0]!, pixels: data as Uint8Array };
}

test("the judges of a run give PyTorch's scores: likeness, text, diversity, and the geometric mean of the first two", async (t) => {
  const engine = createNodeEngine({ threads: 1 });
  t.after(() => engine.close());
  const [both] = golden.cases;
  const judges = [
    { name: 'dino', judge: await openDinoJudge(folder(both!.dino!)) },
    { name: 'clip', judge: await openClipJudge(folder(both!.clip!)) },
  ];
  for (const [subject, noun] of Object.entries(golden.subjects)) {
    const texts = golden.prompts.map((prompt) => ({ text: prompt.replace('{}', noun), ofSubject: true }));
    const photographs = [0, 1, 2].map((i) => picture(`references/${subject}/${i}`));
    const rows = golden.prompts.map((_, p) =>
      [0, 1].map((i) => picture(`pictures/${subject}/${String(p + 1).padStart(2, '0')}/${i}`)),
    );
    const found = await new RunJudges(judges, engine, texts, photographs).score(rows);
    const { dino, clipI, clipT, diversity } = both!.scores[subject]!;
    const expected: Record<string, number> = {
      'judge.dino': dino,
      'judge.dino-diversity': diversity,
      'judge.clip': clipI,
      'judge.clip-text': clipT,
    };
    for (const [name, value] of Object.entries(expected)) {
      const error = Math.abs(found[name]! - value);
      assert.ok(error <= 1e-4 * Math.max(1, Math.abs(value)), `${name}: ${found[name]}, PyTorch ${value}`);
    }
    const three = [dino, clipI, clipT].map((v) => Math.max(v, 1e-3));
    const score = (three[0]! * three[1]! * three[2]!) ** (1 / 3);
    assert.ok(Math.abs(found['judge.score']! - score) <= 1e-3 * score, 'the score of all');

    // Pictures that need not show the subject do not count for its likeness, and do for the text.
    const some = texts.map((text, p) => ({ ...text, ofSubject: p === 0 }));
    const first = await new RunJudges(judges, engine, some, photographs).score(rows);
    const alone = await new RunJudges(judges, engine, texts.slice(0, 1), photographs).score(rows.slice(0, 1));
    assert.ok(Math.abs(first['judge.dino']! - alone['judge.dino']!) < 1e-9);
    assert.equal(first['judge.clip-text'], found['judge.clip-text']);
  }
});

test('pictures that are all the same have no diversity, and single ones none that could be told', async (t) => {
  const engine = createNodeEngine({ threads: 1 });
  t.after(() => engine.close());
  const judges = [{ name: 'dino', judge: await openDinoJudge(folder('vit-tiny')) }];
  const one = picture('references/rex/0');
  const panel = new RunJudges(judges, engine, [{ text: 'a dog', ofSubject: true }], [one]);
  const same = await panel.score([[one, one, one]]);
  assert.ok(Math.abs(same['judge.dino']! - 1) < 1e-6, 'a photograph is like itself');
  assert.ok(Math.abs(same['judge.dino-diversity']!) < 1e-6);
  assert.deepEqual(Object.keys(await panel.score([[one]])), ['judge.dino', 'judge.score']);
});

test('the report has a curve for all that was measured at validations, and no other', () => {
  const records = [
    { step: 0, 'judge.dino': 0.4, 'judge.clip-2': 0.5, 'judge.clip-2-text': 0.3, 'judge.score': 0.4 },
    { step: 1, loss: 3, 'reward.dino': -0.1 },
    { step: 50, 'judge.dino': 0.5, 'judge.score': 0.5, updateNorm: 0.02, klToBase: 0.1 },
  ];
  const charts = watchCharts(records);
  assert.deepEqual(
    charts.map(({ title, series }) => [title, series[0]!.points]),
    [
      [
        'Judge dino: likeness',
        [
          [0, 0.4],
          [50, 0.5],
        ],
      ],
      ['Judge clip-2: likeness', [[0, 0.5]]],
      ['Judge clip-2: text', [[0, 0.3]]],
      [
        'Judges: score',
        [
          [0, 0.4],
          [50, 0.5],
        ],
      ],
      ['Size of the update', [[50, 0.02]]],
      ['Divergence from the base', [[50, 0.1]]],
    ],
  );
  assert.deepEqual(watchCharts([{ step: 1, loss: 3 }]), []);
});
