import assert from 'node:assert/strict';
import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { ENCODERS, promptRetrieval, subjectRetrieval } from '../../bench/encoder-retrieval.js';
import { createNodeEngine } from '../../src/engine/node.js';
import { openImageEncoder } from '../../src/pretrained/image-encoder.js';

const folder = fileURLToPath(new URL('../../../models/encoders/', import.meta.url));
const engine = createNodeEngine({ threads: 1 });
after(() => engine.close());

// Chance is 1 in 20. docs/encoders.md has what each reaches among 200 subjects and 100 prompts.
const COUNT = 20;
const LEAST = 0.8;

for (const { name, kind } of ENCODERS) {
  test(`${name}, as it ships, finds what it has not seen`, async () => {
    const path = join(folder, name);
    if (kind === 'dino') {
      const share = await subjectRetrieval(engine, path, COUNT);
      assert.ok(share >= LEAST, `${share} of the subjects found`);
    } else {
      const { textToImage, imageToText } = await promptRetrieval(engine, path, COUNT);
      assert.ok(textToImage >= LEAST, `${textToImage} of the pictures found by their prompts`);
      assert.ok(imageToText >= LEAST, `${imageToText} of the prompts found by their pictures`);
    }
  });
}

test('the encoders that ship differ from each other, and take at most 8 MB together', async () => {
  const digests = await Promise.all(
    ENCODERS.map(async ({ name }) => (await openImageEncoder(join(folder, name))).digest()),
  );
  assert.equal(new Set(digests).size, ENCODERS.length);
  let bytes = 0;
  for (const file of await readdir(folder, { recursive: true }))
    bytes += (await stat(join(folder, file))).size;
  assert.ok(bytes > 0 && bytes <= 8e6, `${bytes} bytes`);
});
