import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { RgbImage } from '../../src/data/image-grid.js';
import { readReferenceImages } from '../../src/data/reference-images.js';
import { ACCESSORIES, type Accessory } from '../../src/data/world/accessories.js';
import { dreamBenchPrompts } from '../../src/data/world/prompts.js';
import { SCENES } from '../../src/data/world/scenes.js';
import { COLOUR_NAMES, isLive, NOUNS, PATTERNS } from '../../src/data/world/subject.js';
import type { Engine } from '../../src/engine/engine.js';
import {
  type Judge,
  openClipJudge,
  openDinoJudge,
  PictureEmbedder,
  type TextJudge,
} from '../../src/evaluation/judge.js';
import {
  type JudgedPicture,
  type Scores,
  scorePhotographs,
  scoreSubject,
} from '../../src/evaluation/scores.js';
import { mean, normalized, type UnitVector } from '../../src/evaluation/similarity.js';
import { type Answers, WorldClassifier } from '../../src/evaluation/world-classifier.js';
import { writeFileAtomic } from '../../src/formats/atomic-file.js';
import { pathExists } from '../../src/formats/path-exists.js';
import { subjectNamed, type Workplace } from './job.js';
import { ENCODERS, type Job } from './plan.js';

/** What the world's classifier sees in the pictures, beside what is true: shares of pictures that agree. No encoder has a say in it. */
export const truths = ['noun', 'colour', 'pattern', 'scene'] as const;
export type Truth = Record<(typeof truths)[number], number>;

/** What a job's pictures are worth. */
export interface Marks {
  readonly scores: Scores;
  readonly truth: Truth;
}

/** Scores of pictures by the judges, which rewarded nothing, and by the world's classifier. */
export class Marking {
  readonly #references = new Map<string, Promise<JudgedPicture[]>>();
  readonly #texts = new Map<string, Promise<UnitVector>>();

  private constructor(
    private readonly place: Workplace,
    private readonly engine: Engine,
    private readonly dino: { readonly judge: Judge; readonly embedder: PictureEmbedder },
    private readonly clip: { readonly judge: TextJudge; readonly embedder: PictureEmbedder },
    private readonly classifier: WorldClassifier,
  ) {}

  static async open(place: Workplace, engine: Engine): Promise<Marking> {
    const [dino, clip] = [
      await openDinoJudge(ENCODERS.judges.dino),
      await openClipJudge(ENCODERS.judges.clip),
    ];
    return new Marking(
      place,
      engine,
      { judge: dino, embedder: new PictureEmbedder(dino, engine) },
      { judge: clip, embedder: new PictureEmbedder(clip, engine) },
      await WorldClassifier.open(engine),
    );
  }

  /** Marks what a job drew. */
  async mark(job: Job): Promise<Marks> {
    const pictures = await this.place.drawn(job);
    const subject = subjectNamed(job.subject);
    const texts = dreamBenchPrompts(subject.noun, '');
    const judged = await this.#judge(pictures.flat());
    const prompts = await Promise.all(
      pictures.map(async (row, p) => ({
        pictures: judged.slice(p * job.images, p * job.images + row.length),
        text: await this.#text(texts[p]!),
      })),
    );
    const { scores } = scoreSubject(prompts, await this.#photographs(job.subject), (cosine) => cosine);
    const answers = await this.classifier.classify(pictures.flat().map(({ pixels }) => pixels));
    const agreeing = (
      expected: (prompt: number) => number | undefined,
      found: (answers: Answers) => number,
    ): number =>
      mean(
        answers.flatMap((a, i) => {
          const wanted = expected(Math.floor(i / job.images));
          return wanted === undefined ? [] : [found(a) === wanted ? 1 : 0];
        }),
      );
    // The first prompts are places, in the order of the world's; "a red backpack" asks for another colour than the subject's.
    const live = isLive(subject.noun);
    const places = live ? 10 : SCENES.length - 1;
    const worn: readonly Accessory[] = live ? ACCESSORIES : [];
    const clothed = (p: number): boolean => worn[p - places]?.clothes !== undefined; // the pattern is under them
    const recoloured = (p: number): boolean => /^a (red|purple) /.test(texts[p]!);
    const unless = (no: boolean, value: number) => (no ? undefined : value);
    const truth: Truth = {
      noun: agreeing(
        () => NOUNS.indexOf(subject.noun),
        (a) => a.noun,
      ),
      colour: agreeing(
        (p) => unless(recoloured(p), COLOUR_NAMES.indexOf(subject.colour)),
        (a) => a.colour,
      ),
      pattern: agreeing(
        (p) => unless(clothed(p), PATTERNS.indexOf(subject.pattern)),
        (a) => a.pattern,
      ),
      scene: agreeing(
        (p) => unless(p >= places, p + 1),
        (a) => a.scene,
      ),
    };
    return { scores, truth };
  }

  /** What the photographs of a subject score among themselves. */
  async photographs(subject: string): Promise<Scores> {
    return scorePhotographs(await this.#photographs(subject));
  }

  async #judge(pictures: readonly RgbImage[]): Promise<JudgedPicture[]> {
    const judged: JudgedPicture[] = [];
    const batch = Math.min(this.dino.embedder.batch, this.clip.embedder.batch);
    for (let start = 0; start < pictures.length; start += batch) {
      const part = pictures.slice(start, start + batch);
      const [dino, clip] = [await this.dino.embedder.embed(part), await this.clip.embedder.embed(part)];
      judged.push(...part.map((_, i) => ({ dino: dino[i]!, clip: clip[i]! })));
    }
    return judged;
  }

  #photographs(subject: string): Promise<JudgedPicture[]> {
    const known = this.#references.get(subject) ?? this.#readPhotographs(subject);
    this.#references.set(subject, known);
    return known;
  }

  async #readPhotographs(subject: string): Promise<JudgedPicture[]> {
    const files = await this.place.references(subject);
    const { images } = await readReferenceImages(files, { resolution: 1, smallestSide: 1, fullSize: true });
    return this.#judge(images);
  }

  #text(text: string): Promise<UnitVector> {
    const known =
      this.#texts.get(text) ??
      this.clip.judge.encoder.embedTexts(this.engine, [text]).then(([t]) => normalized(t!.data));
    this.#texts.set(text, known);
    return known;
  }
}

/** The marks of a job as they were kept; undefined where there are none of these judges. */
export async function keptMarks(job: Job, place: Workplace): Promise<Marks | undefined> {
  const file = marksFile(job, place);
  if (!(await pathExists(file))) return undefined;
  const { by, marks } = JSON.parse(await readFile(file, 'utf8')) as { by: string; marks: Marks };
  return by === place.material.marking ? marks : undefined;
}

export async function keepMarks(job: Job, place: Workplace, marks: Marks): Promise<void> {
  const kept = { by: place.material.marking, marks };
  await writeFileAtomic(marksFile(job, place), `${JSON.stringify(kept)}\n`);
}

const marksFile = (job: Job, place: Workplace): string => join(place.jobFolder(job), 'marks.json');
