import type { RgbImage } from '../data/image-grid.js';
import type { Engine } from '../engine/engine.js';
import { type Judge, PictureEmbedder, type TextJudge } from './judge.js';
import { cosine, diversity, mean, meanCosine, normalized, type UnitVector } from './similarity.js';

/** A prompt of a run's validation pictures. */
export interface JudgedText {
  /** What its pictures should show, without the rare token. */
  readonly text: string;
  /** Whether they should show the subject. */
  readonly ofSubject: boolean;
}

/** A judge under the name of its curves. */
export interface NamedJudge {
  readonly name: string;
  readonly judge: Judge | TextJudge;
}

/** Scores by name: `judge.NAME`, `judge.NAME-text`, `judge.NAME-diversity`, and `judge.score`. */
export type JudgeScores = Readonly<Record<string, number>>;

/** The least that a cosine counts in the score of all. */
const LEAST = 1e-3;

/**
 * Judges that watch one run. Each says how like the photographs pictures are (mean cosine over all pairs), how different those of one prompt are among themselves (mean of 1 -
 * cosine over pairs, then over prompts) and, if it is a CLIP, how well they show their text (mean cosine). The score of all is the geometric mean of likenesses and
 * alignments, in which a tenth lost of one is a tenth gained of another, whatever their scales.
 */
export class RunJudges {
  readonly #photographs = new Map<string, readonly UnitVector[]>();
  readonly #texts = new Map<string, readonly UnitVector[]>();

  /**
   * @param prompts of the pictures, in the order of rows
   * @param photographs of the subject
   */
  constructor(
    readonly judges: readonly NamedJudge[],
    private readonly engine: Engine,
    private readonly prompts: readonly JudgedText[],
    private readonly photographs: readonly RgbImage[],
  ) {}

  /** Scores pictures, a row a prompt. Programs are made for it and released again. */
  async score(rows: readonly (readonly RgbImage[])[]): Promise<JudgeScores> {
    const scores: Record<string, number> = {};
    const counted: number[] = [];
    for (const { name, judge } of this.judges) {
      const embedder = new PictureEmbedder(judge, this.engine);
      try {
        const real = this.#photographs.get(name) ?? (await embedAll(embedder, this.photographs));
        this.#photographs.set(name, real);
        const seen = await embedAll(embedder, rows.flat());
        const columns = rows[0]!.length;
        const made = rows.map((_, r) => seen.slice(r * columns, (r + 1) * columns));
        const ofSubject = made.filter((_, r) => this.prompts[r]!.ofSubject);
        const likeness = meanCosine((ofSubject.length > 0 ? ofSubject : made).flat(), real);
        scores[`judge.${name}`] = likeness;
        counted.push(likeness);
        const texts = await this.#textsOf(name, judge);
        if (texts) {
          const aligned = mean(made.flatMap((pictures, r) => pictures.map((p) => cosine(p, texts[r]!))));
          scores[`judge.${name}-text`] = aligned;
          counted.push(aligned);
        }
        const spread = made.flatMap((pictures) => diversity(pictures) ?? []);
        if (spread.length > 0) scores[`judge.${name}-diversity`] = mean(spread);
      } finally {
        await embedder.release();
      }
    }
    scores['judge.score'] = Math.exp(mean(counted.map((v) => Math.log(Math.max(v, LEAST)))));
    return scores;
  }

  async #textsOf(name: string, judge: Judge | TextJudge): Promise<readonly UnitVector[] | undefined> {
    if (!knowsText(judge)) return undefined;
    const known = this.#texts.get(name);
    if (known) return known;
    const texts = this.prompts.map(({ text }) => text);
    const embeddings = await judge.encoder.embedTexts(this.engine, texts);
    const units = embeddings.map(({ data }) => normalized(data));
    this.#texts.set(name, units);
    return units;
  }
}

const knowsText = (judge: Judge | TextJudge): judge is TextJudge => judge.role === 'clip';

async function embedAll(embedder: PictureEmbedder, pictures: readonly RgbImage[]): Promise<UnitVector[]> {
  const all: UnitVector[] = [];
  for (let start = 0; start < pictures.length; start += embedder.batch) {
    all.push(...(await embedder.embed(pictures.slice(start, start + embedder.batch))));
  }
  return all;
}
