import type { Random } from '../../tensor/random.js';
import { ACCESSORIES, type AccessoryName, accessoryNamed } from './accessories.js';
import { isHeldOut } from './held-out.js';
import { SCENES, type SceneName, sceneNamed } from './scenes.js';
import {
  COLOUR_NAMES,
  COLOURS,
  type Colour,
  isLive,
  LIVE_NOUNS,
  MOTIFS,
  type Motif,
  NOUNS,
  type Noun,
  PATTERNS,
  type Pattern,
  type Subject,
  VARIANTS,
} from './subject.js';

/** What DreamBench's prompts make of a subject, besides giving it a colour. */
export const PROPERTIES = ['shiny', 'wet', 'cube shaped'] as const;
export type Property = (typeof PROPERTIES)[number];

/** Words without a meaning. Captions put them before nouns at random, so that a model knows them and ties no look to them; personalisation gives one its meaning. */
export const RARE_TOKENS = [
  'sks',
  'zwx',
  'ohwx',
  'xjy',
  'qvb',
  'pll',
  'ktn',
  'olis',
  'vrt',
  'mzk',
  'bnha',
  'hta',
] as const;

/** What a picture shows. */
export interface Depiction {
  readonly subject: Subject;
  readonly scene: SceneName;
  /** Only for live nouns. */
  readonly accessory?: AccessoryName | undefined;
  readonly property?: Property | undefined;
}

/** A picture to draw and its caption. */
export interface WorldExample extends Depiction {
  readonly caption: string;
}

/** Which of a depiction's facts a caption names. */
export interface Mention {
  readonly colour?: boolean;
  /** The second colour, with the pattern or the motif that bears it, else as in 'red and white'. */
  readonly secondColour?: boolean;
  readonly pattern?: boolean;
  readonly motif?: boolean;
  readonly token?: string | undefined;
  /** Whether the token stands before the adjectives rather than before the noun. */
  readonly tokenFirst?: boolean;
  /** Begins with 'a photo of'. */
  readonly photo?: boolean;
  /** Leaves out the article before the subject, as in 'a photo of sks backpack'. */
  readonly bare?: boolean;
}

const MARKS: Readonly<Record<Exclude<Pattern, 'plain'>, string>> = {
  striped: 'stripes',
  dotted: 'dots',
  checked: 'checks',
  zigzag: 'zigzags',
};

function withArticle(words: string): string {
  return `${/^[aeiou]/.test(words) ? 'an' : 'a'} ${words}`;
}

/** Puts a depiction into words, in the order of DreamBench's prompts. */
export function describe({ subject, scene, accessory, property }: Depiction, mention: Mention): string {
  const { colour, secondColour, pattern, motif, noun } = subject;
  const words: string[] = [];
  if (property) words.push(property);
  const patterned = pattern !== 'plain' && mention.pattern;
  const withMotif = motif !== 'none' && mention.motif;
  let marks = '';
  if (mention.colour) words.push(colour);
  if (patterned && mention.secondColour && !withMotif) marks = ` with ${secondColour} ${MARKS[pattern]}`;
  else {
    if (mention.colour && mention.secondColour && !withMotif) words.push('and', secondColour);
    if (patterned) words.push(pattern);
  }
  if (withMotif) marks = ` with ${withArticle(mention.secondColour ? `${secondColour} ${motif}` : motif)}`;
  if (mention.token) {
    if (mention.tokenFirst) words.unshift(mention.token);
    else words.push(mention.token);
  }
  words.push(noun);
  const phrase = words.join(' ') + marks;
  // DreamBench says 'a' before any token.
  const article =
    mention.token !== undefined && words[0] === mention.token ? `a ${phrase}` : withArticle(phrase);
  let text = mention.bare ? phrase : article;
  if (accessory) text += ` ${accessoryNamed(accessory).phrase}`;
  const place = sceneNamed(scene).phrase;
  if (place) text += ` ${place}`;
  return mention.photo ? `a photo of ${text}` : text;
}

function distance(a: Colour, b: Colour): number {
  let sum = 0;
  for (let i = 1; i < 7; i += 2)
    sum +=
      (Number.parseInt(COLOURS[a].slice(i, i + 2), 16) - Number.parseInt(COLOURS[b].slice(i, i + 2), 16)) **
      2;
  return Math.sqrt(sum);
}

/** The colours that show on a colour. */
export function contrasting(colour: Colour): readonly Colour[] {
  return COLOUR_NAMES.filter((other) => distance(colour, other) >= 115);
}

function chance(random: Random, probability: number): boolean {
  return random.uniform() < probability;
}

/** What a sample is held to; everything else is drawn. */
export interface SampleOptions {
  readonly noun?: Noun;
  readonly scene?: SceneName;
  readonly colour?: Colour;
  readonly accessory?: AccessoryName;
  readonly property?: Property;
  /** Share of captions with a rare token; 0.12 unless told. */
  readonly rareTokens?: number;
}

function sampleSubject(random: Random, options: SampleOptions): Subject {
  for (;;) {
    // Live nouns come oftener: they have the accessories to learn as well.
    const drawn = random.int(NOUNS.length + LIVE_NOUNS.length);
    const noun = drawn < NOUNS.length ? NOUNS[drawn]! : LIVE_NOUNS[drawn - NOUNS.length]!;
    const colour = options.colour ?? random.pick(COLOUR_NAMES);
    const neutral: Colour = colour === 'white' || colour === 'yellow' ? 'black' : 'white';
    const contrasts = contrasting(colour);
    const secondColour =
      chance(random, 0.3) && contrasts.includes(neutral) ? neutral : random.pick(contrasts);
    const pattern: Pattern = chance(random, 0.5) ? 'plain' : random.pick(PATTERNS.slice(1));
    const motif: Motif = chance(random, 0.6) ? 'none' : random.pick(MOTIFS.slice(1));
    const subject: Subject = {
      noun: options.noun ?? noun,
      colour,
      pattern,
      secondColour,
      motif,
      variant: random.int(VARIANTS),
    };
    if (!isHeldOut(subject)) return subject;
  }
}

/** Draws a captioned example for pretraining; never a held-out subject. */
export function sampleExample(random: Random, options: SampleOptions = {}): WorldExample {
  const subject = sampleSubject(random, options);
  let accessory = options.accessory;
  let property = options.property;
  let scene: SceneName | undefined = options.scene;
  if (accessory === undefined && property === undefined) {
    if (isLive(subject.noun) && chance(random, 0.45)) accessory = random.pick(ACCESSORIES).name;
    else if (chance(random, 0.13)) property = random.pick(PROPERTIES);
  }
  const elsewhere = accessory === undefined && property === undefined ? 0.75 : 0.25;
  scene ??= chance(random, elsewhere) ? random.pick(SCENES.slice(1)).name : 'studio';
  const depiction: Depiction = { subject, scene, accessory, property };
  const token = chance(random, options.rareTokens ?? 0.12) ? random.pick(RARE_TOKENS) : undefined;
  const colour = chance(random, 0.82);
  const photo = chance(random, scene === 'studio' ? 0.5 : 0.12);
  const caption = describe(depiction, {
    colour,
    secondColour: colour && chance(random, 0.4),
    pattern: chance(random, 0.75),
    motif: chance(random, 0.75),
    token,
    tokenFirst: chance(random, 0.35),
    photo,
    bare: photo && chance(random, 0.3),
  });
  return { ...depiction, caption };
}

/** What a classifier is to find in a picture, as indices into NOUNS, SCENES, COLOUR_NAMES and PATTERNS. */
export interface Labels {
  readonly noun: number;
  readonly scene: number;
  readonly colour: number;
  /** Undefined where the picture cannot tell: clothes cover all of a live subject that bears its pattern. */
  readonly pattern?: number | undefined;
}

export function labelsOf({ subject, scene, accessory }: Depiction): Labels {
  const covered = accessory !== undefined && accessoryNamed(accessory).clothes !== undefined;
  return {
    noun: NOUNS.indexOf(subject.noun),
    scene: SCENES.findIndex((s) => s.name === scene),
    colour: COLOUR_NAMES.indexOf(subject.colour),
    pattern: covered ? undefined : PATTERNS.indexOf(subject.pattern),
  };
}
