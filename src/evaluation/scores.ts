import { cosine, diversity, mean, meanCosine, meanCosineWithin, type UnitVector } from './similarity.js';

/** What is measured, in the order of tables. */
export const metrics = ['dino', 'clipI', 'clipT', 'diversity'] as const;
export type Metric = (typeof metrics)[number];

/** The measured metrics; one whose judge was not given, or that needs more pictures, is missing. */
export type Scores = Partial<Record<Metric, number>>;

/** A picture or a photograph as the judges see it. */
export interface JudgedPicture {
  readonly dino?: UnitVector;
  readonly clip?: UnitVector;
}

/** The pictures of one prompt. */
export interface JudgedPrompt {
  readonly pictures: readonly JudgedPicture[];
  /** The prompt's text in the eyes of CLIP. */
  readonly text?: UnitVector;
}

/** Scores of a subject, and of each of its prompts. */
export interface SubjectScores {
  readonly scores: Scores;
  readonly prompts: readonly Scores[];
}

/**
 * Scores the pictures of one subject: DINO and CLIP-I are the mean cosine over all pairs of a picture and a photograph, CLIP-T over all pictures with their
 * texts; diversity is the mean of 1 - cosine over the pairs of pictures of a prompt (in the eyes of DINO, or of CLIP without it), then over prompts.
 *
 * @param textScore what the protocol makes of a cosine with a text
 */
export function scoreSubject(
  prompts: readonly JudgedPrompt[],
  photographs: readonly JudgedPicture[],
  textScore: (cosine: number) => number,
): SubjectScores {
  const each = prompts.map((prompt) => scorePrompts([prompt], photographs, textScore));
  const spread = each.flatMap((scores) => scores.diversity ?? []);
  return {
    scores: {
      ...scorePrompts(prompts, photographs, textScore),
      ...(spread.length > 0 ? { diversity: mean(spread) } : {}),
    },
    prompts: each,
  };
}

/** What the photographs score among themselves, each against the others of its subject: about the most that pictures can reach. */
export function scorePhotographs(photographs: readonly JudgedPicture[]): Scores {
  return defined({
    dino: meanCosineWithin(seenBy(photographs, 'dino')),
    clipI: meanCosineWithin(seenBy(photographs, 'clip')),
  });
}

function scorePrompts(
  prompts: readonly JudgedPrompt[],
  photographs: readonly JudgedPicture[],
  textScore: (cosine: number) => number,
): Scores {
  const pictures = prompts.flatMap((prompt) => prompt.pictures);
  const likeness = (judge: 'dino' | 'clip'): number | undefined => {
    const [made, real] = [seenBy(pictures, judge), seenBy(photographs, judge)];
    return made.length > 0 && real.length > 0 ? meanCosine(made, real) : undefined;
  };
  const texts = prompts.flatMap(({ pictures: own, text }) =>
    text ? seenBy(own, 'clip').map((picture) => textScore(cosine(picture, text))) : [],
  );
  const [only] = prompts;
  return defined({
    dino: likeness('dino'),
    clipI: likeness('clip'),
    clipT: texts.length > 0 ? mean(texts) : undefined,
    diversity: prompts.length === 1 ? spreadOf(only!.pictures) : undefined,
  });
}

function spreadOf(pictures: readonly JudgedPicture[]): number | undefined {
  const dino = seenBy(pictures, 'dino');
  return diversity(dino.length > 0 ? dino : seenBy(pictures, 'clip'));
}

function seenBy(pictures: readonly JudgedPicture[], judge: 'dino' | 'clip'): UnitVector[] {
  return pictures.flatMap((picture) => picture[judge] ?? []);
}

function defined(scores: { readonly [M in Metric]?: number | undefined }): Scores {
  return Object.fromEntries(Object.entries(scores).filter(([, value]) => value !== undefined)) as Scores;
}
