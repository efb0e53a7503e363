// What the small encoders are measured by: retrieval on subjects and captions that they were not trained on.
import { channelsFirst } from '../src/data/channels-first.js';
import { describe } from '../src/data/world/example.js';
import { renderExamples } from '../src/data/world/render.js';
import { subjectKey } from '../src/data/world/subject.js';
import { renderViews, unseenSubjects, worldSubject } from '../src/data/world/views.js';
import type { Engine } from '../src/engine/engine.js';
import { top1Accuracy } from '../src/evaluation/retrieval.js';
import { Graph } from '../src/onnx/graph.js';
import { type ImageEncoder, openClip, openImageEncoder } from '../src/pretrained/image-encoder.js';
import { concatRows } from '../src/tensor/rows.js';
import { float32, type Tensor } from '../src/tensor/tensor.js';
import { dinoDefaults } from '../src/training/dino-training.js';
import { ENCODER_RESOLUTION } from '../src/training/encoder-files.js';

/** Of each kind one is the reward and the other the judge: they differ in their seed, and so in their pictures, their start and their order. */
export const ENCODERS = [
  { name: 'dino-reward', kind: 'dino', seed: 11 },
  { name: 'dino-judge', kind: 'dino', seed: 12 },
  { name: 'clip-reward', kind: 'clip', seed: 13 },
  { name: 'clip-judge', kind: 'clip', seed: 14 },
] as const;

/** A world that no encoder was trained on. */
const UNSEEN_SEED = 2001;

/** The embeddings [N, D] of pictures, RGB bytes each, `batch` at a time; N is a multiple of it. */
async function embedAll(
  engine: Engine,
  encoder: ImageEncoder,
  pictures: readonly Uint8Array[],
  batch: number,
): Promise<Tensor<'float32'>> {
  const graph = new Graph('embedding');
  const shape = [batch, 3, ENCODER_RESOLUTION, ENCODER_RESOLUTION];
  graph.output('embedding', encoder.embed(graph.input('pixels', 'float32', shape)));
  const program = await engine.compile(graph);
  const parts: Tensor<'float32'>[] = [];
  for (let start = 0; start < pictures.length; start += batch) {
    const pixels = new Float32Array(batch * 3 * ENCODER_RESOLUTION ** 2);
    const size = pixels.length / batch;
    pictures.slice(start, start + batch).forEach((picture, i) => {
      channelsFirst(picture, pixels.subarray(i * size, (i + 1) * size));
    });
    const { embedding } = await program.run({ pixels: float32(shape, pixels) });
    parts.push(embedding as Tensor<'float32'>);
  }
  await program.release();
  return concatRows(parts);
}

/** The share of `count` unseen subjects that are found among all of them by another picture of theirs. `count` is a multiple of 20. */
export async function subjectRetrieval(engine: Engine, path: string, count: number): Promise<number> {
  const seen = new Set<string>();
  for (const { seed, kind } of ENCODERS) {
    if (kind !== 'dino') continue;
    for (let i = 0; i < dinoDefaults.subjects; i++) seen.add(subjectKey(worldSubject(seed, i)));
  }
  const subjects = unseenSubjects(UNSEEN_SEED, count, seen);
  const pictures = await renderViews(subjects, 2, ENCODER_RESOLUTION, UNSEEN_SEED);
  const encoder = await openImageEncoder(path);
  const view = (v: number) =>
    embedAll(
      engine,
      encoder,
      pictures.filter((_, i) => i % 2 === v),
      20,
    );
  return top1Accuracy(await view(0), await view(1));
}

/** The shares of `count` prompts that find their picture among all, and of pictures that find their prompt. `count` is a multiple of 20. */
export async function promptRetrieval(
  engine: Engine,
  path: string,
  count: number,
): Promise<{ textToImage: number; imageToText: number }> {
  const everything = { colour: true, secondColour: true, pattern: true, motif: true };
  const drawn = await renderExamples(UNSEEN_SEED, 0, 2 * count, ENCODER_RESOLUTION, { rareTokens: 0 });
  const byPrompt = new Map(drawn.map((e) => [describe(e.example, everything), e.pixels]));
  const prompts = [...byPrompt.keys()].slice(0, count);
  const encoder = await openClip(path);
  const images = await embedAll(
    engine,
    encoder,
    prompts.map((prompt) => byPrompt.get(prompt)!),
    20,
  );
  const texts = concatRows(await encoder.embedTexts(engine, prompts));
  return { textToImage: top1Accuracy(texts, images), imageToText: top1Accuracy(images, texts) };
}
