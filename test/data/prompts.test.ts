import assert from 'node:assert/strict';
import { test } from 'node:test';
import { mentionsSubject, readSubjectPrompt, scenePrompts } from '../../src/data/prompts.js';
import { InputError } from '../../src/errors.js';

test('the rare token is what the instance prompt has and the class prompt has not', () => {
  const cases: [string, string, string, string][] = [
    ['a photo of sks backpack', 'a photo of backpack', 'sks', 'backpack'],
    ['a photo of sks stuffed animal', 'a photo of stuffed animal', 'sks', 'stuffed animal'],
    ['  A photo of SKS dog. ', 'a dog', 'sks', 'dog'],
    ['a photo of zwx hta cat', 'a photo of a cat', 'zwx hta', 'cat'],
    ['a <new1> toy', 'a toy', '<new1>', 'toy'],
    ['ein Bild von ohwx Hund', 'ein Bild von Hund', 'ohwx', 'ein bild von hund'],
  ];
  for (const [instancePrompt, classPrompt, token, className] of cases) {
    const subject = readSubjectPrompt({ instancePrompt, classPrompt });
    assert.deepEqual([subject.token, subject.className], [token, className]);
    assert.equal(subject.instancePrompt, instancePrompt.trim());
  }
});

test('without a class prompt it is made by leaving the token out', () => {
  assert.deepEqual(readSubjectPrompt({ instancePrompt: 'a photo of sks  rubber duck' }), {
    instancePrompt: 'a photo of sks rubber duck',
    classPrompt: 'a photo of rubber duck',
    token: 'sks',
    className: 'rubber duck',
  });
});

test('a prompt without a rare token, or an empty one, is refused with an example', () => {
  const refused = (prompts: { instancePrompt: string; classPrompt?: string }, message: RegExp) => {
    assert.throws(
      () => readSubjectPrompt(prompts),
      (error: unknown) => {
        assert.ok(error instanceof InputError);
        assert.match(error.message, message);
        assert.match(error.message, /"a photo of sks backpack"/);
        return true;
      },
    );
  };
  refused(
    { instancePrompt: 'a photo of dog', classPrompt: 'a photo of dog' },
    /"a photo of dog" has no rare token/,
  );
  refused({ instancePrompt: 'a picture of the dog', classPrompt: 'dog' }, /no rare token/);
  refused({ instancePrompt: 'a photo of dog' }, /no rare token/);
  refused({ instancePrompt: '   ', classPrompt: 'a dog' }, /instance prompt is empty/);
  refused({ instancePrompt: 'a sks dog', classPrompt: '' }, /class prompt is empty/);
  refused({ instancePrompt: 'a photo of sks', classPrompt: 'a photo' }, /names no kind of thing/);
});

test('scenes are told with and without the token', () => {
  const subject = { token: 'sks', className: 'stuffed animal' };
  assert.deepEqual(scenePrompts(subject, ['on the beach', 'in the snow']), [
    'a sks stuffed animal on the beach',
    'a sks stuffed animal in the snow',
  ]);
  assert.deepEqual(scenePrompts(subject, ['on the beach'], { withToken: false }), [
    'a stuffed animal on the beach',
  ]);
});

test('a prompt speaks of the subject when it has every word of the token', () => {
  assert.equal(mentionsSubject('A SKS, backpack', { token: 'sks' }), true);
  assert.equal(mentionsSubject('a skskater', { token: 'sks' }), false);
  assert.equal(mentionsSubject('a zwx cat', { token: 'zwx hta' }), false);
});
