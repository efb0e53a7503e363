import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { test } from 'node:test';
import { ACCESSORIES } from '../../src/data/world/accessories.js';
import {
  contrasting,
  type Depiction,
  describe,
  type Labels,
  labelsOf,
  PROPERTIES,
  RARE_TOKENS,
  sampleExample,
} from '../../src/data/world/example.js';
import { HELD_OUT_SUBJECTS, isHeldOut } from '../../src/data/world/held-out.js';
import { drawSvg } from '../../src/data/world/picture.js';
import { dreamBenchPrompts } from '../../src/data/world/prompts.js';
import { renderExamples, renderSvg, subjectPictures, worldExample } from '../../src/data/world/render.js';
import { SCENES } from '../../src/data/world/scenes.js';
import {
  COLOUR_NAMES,
  COLOURS,
  isLive,
  MOTIFS,
  NOUNS,
  PATTERNS,
  type Subject,
  subjectKey,
  VARIANTS,
} from '../../src/data/world/subject.js';
import { worldVocabulary } from '../../src/data/world/vocabulary.js';
import { Random } from '../../src/tensor/random.js';

const SAMPLES = 20_000;

function samples(count = SAMPLES) {
  const random = new Random(11, 'test');
  return Array.from({ length: count }, () => sampleExample(random));
}

function subject(change: Partial<Subject>): Subject {
  return {
    noun: 'backpack',
    colour: 'red',
    pattern: 'plain',
    secondColour: 'white',
    motif: 'none',
    variant: 0,
    ...change,
  };
}

test('the world of a seed is the same everywhere', () => {
  const hash = createHash('sha256');
  for (let i = 0; i < 200; i++) {
    const { example, svg } = worldExample(7, i, 64);
    hash.update(`${example.caption}\n${svg}\n`);
  }
  assert.equal(hash.digest('hex').slice(0, 16), '3eca0f82f2b8ac86');
  assert.deepEqual(worldExample(7, 5, 64), worldExample(7, 5, 64));
});

test('held-out subjects are never drawn', () => {
  for (const { subject } of samples()) assert.ok(!isHeldOut(subject), subjectKey(subject));
  // Nor when everything but the pattern and the motif is forced to be a held-out subject's.
  const random = new Random(3);
  const [held] = HELD_OUT_SUBJECTS;
  for (let i = 0; i < 2000; i++)
    assert.ok(!isHeldOut(sampleExample(random, { noun: held!.noun, colour: held!.colour }).subject));
});

test('held-out subjects are distinct, cover every noun and are set apart for tuning and for reports', () => {
  assert.equal(new Set(HELD_OUT_SUBJECTS.map(subjectKey)).size, HELD_OUT_SUBJECTS.length);
  assert.equal(new Set(HELD_OUT_SUBJECTS.map((s) => s.name)).size, HELD_OUT_SUBJECTS.length);
  assert.deepEqual(new Set(HELD_OUT_SUBJECTS.map((s) => s.noun)), new Set(NOUNS));
  assert.equal(HELD_OUT_SUBJECTS.filter((s) => s.use === 'tuning').length, 12);
  assert.equal(HELD_OUT_SUBJECTS.filter((s) => s.use === 'report').length, 30);
  for (const s of HELD_OUT_SUBJECTS) {
    assert.ok(
      contrasting(s.colour).includes(s.secondColour),
      `${s.name}: ${s.secondColour} does not show on ${s.colour}`,
    );
    assert.ok(s.variant >= 0 && s.variant < VARIANTS);
    assert.ok(isHeldOut({ ...s, variant: (s.variant + 1) % VARIANTS }), 'held out in every variant');
  }
});

test('every noun, scene, colour, pattern, motif, accessory, property and token comes up', () => {
  const drawn = samples();
  const seen = (values: readonly unknown[]) => new Set(values.filter((value) => value !== undefined));
  assert.deepEqual(seen(drawn.map((e) => e.subject.noun)), new Set(NOUNS));
  assert.deepEqual(seen(drawn.map((e) => e.subject.colour)), new Set(COLOUR_NAMES));
  assert.deepEqual(seen(drawn.map((e) => e.subject.pattern)), new Set(PATTERNS));
  assert.deepEqual(seen(drawn.map((e) => e.subject.motif)), new Set(MOTIFS));
  assert.deepEqual(seen(drawn.map((e) => e.scene)), new Set(SCENES.map((s) => s.name)));
  assert.deepEqual(seen(drawn.map((e) => e.accessory)), new Set(ACCESSORIES.map((a) => a.name)));
  assert.deepEqual(seen(drawn.map((e) => e.property)), new Set(PROPERTIES));
  const tokens = drawn
    .map((e) => e.caption.split(' ').filter((word) => (RARE_TOKENS as readonly string[]).includes(word)))
    .filter((found) => found.length > 0);
  assert.deepEqual(seen(tokens.flat()), new Set(RARE_TOKENS));
  assert.ok(
    Math.abs(tokens.length / SAMPLES - 0.12) < 0.01,
    `${tokens.length / SAMPLES} of the captions have a rare token`,
  );
  for (const e of drawn) assert.ok(e.accessory === undefined || isLive(e.subject.noun));
});

test('captions and DreamBench prompts use only the words of the vocabulary, and all of them', () => {
  const vocabulary = worldVocabulary();
  assert.deepEqual(vocabulary, [...new Set(vocabulary)].sort());
  const captions = samples().map((e) => e.caption);
  const prompts = NOUNS.flatMap((noun) => RARE_TOKENS.flatMap((token) => dreamBenchPrompts(noun, token)));
  const used = new Set([...captions, ...prompts].flatMap((text) => text.toLowerCase().split(' ')));
  assert.deepEqual([...used].sort(), vocabulary);
});

test('labels say what the caption says', () => {
  for (const example of samples(5000)) {
    const labels: Labels = labelsOf(example);
    const { caption } = example;
    assert.ok(caption.includes(NOUNS[labels.noun]!), caption);
    const { phrase } = SCENES[labels.scene]!;
    assert.ok(caption.endsWith(phrase), caption);
    if (phrase === '')
      for (const scene of SCENES.slice(1)) assert.ok(!caption.includes(scene.phrase), caption);
    // A colour that stands before the noun is the subject's main colour.
    const before = caption.slice(0, caption.indexOf(NOUNS[labels.noun]!)).split(' ');
    const named = before.find((word) => word in COLOURS);
    if (named !== undefined) assert.equal(named, COLOUR_NAMES[labels.colour], caption);
    const pattern = PATTERNS.find((p) => before.includes(p));
    if (pattern !== undefined && labels.pattern !== undefined)
      assert.equal(pattern, PATTERNS[labels.pattern], caption);
  }
});

test('the pattern is a label where it shows: everywhere but under clothes', async () => {
  const render = (depiction: Depiction) => renderSvg(drawSvg(depiction, 64, new Random(3)), 64);
  const accessories = [undefined, ...ACCESSORIES.map((a) => a.name)];
  for (const noun of NOUNS) {
    for (const accessory of isLive(noun) ? accessories : [undefined]) {
      const worn = PATTERNS.map((pattern) => ({
        subject: subject({ noun, pattern }),
        scene: 'studio' as const,
        accessory,
      }));
      const labels = worn.map((depiction) => labelsOf(depiction).pattern);
      const pictures = await Promise.all(worn.map(render));
      // Under clothes, the edge of the body shows through by a level or two.
      const alike = pictures.every((picture) => picture.every((v, i) => Math.abs(v - pictures[0]![i]!) <= 3));
      assert.deepEqual(
        labels,
        PATTERNS.map((_, label) => (alike ? undefined : label)),
        `${noun}, ${accessory ?? 'unclothed'}`,
      );
    }
  }
});

test('descriptions follow the order of DreamBench', () => {
  const scene = 'beach';
  assert.equal(describe({ subject: subject({}), scene }, {}), 'a backpack on the beach');
  assert.equal(
    describe({ subject: subject({}), scene }, { token: 'sks', colour: true }),
    'a red sks backpack on the beach',
  );
  assert.equal(
    describe({ subject: subject({}), scene: 'studio' }, { token: 'sks', photo: true, bare: true }),
    'a photo of sks backpack',
  );
  const star = subject({ colour: 'orange', pattern: 'dotted', secondColour: 'blue', motif: 'star' });
  assert.equal(
    describe({ subject: star, scene: 'studio' }, { colour: true, pattern: true }),
    'an orange dotted backpack',
  );
  assert.equal(
    describe({ subject: star, scene: 'studio' }, { colour: true, pattern: true, secondColour: true }),
    'an orange backpack with blue dots',
  );
  assert.equal(
    describe({ subject: star, scene: 'studio' }, { colour: true, pattern: true, motif: true }),
    'an orange dotted backpack with a star',
  );
  assert.equal(
    describe(
      { subject: subject({ noun: 'dog' }), scene: 'studio', accessory: 'santa hat' },
      { token: 'ohwx', tokenFirst: true, colour: true },
    ),
    'a ohwx red dog wearing a santa hat',
  );
});

test('DreamBench prompts are the published ones', () => {
  const objects = dreamBenchPrompts('backpack', 'sks');
  assert.equal(objects.length, 25);
  assert.equal(objects[0], 'a sks backpack in the jungle');
  assert.equal(objects[12], 'a sks backpack with the Eiffel Tower in the background');
  assert.equal(objects[19], 'a sks backpack on top of a white rug');
  assert.equal(objects[24], 'a cube shaped sks backpack');
  const live = dreamBenchPrompts('dog', 'sks');
  assert.equal(live.length, 25);
  assert.equal(live[9], 'a sks dog on top of a purple rug in a forest');
  assert.equal(live[13], 'a sks dog wearing a black top hat and a monocle');
  assert.equal(live[20], 'a red sks dog');
  assert.equal(dreamBenchPrompts('cat', '')[22], 'a shiny cat');
});

/** The share of pixels within a distance of a colour. */
function share(pixels: Uint8Array, colour: string): number {
  const rgb = [1, 3, 5].map((i) => Number.parseInt(colour.slice(i, i + 2), 16));
  let near = 0;
  for (let i = 0; i < pixels.length; i += 3) {
    if (Math.hypot(pixels[i]! - rgb[0]!, pixels[i + 1]! - rgb[1]!, pixels[i + 2]! - rgb[2]!) < 40) near++;
  }
  return near / (pixels.length / 3);
}

test('a subject shows its main colour, much more of it than the same subject in another colour', async () => {
  const random = new Random(2);
  for (const noun of NOUNS) {
    for (const colour of COLOUR_NAMES) {
      const other = contrasting(colour)[0]!;
      const shares: number[] = [];
      for (const main of [colour, other]) {
        const shown = subject({ noun, colour: main, secondColour: main === 'teal' ? 'orange' : 'teal' });
        const pixels = await renderSvg(
          drawSvg({ subject: shown, scene: 'studio' }, 64, random.derive(noun)),
          64,
        );
        shares.push(share(pixels, COLOURS[colour]));
      }
      assert.ok(
        shares[0]! - shares[1]! > 0.04,
        `${colour} ${noun}: ${shares[0]} of the picture, ${shares[1]} without it`,
      );
    }
  }
});

test('every scene differs from every other behind the same subject', async () => {
  const pictures = await Promise.all(
    SCENES.map((scene) =>
      renderSvg(drawSvg({ subject: subject({ noun: 'can' }), scene: scene.name }, 64, new Random(1)), 64),
    ),
  );
  pictures.forEach((a, i) => {
    pictures.slice(0, i).forEach((b, j) => {
      let difference = 0;
      for (let k = 0; k < a.length; k++) difference += Math.abs(a[k]! - b[k]!);
      assert.ok(
        difference / a.length > 15,
        `${SCENES[i]!.name} and ${SCENES[j]!.name} differ by ${difference / a.length} a value`,
      );
    });
  });
});

test('examples are rendered by their number, whatever is rendered with them', async () => {
  const many = await renderExamples(9, 0, 12, 64);
  const [alone] = await renderExamples(9, 7, 1, 64);
  assert.deepEqual(alone, many[7]);
  assert.equal(alone!.pixels.length, 64 * 64 * 3);
});

test('the pictures of a subject are different PNG files', async () => {
  const pictures = await subjectPictures(HELD_OUT_SUBJECTS[0]!, 5, 64, 1);
  assert.equal(new Set(pictures.map((png) => Buffer.from(png).toString('base64'))).size, 5);
  for (const png of pictures) assert.deepEqual([...png.subarray(1, 4)], [80, 78, 71]);
});
