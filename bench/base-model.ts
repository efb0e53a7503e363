// Judges a base model: draws pictures from prompts whose noun, place and colour are known and lets the world's classifier look for them.
// npm run bench:base -- [--model DIR] [--pictures 500] [--sheet FILE.png]; the classifier is trained first where models/world-classifier is missing.
import { existsSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { composeGrid, encodePng } from '../src/data/image-grid.js';
import { renderExamples } from '../src/data/world/render.js';
import { NOUNS } from '../src/data/world/subject.js';
import type { Engine } from '../src/engine/engine.js';
import { createNodeEngine } from '../src/engine/node.js';
import { PortrayalError, UsageError } from '../src/errors.js';
import { fidelityRequests } from '../src/evaluation/prompt-fidelity.js';
import {
  ANSWERS,
  QUESTIONS,
  type Question,
  shippedWorldClassifier,
  type Tally,
  tally,
  trainWorldClassifier,
  WorldClassifier,
  worldClassifierDefaults,
} from '../src/evaluation/world-classifier.js';
import { writeFileAtomic } from '../src/formats/atomic-file.js';
import { StableDiffusion } from '../src/pretrained/stable-diffusion.js';
import { TextToImage } from '../src/pretrained/text-to-image.js';

/** A world that no model was trained on. */
const HELD_OUT_SEED = 1001;
type Bars = Readonly<Partial<Record<Question, number>>>;
/** What the classifier has to reach on it before its word counts. */
const CLASSIFIER_BARS: Bars = { noun: 0.97, scene: 0.97, colour: 0.97, pattern: 0.9 };
/** The prompts ask for no pattern. */
const MODEL_BARS: Bars = { noun: 0.85, scene: 0.85, colour: 0.8 };
const SHEET_COLUMNS = 25;

const root = fileURLToPath(new URL('../../', import.meta.url));

const { values: options } = parseArgs({
  options: {
    model: { type: 'string', default: join(root, 'models', 'base') },
    classifier: { type: 'string', default: shippedWorldClassifier() },
    'held-out': { type: 'string', default: '1500' },
    pictures: { type: 'string', default: '500' },
    steps: { type: 'string', default: '30' },
    'guidance-scale': { type: 'string', default: '5' },
    'batch-size': { type: 'string', default: '10' },
    seed: { type: 'string', default: '1' },
    threads: { type: 'string', default: String(availableParallelism()) },
    sheet: { type: 'string' },
  },
});

function number(name: Exclude<keyof typeof options, 'sheet'>, least: number): number {
  const value = Number(options[name]);
  if (!Number.isFinite(value) || value < least)
    throw new UsageError(`--${name} ${options[name]}: expected a number of at least ${least}.`);
  return value;
}

function readNumbers() {
  return {
    heldOut: number('held-out', 0),
    pictures: number('pictures', 0),
    steps: number('steps', 1),
    guidanceScale: number('guidance-scale', 0),
    batchSize: number('batch-size', 1),
    seed: number('seed', 0),
    threads: number('threads', 1),
  };
}
type Numbers = ReturnType<typeof readNumbers>;

function percent({ right, total }: Pick<Tally, 'right' | 'total'>): string {
  return `${((100 * right) / total).toFixed(1)} % (${right} of ${total})`;
}

/** The answers that were found least often, with what was seen in their stead. */
function worst(question: Question, { confusion }: Tally, most: number): string[] {
  const names = ANSWERS[question];
  return confusion
    .map((row, truth) => {
      const total = row.reduce((sum, n) => sum + n, 0);
      const mistakes = row
        .map((n, answer) => ({ n, answer }))
        .filter(({ n, answer }) => n > 0 && answer !== truth)
        .sort((a, b) => b.n - a.n)
        .slice(0, 4);
      return { truth, total, right: row[truth]!, mistakes };
    })
    .filter(({ mistakes }) => mistakes.length > 0)
    .sort((a, b) => a.right / a.total - b.right / b.total)
    .slice(0, most)
    .map(({ truth, total, right, mistakes }) => {
      const seen = mistakes.map(({ n, answer }) => `${names[answer]} ${n}`).join(', ');
      return `    ${names[truth]}: ${right} of ${total}; taken for ${seen}`;
    });
}

/** Prints how the questions that have a bar were answered. */
function report(tallies: Record<Question, Tally>, bars: Bars, most: number) {
  for (const question of QUESTIONS) {
    const bar = bars[question];
    if (bar === undefined) continue;
    const result = tallies[question];
    const verdict = result.right / result.total >= bar ? 'reached' : 'MISSED';
    console.log(`  ${question.padEnd(7)} right: ${percent(result)}; bar ${100 * bar} %: ${verdict}`);
    for (const line of worst(question, result, most)) console.log(line);
  }
}

async function trainClassifier(engine: Engine): Promise<void> {
  console.log(`training the classifier: ${options.classifier}`);
  await trainWorldClassifier({
    ...worldClassifierDefaults,
    output: options.classifier,
    work: join(root, 'runs', 'world-classifier'),
    engine,
    onEvent: (event) => {
      if (event.kind !== 'progress' || event.step % 250 !== 0) return;
      const { step, steps, loss, secondsLeft } = event;
      console.log(`  step ${step} of ${steps}, loss ${loss.toFixed(3)}, ${Math.round(secondsLeft)} s left`);
    },
  });
}

async function judgeClassifier(classifier: WorldClassifier, pictures: number): Promise<void> {
  const drawings = await renderExamples(HELD_OUT_SEED, 0, pictures, classifier.resolution);
  const found = await classifier.classify(drawings.map((d) => d.pixels));
  console.log(`classifier on ${drawings.length} held-out drawings:`);
  const truth = drawings.map((d) => d.labels);
  report(tally(truth, found), CLASSIFIER_BARS, 3);
  const byNoun = NOUNS.map((noun, label) => {
    const { right, total } = tally(
      truth.filter((labels) => labels.noun === label),
      found.filter((_, i) => truth[i]!.noun === label),
    ).pattern;
    return `${noun} ${right} of ${total}`;
  });
  console.log(`    pattern, by noun: ${byNoun.join(', ')}`);
}

async function judgeModel(
  model: StableDiffusion,
  engine: Engine,
  classifier: WorldClassifier,
  numbers: Numbers,
): Promise<void> {
  const drawer = await TextToImage.create(model, engine, {
    resolution: classifier.resolution,
    batchSize: numbers.batchSize,
  });
  const requests = fidelityRequests(numbers.pictures, numbers.seed);
  const { steps, guidanceScale } = numbers;
  const started = performance.now();
  const images = await drawer.draw(requests, { steps, guidanceScale });
  const seconds = Math.round((performance.now() - started) / 1000);
  await drawer.release();
  const found = await classifier.classify(images.map((image) => image.pixels));
  console.log(
    `${options.model}: ${images.length} pictures, ${steps} steps, guidance ${guidanceScale}, drawn in ${seconds} s:`,
  );
  const truth = requests.map((r) => r.truth);
  report(tally(truth, found), MODEL_BARS, 5);
  const asked = QUESTIONS.filter((question) => MODEL_BARS[question] !== undefined);
  const right = truth.filter((labels, i) => asked.every((q) => labels[q] === found[i]![q])).length;
  console.log(`  all three right: ${percent({ right, total: truth.length })}`);
  if (options.sheet === undefined) return;
  const columns = Math.min(SHEET_COLUMNS, images.length);
  await writeFileAtomic(options.sheet, await encodePng(composeGrid(images, { columns, gap: 2 })));
  console.log(`  contact sheet, in the order of the prompts: ${options.sheet}`);
}

async function main(): Promise<void> {
  const numbers = readNumbers();
  const model = numbers.pictures > 0 ? await StableDiffusion.open(options.model) : undefined;
  const engine = createNodeEngine({ threads: numbers.threads });
  if (!existsSync(join(options.classifier, 'model.safetensors'))) await trainClassifier(engine);
  const classifier = await WorldClassifier.open(engine, options.classifier);
  if (numbers.heldOut > 0) await judgeClassifier(classifier, numbers.heldOut);
  if (model) await judgeModel(model, engine, classifier, numbers);
  await classifier.release();
  await engine.close();
}

try {
  await main();
} catch (error) {
  if (!(error instanceof PortrayalError)) throw error;
  console.error(error.message);
  process.exitCode = error.exitCode;
}
