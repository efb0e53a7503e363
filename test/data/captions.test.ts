import assert from 'node:assert/strict';
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { readCaptions } from '../../src/data/captions.js';
import { captionPrompt } from '../../src/data/prompts.js';
import { readReferenceImages } from '../../src/data/reference-images.js';
import { InputError } from '../../src/errors.js';
import { temporaryFolder } from '../temporary-folder.js';
import { writePictures } from '../workflows/tiny-run.js';

const line = (file_name: string, text: string): string => JSON.stringify({ file_name, text });

test("a picture's own text file goes before its line in metadata.jsonl; others have no caption", async (t) => {
  const folder = await writePictures(join(await temporaryFolder(t), 'images'));
  await writeFile(
    join(folder, 'metadata.jsonl'),
    `${line('0.png', ' sks  dog\tasleep ')}\n\n${line('1.png', 'sks dog running')}\n`,
  );
  await writeFile(join(folder, '1.txt'), '\ufeffa photo of sks dog\non a sofa\n');
  const { images, warnings } = await readReferenceImages(folder, { resolution: 16, captions: true });
  assert.deepEqual(
    images.map(({ caption }) => caption),
    [
      { text: 'sks dog asleep', origin: `${join(folder, 'metadata.jsonl')}:1` },
      { text: 'a photo of sks dog on a sofa', origin: join(folder, '1.txt') },
      undefined,
    ],
  );
  assert.deepEqual(warnings, []);

  const without = await readReferenceImages(folder, { resolution: 16 });
  assert.ok(without.images.every(({ caption }) => caption === undefined));
  assert.match(without.warnings.join(), /ignored what is not a picture: 1\.txt, metadata\.jsonl/);
});

test('text files of other names are still reported, and so are lines about pictures that are not there', async (t) => {
  const folder = await writePictures(join(await temporaryFolder(t), 'images'), 1);
  await writeFile(join(folder, 'notes.txt'), 'milk, eggs');
  await writeFile(join(folder, 'metadata.jsonl'), line('O.png', 'sks dog'));
  const { warnings } = await readReferenceImages(folder, { resolution: 16, captions: true });
  assert.match(warnings[0]!, /ignored what is not a picture: notes\.txt\./);
  assert.match(warnings[1]!, /metadata\.jsonl:1: names "O\.png", which is not among the pictures/);
});

test('captions that cannot be read are told with file and line', async (t) => {
  const folder = join(await temporaryFolder(t), 'images');
  await mkdir(folder);
  const picture = join(folder, 'a.png');
  const refused = async (name: string, contents: string | Uint8Array, expected: RegExp) => {
    await writeFile(join(folder, 'a.txt'), name === 'a.txt' ? contents : 'fine');
    await writeFile(join(folder, 'metadata.jsonl'), name === 'metadata.jsonl' ? contents : '');
    await assert.rejects(
      readCaptions([picture]),
      (error) => error instanceof InputError && expected.test(error.message),
      String(expected),
    );
  };
  const good = line('a.png', 'sks dog');
  await refused(
    'metadata.jsonl',
    `${good}\n{"file_name": "b.png", `,
    /metadata\.jsonl:2: this line is not JSON/,
  );
  await refused('metadata.jsonl', `\n["a.png"]`, /metadata\.jsonl:2: this line is not an object/);
  await refused(
    'metadata.jsonl',
    `{"file_name": "a.png"}`,
    /metadata\.jsonl:1: "text" is missing; expected text/,
  );
  await refused('metadata.jsonl', `{"file_name": 7, "text": "x"}`, /metadata\.jsonl:1: "file_name" is 7;/);
  await refused('metadata.jsonl', line('a.png', ' '), /metadata\.jsonl:1: "text" is " ";/);
  await refused(
    'metadata.jsonl',
    `${good}\n${good}`,
    /metadata\.jsonl:2: "a\.png" has a caption already, in .*:1\./,
  );
  await refused('a.txt', '\n \n', /a\.txt: the caption is empty/);
  await refused('a.txt', Uint8Array.of(0x61, 0xff), /a\.txt: expected text in UTF-8/);
  await refused('a.txt', 'x'.repeat(70_000), /a\.txt: 70000 bytes are too many/);
});

test('a caption becomes an instance prompt: {} is the subject, other captions stay as they are', () => {
  const subject = { token: 'sks', className: 'dog' };
  const prompt = (text: string) => captionPrompt({ text, origin: 'a.txt' }, subject);
  assert.equal(prompt('a {} beside another {}'), 'a sks dog beside another sks dog');
  assert.equal(prompt('Sks, asleep'), 'Sks, asleep');
  assert.throws(
    () => prompt('a dog on a sofa'),
    (error) => error instanceof InputError && /^a\.txt: .*the rare word "sks"/.test(error.message),
  );
});
