import assert from 'node:assert/strict';
import { mkdir, writeFile } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { UsageError } from '../../src/errors.js';
import { readHubEnvironment, type Variables } from '../../src/pretrained/hub-environment.js';
import { temporaryFolder } from '../temporary-folder.js';

test('the cache is where the other tools of Hugging Face have it', async () => {
  const cases: [Variables, string][] = [
    [{}, join(homedir(), '.cache/huggingface/hub')],
    [{ XDG_CACHE_HOME: '/c' }, '/c/huggingface/hub'],
    [{ HF_HOME: '/h', XDG_CACHE_HOME: '/c' }, '/h/hub'],
    [{ HF_HOME: '~/h' }, join(homedir(), 'h/hub')],
    [{ HUGGINGFACE_HUB_CACHE: '/old', HF_HOME: '/h' }, '/old'],
    [{ HF_HUB_CACHE: '/new', HUGGINGFACE_HUB_CACHE: '/old', HF_HOME: '/h' }, '/new'],
    [{ HF_HUB_CACHE: '', HF_HOME: '/h' }, '/h/hub'],
  ];
  for (const [variables, expected] of cases) {
    // Without a home of its own a case would read the token of whoever runs the tests.
    const { cacheFolder } = await readHubEnvironment({ HF_TOKEN: 'x', ...variables });
    assert.equal(cacheFolder, expected, JSON.stringify(variables));
  }
});

test('the token comes from the environment, or from the file that logging in writes', async (t) => {
  const home = await temporaryFolder(t);
  const token = async (variables: Variables) =>
    (await readHubEnvironment({ HF_HOME: home, ...variables })).token;
  assert.equal(await token({}), undefined);
  await writeFile(join(home, 'token'), 'hf_file\n');
  await writeFile(join(home, 'other'), ' hf_other ');
  assert.equal(await token({}), 'hf_file');
  assert.equal(await token({ HF_TOKEN_PATH: join(home, 'other') }), 'hf_other');
  assert.equal(await token({ HUGGING_FACE_HUB_TOKEN: 'hf_old' }), 'hf_old');
  assert.equal(await token({ HF_TOKEN: 'hf_new', HUGGING_FACE_HUB_TOKEN: 'hf_old' }), 'hf_new');
  assert.equal(await token({ HF_TOKEN: 'hf_new', HF_HUB_DISABLE_IMPLICIT_TOKEN: 'yes' }), undefined);
  await mkdir(join(home, 'folder'));
  await assert.rejects(token({ HF_TOKEN_PATH: join(home, 'folder') }), (error) => {
    assert.ok(error instanceof UsageError);
    assert.match(error.message, /folder cannot be read .*or set HF_TOKEN/);
    return true;
  });
});

test('the endpoint, and what is switched off', async () => {
  const read = (variables: Variables) => readHubEnvironment({ HF_TOKEN: 'x', ...variables });
  assert.deepEqual(await read({}), {
    endpoint: 'https://huggingface.co',
    cacheFolder: join(homedir(), '.cache/huggingface/hub'),
    token: 'x',
    offline: false,
    xet: true,
  });
  assert.equal(
    (await read({ HF_ENDPOINT: 'https://mirror.example/hub//' })).endpoint,
    'https://mirror.example/hub',
  );
  for (const yes of ['1', 'ON', 'True', 'yes']) {
    assert.equal((await read({ HF_HUB_OFFLINE: yes })).offline, true);
    assert.equal((await read({ TRANSFORMERS_OFFLINE: yes })).offline, true);
    assert.equal((await read({ HF_HUB_DISABLE_XET: yes })).xet, false);
  }
  assert.equal((await read({ HF_HUB_OFFLINE: '0' })).offline, false);
  for (const endpoint of ['huggingface.co', 'ftp://x', 'nonsense']) {
    await assert.rejects(read({ HF_ENDPOINT: endpoint }), (error) => {
      assert.ok(error instanceof UsageError);
      assert.match(
        error.message,
        /HF_ENDPOINT is ".*"; expected an address such as https:\/\/huggingface\.co/,
      );
      return true;
    });
  }
});
