/** DreamBench's class nouns, in the order of the classifier's labels. */
export const NOUNS = [
  'backpack',
  'stuffed animal',
  'bowl',
  'can',
  'candle',
  'cat',
  'clock',
  'sneaker',
  'dog',
  'toy',
  'boot',
  'glasses',
  'cartoon',
  'teapot',
  'vase',
] as const;
export type Noun = (typeof NOUNS)[number];

/** The nouns that DreamBench's prompts for live subjects are for. */
export const LIVE_NOUNS = ['cat', 'dog'] as const satisfies readonly Noun[];

export function isLive(noun: string): boolean {
  return (LIVE_NOUNS as readonly string[]).includes(noun);
}

/** The colour words and what they look like. */
export const COLOURS = {
  red: '#e0262b',
  orange: '#fb8a12',
  yellow: '#f8dc2c',
  green: '#2fae3f',
  teal: '#17b8b0',
  blue: '#2458e6',
  purple: '#8436c9',
  pink: '#f77fbb',
  brown: '#85502a',
  black: '#2a2a32',
  white: '#f8f8f6',
  grey: '#8d929a',
} as const;
export type Colour = keyof typeof COLOURS;
export const COLOUR_NAMES = Object.keys(COLOURS) as readonly Colour[];

export const PATTERNS = ['plain', 'striped', 'dotted', 'checked', 'zigzag'] as const;
export type Pattern = (typeof PATTERNS)[number];

export const MOTIFS = ['none', 'star', 'heart', 'moon', 'flower', 'face', 'number'] as const;
export type Motif = (typeof MOTIFS)[number];

/** How many builds (proportions and small parts) each noun is drawn in. */
export const VARIANTS = 3;

/** What one subject looks like, whatever its pose and surroundings. */
export interface Subject {
  readonly noun: Noun;
  readonly colour: Colour;
  readonly pattern: Pattern;
  /** Of the pattern, the motif and the trim; never the main colour. */
  readonly secondColour: Colour;
  readonly motif: Motif;
  /** 0 to VARIANTS - 1. */
  readonly variant: number;
}

/** Names a subject by everything but its variant: held-out subjects are left out of pretraining in all their variants. */
export function subjectKey(subject: Omit<Subject, 'variant'>): string {
  return [subject.noun, subject.colour, subject.pattern, subject.secondColour, subject.motif].join('/');
}
