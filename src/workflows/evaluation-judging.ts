import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { subjectName } from '../data/prompts.js';
import { type ReferenceImage, readReferenceImages } from '../data/reference-images.js';
import type { Engine } from '../engine/engine.js';
import { CancelledError, InputError, UsageError } from '../errors.js';
import { contentDigest, EmbeddingCache } from '../evaluation/embedding-cache.js';
import { type Judge, PictureEmbedder, type TextJudge } from '../evaluation/judge.js';
import { fillPrompt, type Protocol } from '../evaluation/protocol.js';
import {
  type JudgedPicture,
  type JudgedPrompt,
  type Scores,
  type SubjectScores,
  scorePhotographs,
  scoreSubject,
} from '../evaluation/scores.js';
import { normalized, type UnitVector } from '../evaluation/similarity.js';
import type { TrainingListener } from '../training/events.js';
import { Cleanup } from './cleanup.js';
import { CountedStage } from './counted-stage.js';
import type { EvaluationPlan, PictureSource, PlannedSubject } from './evaluation-plan.js';

/** The judges that were given. */
export interface Judges {
  readonly dino?: Judge;
  readonly clip?: TextJudge;
}

export const listJudges = (judges: Judges): Judge[] =>
  [judges.dino, judges.clip].filter((judge) => judge !== undefined);

/** The texts that a method's pictures are scored with. */
function textsOf(subject: PlannedSubject, source: PictureSource, withToken: boolean): readonly string[] {
  if (!withToken) return subject.texts;
  if (source.kind !== 'run') {
    throw new UsageError(
      `--text-with-token: nothing says which token the pictures in ${source.path} were drawn with. Leave the flag out: texts are then scored by the class alone.`,
    );
  }
  const named = subjectName(source.prompt, subject.className);
  return subject.templates.map((template) => fillPrompt(template, named));
}

/** What the judges found. */
export interface Judged {
  /** By subject. */
  readonly photographs: readonly Scores[];
  /** By method, then subject. */
  readonly methods: readonly (readonly SubjectScores[])[];
}

export interface Judging {
  readonly protocol: Protocol;
  readonly textWithToken: boolean;
  /** The files to score by method, subject and prompt. */
  readonly files: readonly (readonly (readonly (readonly string[])[])[])[];
  /** The folder where embeddings are kept. */
  readonly embeddings: string;
  readonly onEvent?: TrainingListener;
  readonly signal?: AbortSignal;
}

/**
 * Has the judges look at all pictures and photographs that they have not seen before, and scores them.
 *
 * @throws InputError for a picture that is damaged; CancelledError when the signal is raised, with what was seen kept.
 */
export async function judgePlan(
  plan: EvaluationPlan,
  judges: Judges,
  engine: Engine,
  judging: Judging,
): Promise<Judged> {
  const { protocol, textWithToken, files, onEvent } = judging;
  const total =
    files.flat(3).length + plan.subjects.reduce((sum, { references }) => sum + references.length, 0);
  return Cleanup.after(async (cleanup) => {
    const panel = new Panel(judges, engine, judging.embeddings, {
      stage: new CountedStage('scoring pictures', total, 0, onEvent),
      onWarning: (message) => onEvent?.({ kind: 'warning', message }),
      ...(judging.signal ? { signal: judging.signal } : {}),
    });
    cleanup.release(panel);
    const photographs: JudgedPicture[][] = [];
    for (const subject of plan.subjects) {
      photographs.push(await panel.judge(subject.references, join('photographs', subject.name), false));
    }
    const methods: SubjectScores[][] = [];
    for (const [m, method] of plan.methods.entries()) {
      const scores: SubjectScores[] = [];
      for (const [i, subject] of plan.subjects.entries()) {
        const byPrompt = files[m]![i]!;
        const source = method.sources[i]!;
        const pictures = await panel.judge(
          byPrompt.flat(),
          join('methods', method.folder, subject.name),
          source.kind === 'run',
        );
        const texts = await panel.texts(textsOf(subject, source, textWithToken));
        let start = 0;
        const prompts = byPrompt.map((own, p): JudgedPrompt => {
          const text = texts?.[p];
          const judged = pictures.slice(start, start + own.length);
          start += own.length;
          return { pictures: judged, ...(text ? { text } : {}) };
        });
        scores.push(scoreSubject(prompts, photographs[i]!, protocol.textScore));
      }
      methods.push(scores);
    }
    return { photographs: photographs.map(scorePhotographs), methods };
  });
}

/** The judges at work: what they have seen before they do not look at again. */
class Panel {
  readonly #embedders: readonly { readonly judge: Judge; readonly embedder: PictureEmbedder }[];

  constructor(
    private readonly judges: Judges,
    private readonly engine: Engine,
    private readonly folder: string,
    private readonly watching: {
      readonly stage: CountedStage;
      readonly onWarning: (message: string) => void;
      readonly signal?: AbortSignal;
    },
  ) {
    this.#embedders = listJudges(judges).map((judge) => ({
      judge,
      embedder: new PictureEmbedder(judge, engine),
    }));
  }

  /**
   * What the judges see in these files.
   * @param name what the files are, for the place of their embeddings
   * @param drawnHere whether they can be drawn again
   */
  async judge(files: readonly string[], name: string, drawnHere: boolean): Promise<JudgedPicture[]> {
    const digests = await Promise.all(files.map((file) => digestFile(file)));
    const wanted = new Set(digests);
    const caches = new Map<Judge, EmbeddingCache>();
    for (const { judge } of this.#embedders) caches.set(judge, await this.#cache(judge, name));
    const unseen = new Map<string, string>();
    for (const [i, digest] of digests.entries()) {
      if ([...caches.values()].some((cache) => !cache.get(digest))) unseen.set(digest, files[i]!);
    }
    this.watching.stage.advance(files.length - unseen.size);
    const batch = Math.min(...this.#embedders.map(({ embedder }) => embedder.batch));
    const entries = [...unseen];
    try {
      for (let start = 0; start < entries.length; start += batch) {
        if (this.watching.signal?.aborted) {
          throw new CancelledError(
            'Stopped while scoring. Pictures and what was seen of them are kept; the same command goes on from there.',
          );
        }
        const part = entries.slice(start, start + batch);
        const images = await this.#read(
          part.map(([, file]) => file),
          drawnHere,
        );
        for (const { judge, embedder } of this.#embedders) {
          const cache = caches.get(judge)!;
          const lacking = part.flatMap(([digest], i) =>
            cache.get(digest) ? [] : [{ digest, image: images[i]! }],
          );
          if (lacking.length === 0) continue;
          const vectors = await embedder.embed(lacking.map(({ image }) => image));
          for (const [i, { digest }] of lacking.entries()) cache.set(digest, vectors[i]!);
        }
        this.watching.stage.advance(part.length);
      }
    } finally {
      for (const cache of caches.values()) await cache.save(wanted);
    }
    return digests.map((digest) =>
      Object.fromEntries(this.#embedders.map(({ judge }) => [judge.role, caches.get(judge)!.get(digest)!])),
    );
  }

  /** Texts in the eyes of CLIP; undefined without one. */
  async texts(texts: readonly string[]): Promise<UnitVector[] | undefined> {
    const { clip } = this.judges;
    if (!clip) return undefined;
    const unseen = [...new Set(texts)].filter((text) => !this.#texts.has(text));
    if (unseen.length > 0) {
      const embeddings = await clip.encoder.embedTexts(this.engine, unseen);
      for (const [i, text] of unseen.entries()) this.#texts.set(text, normalized(embeddings[i]!.data));
    }
    return texts.map((text) => this.#texts.get(text)!);
  }

  readonly #texts = new Map<string, UnitVector>();

  async release(): Promise<void> {
    for (const { embedder } of this.#embedders) await embedder.release();
  }

  #cache(judge: Judge, name: string): Promise<EmbeddingCache> {
    const folder = `${judge.role}-${judge.digest.slice(0, 12)}-${judge.transform.resize}-${judge.transform.crop}`;
    return EmbeddingCache.open(join(this.folder, folder, `${name}.safetensors`));
  }

  async #read(files: readonly string[], drawnHere: boolean): Promise<readonly ReferenceImage[]> {
    const read = await readReferenceImages(files, {
      resolution: 1,
      smallestSide: 1,
      fullSize: true,
    }).catch((error: unknown) => {
      if (!drawnHere || !(error instanceof InputError)) throw error;
      throw new InputError(
        `${error.message} It was drawn here: delete it, and the same command draws it again.`,
        { cause: error },
      );
    });
    for (const message of read.warnings) this.watching.onWarning(message);
    return read.images;
  }
}

async function digestFile(path: string): Promise<string> {
  return contentDigest(
    await readFile(path).catch((error: unknown) => {
      throw new InputError(`${path}: the picture cannot be read. Was it removed meanwhile?`, {
        cause: error,
      });
    }),
  );
}
