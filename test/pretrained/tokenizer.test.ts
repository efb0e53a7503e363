import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { cp, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import fc from 'fast-check';
import { variedPrompts } from '../../scripts/goldens/prompts.js';
import { sampleWords } from '../../scripts/goldens/word-tokenizer.js';
import { ModelError } from '../../src/errors.js';
import { openTokenizer } from '../../src/pretrained/tokenizer.js';
import { wordTokenizerFiles, writeWordTokenizer } from '../../src/pretrained/word-tokenizer.js';
import { goldenJson, goldenPath } from '../goldens.js';
import { shippedTokenizer, tokenizerComponent } from '../shipped-tokenizer.js';
import { temporaryFolder } from '../temporary-folder.js';

interface Golden {
  readonly prompts: readonly string[];
  readonly tokenizers: Readonly<Record<string, { maxLength: number; padId: number; ids: number[][] }>>;
}

const golden = goldenJson<Golden>('tokenizer/cases.json');
const goldenFolder = (name: string): string => fileURLToPath(goldenPath(`tokenizer/${name}`));

for (const [name, { maxLength, padId, ids }] of Object.entries(golden.tokenizers)) {
  test(`${name}: the ids of transformers' CLIPTokenizer, prompt by prompt`, async () => {
    const tokenizer = await openTokenizer(await tokenizerComponent(goldenFolder(name)));
    assert.equal(tokenizer.maxLength, maxLength);
    assert.equal(tokenizer.padId, padId);
    golden.prompts.forEach((prompt, i) => {
      const encoded = tokenizer.encode(prompt);
      const expected = [...ids[i]!, ...Array<number>(maxLength - ids[i]!.length).fill(padId)];
      assert.deepEqual(encoded.ids, expected, JSON.stringify(prompt));
      assert.equal(encoded.length, ids[i]!.length);
    });
  });
}

test('the shipped vocabulary of CLIP gives the ids of CLIPTokenizer built from it', async () => {
  const { phrases, ids } = goldenJson<{ phrases: string[]; ids: number[][] }>('tokenizer/clip.json');
  const tokenizer = await shippedTokenizer();
  assert.equal(tokenizer.vocabularySize, 49408);
  assert.deepEqual([tokenizer.startId, tokenizer.endId, tokenizer.padId], [49406, 49407, 49407]);
  [...golden.prompts, ...phrases].forEach((prompt, i) => {
    const { ids: found, length } = tokenizer.encode(prompt);
    assert.deepEqual(found.slice(0, length), ids[i], JSON.stringify(prompt));
  });
});

test('the ids of 10,000 prompts of all kinds, by their hashes', async () => {
  const { prompts, sha256 } = goldenJson<{ prompts: number; sha256: string[] }>('tokenizer/varied.json');
  assert.equal(prompts, 10_000);
  const tokenizer = await shippedTokenizer();
  const rows = variedPrompts(prompts).map((prompt) => tokenizer.encode(prompt).ids);
  sha256.forEach((expected, i) => {
    const ids = Int32Array.from(rows.slice(i * 100, (i + 1) * 100).flat());
    assert.equal(createHash('sha256').update(ids).digest('hex'), expected, `prompts ${i * 100} and on`);
  });
});

test('what does not fit is cut before the end token, and told', async () => {
  const tokenizer = await openTokenizer(await tokenizerComponent(goldenFolder('words')));
  const whole = tokenizer.encode('a photo of sks backpack');
  assert.equal(whole.truncatedText, undefined);
  assert.equal(whole.length, 7);
  const room = tokenizer.maxLength - 2;
  const long = tokenizer.encode(`${'a '.repeat(room - 1)}photo In the Jungle, please`);
  assert.equal(long.length, tokenizer.maxLength);
  assert.equal(long.ids.at(-1), tokenizer.endId);
  assert.equal(long.truncatedText, 'in the jungle , please');
  assert.equal(tokenizer.encode('a '.repeat(room)).truncatedText, undefined);
});

test('any text gives maxLength ids between start and padding, all within the vocabulary', async () => {
  const tokenizer = await openTokenizer(await tokenizerComponent(goldenFolder('words')));
  fc.assert(
    fc.property(fc.string({ unit: 'binary', maxLength: 60 }), (prompt) => {
      const { ids, length } = tokenizer.encode(prompt);
      assert.equal(ids.length, tokenizer.maxLength);
      assert.equal(ids[0], tokenizer.startId);
      assert.equal(ids[length - 1], tokenizer.endId);
      assert.ok(ids.every((id) => Number.isInteger(id) && id >= 0 && id < tokenizer.vocabularySize));
      assert.ok(ids.slice(length).every((id) => id === tokenizer.padId));
    }),
  );
});

test('the limit is the smaller one of the tokenizer and the text encoder', async () => {
  const words = await tokenizerComponent(goldenFolder('words'));
  assert.equal((await openTokenizer(words, 77)).maxLength, 24);
  assert.equal((await openTokenizer(words, 10)).maxLength, 10);
});

test('the word tokenizer that transformers was asked about is what the builder makes', async (t) => {
  const folder = join(await temporaryFolder(t), 'tokenizer');
  await writeWordTokenizer(folder, sampleWords, 24);
  for (const name of ['vocab.json', 'merges.txt', 'tokenizer_config.json', 'special_tokens_map.json']) {
    assert.equal(
      await readFile(join(folder, name), 'utf8'),
      await readFile(join(goldenFolder('words'), name), 'utf8'),
      name,
    );
  }
});

test('every word is one id, whatever words it shares letters with', async (t) => {
  const folder = await temporaryFolder(t);
  const word = fc.stringMatching(/^[a-e]{1,6}$/);
  await fc.assert(
    fc.asyncProperty(fc.uniqueArray(word, { minLength: 1, maxLength: 30 }), async (words) => {
      for (const [name, text] of wordTokenizerFiles(words, 16)) await writeFile(join(folder, name), text);
      const tokenizer = await openTokenizer(await tokenizerComponent(folder));
      const seen = new Set<number>();
      for (const w of words) {
        const { ids, length } = tokenizer.encode(` ${w.toUpperCase()} `);
        assert.equal(length, 3, w);
        seen.add(ids[1]!);
      }
      assert.equal(seen.size, words.length);
    }),
    { numRuns: 30 },
  );
});

test('the builder does not depend on the order of the words, and refuses what cannot be one token', () => {
  const words = ['cat', 'car', 'cart', 'art', 'tar', '7', 'été'];
  assert.deepEqual(wordTokenizerFiles([...words].reverse(), 16), wordTokenizerFiles([...words, 'cat'], 16));
  for (const bad of ['', 'two words', 't-shirt', 'Cat', '64', 'o’clock']) {
    assert.throws(() => wordTokenizerFiles([bad], 16), /internal: .* cannot be one token/);
  }
});

async function copy(t: TestContext, name: string): Promise<string> {
  const folder = join(await temporaryFolder(t), 'tokenizer');
  await cp(goldenFolder(name), folder, { recursive: true });
  return folder;
}

async function edit(
  folder: string,
  name: string,
  change: (value: Record<string, unknown>) => void,
): Promise<void> {
  const value = JSON.parse(await readFile(join(folder, name), 'utf8')) as Record<string, unknown>;
  change(value);
  await writeFile(join(folder, name), JSON.stringify(value));
}

const malformed: readonly {
  what: string;
  from?: string;
  break: (folder: string) => Promise<unknown>;
  message: RegExp;
}[] = [
  {
    what: 'no merges',
    break: (f) => rm(join(f, 'merges.txt')),
    message: /has neither tokenizer\.json nor both of vocab\.json and merges\.txt/,
  },
  {
    what: 'a vocabulary that is no JSON',
    break: (f) => writeFile(join(f, 'vocab.json'), '{"a": '),
    message: /vocab\.json is not valid JSON/,
  },
  {
    what: 'an id that is no number',
    break: (f) =>
      edit(f, 'vocab.json', (v) => {
        v.a = 'x';
      }),
    message: /vocab\.json: token "a" has the id "x"/,
  },
  {
    what: 'an id twice',
    break: (f) =>
      edit(f, 'vocab.json', (v) => {
        v.a = v.b;
      }),
    message: /tokens ".*" and ".*" have the same id/,
  },
  {
    what: 'a merge of three',
    break: (f) => writeFile(join(f, 'merges.txt'), '#version: 0.2\na b c\n'),
    message: /merges\.txt: merge 1 is "a b c"/,
  },
  {
    what: 'a merge into nothing known',
    break: (f) => writeFile(join(f, 'merges.txt'), '#version: 0.2\nq q\n'),
    message: /merge 1 makes the token "qq", which is not in the vocabulary/,
  },
  {
    what: 'no end token',
    break: (f) =>
      edit(f, 'vocab.json', (v) => {
        delete v['<|endoftext|>'];
      }),
    message: /special token "<\|endoftext\|>" is not in the vocabulary/,
  },
  {
    what: 'another tokenizer class',
    break: (f) =>
      edit(f, 'tokenizer_config.json', (v) => {
        v.tokenizer_class = 'T5Tokenizer';
      }),
    message: /"tokenizer_class" is "T5Tokenizer".*supported: "CLIPTokenizer"/,
  },
  {
    what: 'letter case kept',
    break: (f) =>
      edit(f, 'tokenizer_config.json', (v) => {
        v.do_lower_case = false;
      }),
    message: /"do_lower_case" is false/,
  },
  {
    what: 'no room',
    break: (f) =>
      edit(f, 'tokenizer_config.json', (v) => {
        v.model_max_length = 2;
      }),
    message: /model_max_length is 2; expected a whole number of at least 3/,
  },
  {
    what: 'another model in tokenizer.json',
    from: 'saved',
    break: (f) =>
      edit(f, 'tokenizer.json', (v) => {
        v.model = { type: 'Unigram' };
      }),
    message: /tokenizer\.json: the setting "model\.type" is "Unigram"/,
  },
  {
    what: 'whole-word added tokens',
    from: 'saved',
    break: (f) =>
      edit(f, 'tokenizer.json', (v) => {
        v.added_tokens = [{ id: 1, content: 'x', single_word: true }];
      }),
    message: /added token "x" has "single_word" true/,
  },
];

for (const { what, from = 'words', break: breakIt, message } of malformed) {
  test(`malformed tokenizer: ${what}`, async (t) => {
    const folder = await copy(t, from);
    await breakIt(folder);
    await assert.rejects(
      async () => openTokenizer(await tokenizerComponent(folder)),
      (error) => {
        assert.ok(error instanceof ModelError, String(error));
        assert.match(error.message, message);
        return true;
      },
    );
  });
}
