// Scores the small encoders by retrieval on subjects and captions that they were not trained on, and trains those that are missing.
// npm run bench:encoders -- [--folder models/encoders] [--work DIR] [--threads N]
import { existsSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { progressListener } from '../src/cli/progress.js';
import { channelsFirst } from '../src/data/channels-first.js';
import { describe } from '../src/data/world/example.js';
import { renderExamples } from '../src/data/world/render.js';
import { subjectKey } from '../src/data/world/subject.js';
import { renderViews, unseenSubjects, worldSubject } from '../src/data/world/views.js';
import type { Engine } from '../src/engine/engine.js';
import { createNodeEngine } from '../src/engine/node.js';
import { PortrayalError } from '../src/errors.js';
import { top1Accuracy } from '../src/evaluation/retrieval.js';
import { Graph } from '../src/onnx/graph.js';
import { type ImageEncoder, openClip, openImageEncoder } from '../src/pretrained/image-encoder.js';
import { concatRows } from '../src/tensor/rows.js';
import { float32, type Tensor } from '../src/tensor/tensor.js';
import { clipDefaults, trainClip } from '../src/training/clip-training.js';
import { dinoDefaults, trainDino } from '../src/training/dino-training.js';
import { ENCODER_RESOLUTION } from '../src/training/encoder-files.js';

/** Of each kind one is the reward and the other the judge: they differ in their seed, and so in their pictures, their start and their order. */
const ENCODERS = [
  { name: 'dino-reward', kind: 'dino', seed: 11 },
  { name: 'dino-judge', kind: 'dino', seed: 12 },
  { name: 'clip-reward', kind: 'clip', seed: 13 },
  { name: 'clip-judge', kind: 'clip', seed: 14 },
] as const;
/** Worlds that no encoder was trained on. */
const UNSEEN_SEED = 2001;
const SUBJECTS = 200;
const PROMPTS = 100;
const BARS = { dino: 0.85, clip: 0.8 };
const BATCH = 50;

const root = fileURLToPath(new URL('../../', import.meta.url));
const { values: options } = parseArgs({
  options: {
    folder: { type: 'string', default: join(root, 'models', 'encoders') },
    work: { type: 'string', default: join(tmpdir(), 'portrayal-encoders') },
    threads: { type: 'string', default: String(availableParallelism()) },
  },
});

/** The embeddings [N, D] of pictures, RGB bytes each. N is a multiple of the batch. */
async function embedAll(
  engine: Engine,
  encoder: ImageEncoder,
  pictures: readonly Uint8Array[],
): Promise<Tensor<'float32'>> {
  const graph = new Graph('embedding');
  const shape = [BATCH, 3, ENCODER_RESOLUTION, ENCODER_RESOLUTION];
  graph.output('embedding', encoder.embed(graph.input('pixels', 'float32', shape)));
  const program = await engine.compile(graph);
  const parts: Tensor<'float32'>[] = [];
  for (let start = 0; start < pictures.length; start += BATCH) {
    const pixels = new Float32Array(BATCH * 3 * ENCODER_RESOLUTION ** 2);
    const size = pixels.length / BATCH;
    pictures.slice(start, start + BATCH).forEach((picture, i) => {
      channelsFirst(picture, pixels.subarray(i * size, (i + 1) * size));
    });
    const { embedding } = await program.run({ pixels: float32(shape, pixels) });
    parts.push(embedding as Tensor<'float32'>);
  }
  await program.release();
  return concatRows(parts);
}

/** Finds each of 200 unseen subjects by another picture of it. */
async function subjectRetrieval(engine: Engine, path: string): Promise<number> {
  const seen = new Set<string>();
  for (const { seed, kind } of ENCODERS) {
    if (kind !== 'dino') continue;
    for (let i = 0; i < dinoDefaults.subjects; i++) seen.add(subjectKey(worldSubject(seed, i)));
  }
  const subjects = unseenSubjects(UNSEEN_SEED, SUBJECTS, seen);
  const pictures = await renderViews(subjects, 2, ENCODER_RESOLUTION, UNSEEN_SEED);
  const encoder = await openImageEncoder(path);
  const queries = await embedAll(
    engine,
    encoder,
    pictures.filter((_, i) => i % 2 === 0),
  );
  const gallery = await embedAll(
    engine,
    encoder,
    pictures.filter((_, i) => i % 2 === 1),
  );
  return top1Accuracy(queries, gallery);
}

/** Finds each of 100 pictures by its prompt, and each prompt by its picture. */
async function promptRetrieval(
  engine: Engine,
  path: string,
): Promise<{ textToImage: number; imageToText: number }> {
  const everything = { colour: true, secondColour: true, pattern: true, motif: true };
  const drawn = await renderExamples(UNSEEN_SEED, 0, 2 * PROMPTS, ENCODER_RESOLUTION, { rareTokens: 0 });
  const byPrompt = new Map(drawn.map((e) => [describe(e.example, everything), e.pixels]));
  const prompts = [...byPrompt.keys()].slice(0, PROMPTS);
  const encoder = await openClip(path);
  const images = await embedAll(
    engine,
    encoder,
    prompts.map((prompt) => byPrompt.get(prompt)!),
  );
  const texts: Tensor<'float32'>[] = [];
  for (const prompt of prompts) texts.push(await encoder.embedText(engine, prompt));
  const embedded = concatRows(texts);
  return { textToImage: top1Accuracy(embedded, images), imageToText: top1Accuracy(images, embedded) };
}

const percent = (share: number): string => `${(100 * share).toFixed(1)} %`;

async function main(): Promise<void> {
  const engine = createNodeEngine({ threads: Number(options.threads) });
  const onEvent = progressListener(process.stderr);
  try {
    for (const { name, kind, seed } of ENCODERS) {
      const path = join(options.folder, name);
      if (!existsSync(join(path, 'model.safetensors'))) {
        const common = { output: path, work: join(options.work, name), engine, seed, onEvent };
        if (kind === 'dino') await trainDino({ ...dinoDefaults, ...common });
        else await trainClip({ ...clipDefaults, ...common });
      }
      if (kind === 'dino') {
        const share = await subjectRetrieval(engine, path);
        const verdict = share >= BARS.dino ? 'reached' : 'MISSED';
        console.log(
          `${name}: ${percent(share)} of ${SUBJECTS} unseen subjects found; bar ${percent(BARS.dino)}: ${verdict}`,
        );
      } else {
        const { textToImage, imageToText } = await promptRetrieval(engine, path);
        const verdict = Math.min(textToImage, imageToText) >= BARS.clip ? 'reached' : 'MISSED';
        console.log(
          `${name}: of ${PROMPTS} prompts ${percent(textToImage)} find their picture, ${percent(imageToText)} are found by it; bar ${percent(BARS.clip)}: ${verdict}`,
        );
      }
    }
  } finally {
    await engine.close();
  }
}

main().catch((error: unknown) => {
  if (!(error instanceof PortrayalError)) throw error;
  console.error(error.message);
  process.exitCode = 1;
});
