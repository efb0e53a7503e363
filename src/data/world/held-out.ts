import { type Colour, type Motif, type Noun, type Pattern, type Subject, subjectKey } from './subject.js';

/** A subject kept out of pretraining: for setting things by (tuning), or only for reported numbers (report). */
export interface HeldOutSubject extends Subject {
  /** Names the subject's folder. */
  readonly name: string;
  readonly use: 'tuning' | 'report';
}

type Row = readonly [
  use: 'tuning' | 'report',
  noun: Noun,
  colour: Colour,
  pattern: Pattern,
  secondColour: Colour,
  motif: Motif,
  variant: number,
];

const ROWS: readonly Row[] = [
  ['report', 'backpack', 'teal', 'zigzag', 'yellow', 'star', 2],
  ['tuning', 'backpack', 'orange', 'dotted', 'blue', 'moon', 0],
  ['report', 'backpack', 'purple', 'striped', 'white', 'face', 1],
  ['tuning', 'stuffed animal', 'pink', 'striped', 'purple', 'heart', 0],
  ['report', 'stuffed animal', 'green', 'dotted', 'yellow', 'flower', 1],
  ['report', 'stuffed animal', 'grey', 'checked', 'red', 'star', 2],
  ['tuning', 'bowl', 'blue', 'zigzag', 'white', 'flower', 0],
  ['report', 'bowl', 'red', 'dotted', 'yellow', 'moon', 1],
  ['report', 'bowl', 'yellow', 'striped', 'teal', 'face', 2],
  ['tuning', 'can', 'green', 'striped', 'white', 'star', 0],
  ['report', 'can', 'purple', 'checked', 'yellow', 'number', 1],
  ['report', 'can', 'blue', 'dotted', 'orange', 'heart', 2],
  ['tuning', 'candle', 'red', 'zigzag', 'white', 'moon', 0],
  ['report', 'candle', 'teal', 'striped', 'black', 'heart', 1],
  ['report', 'cat', 'orange', 'striped', 'black', 'star', 0],
  ['tuning', 'cat', 'grey', 'dotted', 'orange', 'none', 1],
  ['report', 'cat', 'blue', 'zigzag', 'yellow', 'moon', 2],
  ['tuning', 'clock', 'yellow', 'dotted', 'purple', 'none', 0],
  ['report', 'clock', 'pink', 'zigzag', 'teal', 'heart', 1],
  ['report', 'clock', 'green', 'checked', 'white', 'flower', 2],
  ['tuning', 'sneaker', 'blue', 'striped', 'orange', 'number', 0],
  ['report', 'sneaker', 'red', 'checked', 'white', 'star', 1],
  ['report', 'sneaker', 'black', 'zigzag', 'pink', 'heart', 2],
  ['report', 'dog', 'brown', 'dotted', 'white', 'heart', 0],
  ['tuning', 'dog', 'teal', 'striped', 'orange', 'star', 1],
  ['report', 'dog', 'purple', 'checked', 'pink', 'moon', 2],
  ['report', 'dog', 'yellow', 'zigzag', 'brown', 'flower', 0],
  ['report', 'toy', 'red', 'striped', 'yellow', 'number', 0],
  ['tuning', 'toy', 'orange', 'checked', 'blue', 'star', 1],
  ['report', 'toy', 'purple', 'dotted', 'white', 'flower', 2],
  ['report', 'boot', 'green', 'zigzag', 'orange', 'heart', 0],
  ['report', 'boot', 'pink', 'checked', 'black', 'flower', 1],
  ['report', 'glasses', 'yellow', 'checked', 'red', 'none', 0],
  ['report', 'glasses', 'teal', 'dotted', 'purple', 'star', 1],
  ['tuning', 'cartoon', 'green', 'checked', 'purple', 'none', 0],
  ['report', 'cartoon', 'red', 'zigzag', 'yellow', 'star', 1],
  ['report', 'cartoon', 'blue', 'striped', 'pink', 'heart', 2],
  ['report', 'teapot', 'pink', 'dotted', 'blue', 'star', 0],
  ['tuning', 'teapot', 'brown', 'zigzag', 'yellow', 'moon', 1],
  ['report', 'teapot', 'black', 'striped', 'teal', 'flower', 2],
  ['report', 'vase', 'white', 'zigzag', 'blue', 'heart', 0],
  ['report', 'vase', 'orange', 'striped', 'purple', 'face', 1],
];

/**
 * The subjects that pretraining never draws, in any variant. Demos, benches and evaluations take their subjects from here; the first is the bundled demo subject.
 */
export const HELD_OUT_SUBJECTS: readonly HeldOutSubject[] = ROWS.map(
  ([use, noun, colour, pattern, secondColour, motif, variant]) => ({
    name: [colour, pattern, motif === 'none' ? secondColour : motif, noun.replace(' ', '-')].join('-'),
    use,
    noun,
    colour,
    pattern,
    secondColour,
    motif,
    variant,
  }),
);

const HELD_OUT_KEYS: ReadonlySet<string> = new Set(HELD_OUT_SUBJECTS.map(subjectKey));

/** Whether pretraining has to leave this subject out. */
export function isHeldOut(subject: Subject): boolean {
  return HELD_OUT_KEYS.has(subjectKey(subject));
}

/** The subject of the bundled five pictures. */
export const DEMO_SUBJECT: HeldOutSubject = HELD_OUT_SUBJECTS[0]!;
