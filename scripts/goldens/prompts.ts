// Prompts of all kinds, for the comparison of token ids. Writes them as JSON, after a build: node dist/scripts/goldens/prompts.js FILE
import { writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { Random } from '../../src/tensor/random.js';

/** First and last code points of blocks that were assigned long ago. */
const blocks = {
  ascii: [0x20, 0x7e],
  latin: [0xa0, 0x24f],
  greek: [0x391, 0x3c9],
  cyrillic: [0x400, 0x481],
  armenian: [0x531, 0x556],
  hebrew: [0x5d0, 0x5ea],
  arabic: [0x620, 0x669],
  devanagari: [0x904, 0x939],
  tamil: [0xb85, 0xb95],
  thai: [0xe01, 0xe3a],
  georgian: [0x10d0, 0x10f0],
  hangulLetters: [0x1100, 0x1175],
  latinAdditional: [0x1e00, 0x1eff],
  greekExtended: [0x1f00, 0x1f15],
  punctuation: [0x2010, 0x2027],
  money: [0x20a0, 0x20b9],
  letterlike: [0x2100, 0x214f],
  numberForms: [0x2150, 0x2188],
  arrowsAndMath: [0x2190, 0x22ff],
  enclosed: [0x2460, 0x24ff],
  dingbats: [0x2700, 0x27bf],
  kana: [0x3041, 0x3096],
  katakana: [0x30a1, 0x30fa],
  han: [0x4e00, 0x9fa5],
  hangul: [0xac00, 0xd7a3],
  compatibility: [0xf900, 0xfa2d],
  forms: [0xfb00, 0xfb06],
  halfwidth: [0xff01, 0xffee],
  marks: [0x300, 0x36f],
  controls: [0x1, 0x1f],
  moreControls: [0x7f, 0x9f],
  spaces: [0x2000, 0x200a],
  invisible: [0x200b, 0x200f],
  emoji: [0x1f300, 0x1f64f],
  transport: [0x1f680, 0x1f6c5],
  mathLetters: [0x1d400, 0x1d454],
  hanExtension: [0x20000, 0x2a6d6],
  flags: [0x1f1e6, 0x1f1ff],
} as const satisfies Record<string, readonly [number, number]>;

const words =
  `a an the of in on with and at by over under photo photograph picture painting drawing render portrait of sks dog cat backpack teapot
  vase astronaut horse castle city beach jungle snow mountain forest river moonlight sunset cyberpunk watercolor masterpiece detailed intricate
  8k 4k hdr octane trending artstation cinematic lighting bokeh 35mm f/1.8 ultra-realistic hyper-detailed unreal engine art nouveau studio ghibli
  greg rutkowski van gogh monet don't it's they're we've i'll he'd o'clock rock'n'roll antidisestablishmentarianism supercalifragilistic xkcd qwrtz
  Straße café naïve Москва кошка 東京 猫 犬 서울 고양이 שלום مرحبا नमस्ते ไทย Ελλάδα`.split(/\s+/);

const pieces = [
  ...[
    '!',
    '?',
    '...',
    ',',
    ';',
    ':',
    '--',
    '—',
    '/',
    '\\',
    '|',
    '#',
    '@',
    '&',
    '&amp;',
    '<b>',
    '%',
    '^',
    '~',
    '`',
    '*',
    '+',
    '=',
    '_',
  ],
  ...[
    '(((masterpiece)))',
    '[[blurry]]',
    '{a|b}',
    '<lora:detail:0.8>',
    '(dog:1.3)',
    '<|endoftext|>',
    '<|startoftext|>',
    '<sks>',
  ],
  ...[
    "'s",
    "'t",
    "'re",
    "'ve",
    "'m",
    "'ll",
    "'d",
    "''",
    '"',
    '“',
    '”',
    '’s',
    '«',
    '»',
    '\t',
    '\n',
    '\r\n',
    '  ',
    '\u00a0',
    '\u3000',
    '\ufeff',
  ],
  ...[
    '👩‍👩‍👧',
    '👍🏽',
    '❤️',
    '🏳️‍🌈',
    '1️⃣',
    '🇫🇷',
    'é',
    'e\u0301',
    'ﬁ',
    'ß',
    'ẞ',
    'İ',
    'ı',
    'Σ',
    'ς',
    'Ǆ',
    'ŉ',
    '½',
    '²',
    '①',
    '٣',
    'Ⅷ',
    '\u0000',
  ],
];

const hard = [
  ...[
    '',
    ' ',
    '\n',
    '\t\t',
    '!',
    "'",
    "'s",
    "a's",
    '0',
    '00',
    '1234567890',
    'a',
    'A',
    '.',
    '…',
    '\u200d',
    '\ufe0f',
    '\u0301',
    'é',
  ],
  ...[
    '<|startoftext|>',
    '<|endoftext|>',
    '<|endoftext|><|endoftext|>',
    'a<|endoftext|>b',
    '< |endoftext|>',
    '<|ENDOFTEXT|>',
    '<|endoftext|',
  ],
  ...[
    'x'.repeat(500),
    'dog '.repeat(100),
    '🐶'.repeat(60),
    '! '.repeat(80),
    'ab'.repeat(200),
    '猫'.repeat(90),
    '\u0301'.repeat(40),
    '9'.repeat(90),
  ],
];

type Draw = (random: Random) => string;

const character = (random: Random, [first, last]: readonly [number, number]): string =>
  String.fromCodePoint(first + random.int(last - first + 1));

const repeated = (random: Random, most: number, part: () => string, between = ''): string =>
  Array.from({ length: 1 + random.int(most) }, part).join(between);

const kinds: readonly Draw[] = [
  (random) => repeated(random, 20, () => random.pick(words), ' '),
  (random) => repeated(random, 90, () => random.pick(words), random.pick([' ', ', ', '  '])),
  (random) => repeated(random, 12, () => random.pick([...words, ...pieces]), random.pick(['', ' '])),
  (random) => repeated(random, 10, () => random.pick(pieces)),
  (random) => repeated(random, 30, () => character(random, blocks.ascii)),
  (random) => {
    const block = random.pick(Object.values(blocks));
    return repeated(random, 20, () => character(random, block));
  },
  (random) => repeated(random, 20, () => character(random, random.pick(Object.values(blocks)))),
  (random) =>
    repeated(random, 10, () => random.pick(words) + character(random, random.pick(Object.values(blocks)))),
  (random) => repeated(random, 12, () => random.pick(words).toUpperCase(), ' '),
  (random) => repeated(random, 15, () => character(random, blocks.latin) + character(random, blocks.marks)),
];

/** As many prompts, the same each time: the known hard ones, then each kind in turn. */
export function variedPrompts(count: number): string[] {
  const random = new Random(23, 'prompts');
  return Array.from({ length: count }, (_, i) => hard[i] ?? kinds[i % kinds.length]!(random));
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  writeFileSync(process.argv[2]!, JSON.stringify(variedPrompts(10_000)));
}
