import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, readdir, readFile, readlink, rm, stat, symlink, truncate, writeFile } from 'node:fs/promises';
import type { ServerResponse } from 'node:http';
import { type AddressInfo, createServer } from 'node:net';
import { join, resolve } from 'node:path';
import { type TestContext, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { CancelledError, HubError, type HubFault, ModelError, OutputError } from '../../src/errors.js';
import type { DownloadProgress } from '../../src/pretrained/hub.js';
import { type LocateOptions, locateModel } from '../../src/pretrained/model-reference.js';
import { StableDiffusion } from '../../src/pretrained/stable-diffusion.js';
import { goldenPath } from '../goldens.js';
import { temporaryFolder } from '../temporary-folder.js';
import { type Asked, filesOf, gitDigest, HubImitation, isLarge, refuse, sha256 } from './hub-imitation.js';

const name = 'someone/tiny-diffusion';
const whole = filesOf(fileURLToPath(goldenPath('models/sd1-tiny')));
const sharded = filesOf(fileURLToPath(goldenPath('models/sd2-tiny-sharded')));
const unet = 'unet/diffusion_pytorch_model.safetensors';
const unetDigest = sha256(whole.get(unet)!);

/** What repositories hold besides, and what is never to be fetched. */
const ballast = [
  'README.md',
  '.gitattributes',
  'v1-5-pruned.ckpt',
  'v1-5-pruned.safetensors',
  'feature_extractor/preprocessor_config.json',
  'safety_checker/config.json',
  'safety_checker/model.safetensors',
  'unet/diffusion_pytorch_model.bin',
  'unet/diffusion_pytorch_model.non_ema.safetensors',
  'unet/diffusion_pytorch_model.fp16.bin',
  'unet/diffusion_flax_model.msgpack',
  'unet/model.onnx',
  'text_encoder/pytorch_model.bin',
  'text_encoder/flax_model.msgpack',
];

function withBallast(files: ReadonlyMap<string, Buffer>): Map<string, Buffer> {
  return new Map([...files, ...ballast.map((path) => [path, Buffer.from(`ballast ${path}`)] as const)]);
}

/** Both precisions in one repository: here the half one is the same bytes with a mark at the end of its name. */
function withHalf(files: ReadonlyMap<string, Buffer>): Map<string, Buffer> {
  const half = filesOf(fileURLToPath(goldenPath('models/half-tiny')));
  return new Map([...half, ...files]);
}

async function setUp(t: TestContext, files: ReadonlyMap<string, Buffer> = whole) {
  const hub = await HubImitation.start(t, name, files);
  const home = await temporaryFolder(t);
  const variables = { HF_ENDPOINT: hub.endpoint, HF_HOME: home };
  const warnings: string[] = [];
  const locate = (reference = name, options: LocateOptions = {}) =>
    locateModel(reference, {
      variables,
      patience: { pause: 1, attempts: 3 },
      onWarning: (message) => warnings.push(message),
      ...options,
    });
  const cache = join(home, 'hub', 'models--someone--tiny-diffusion');
  return { hub, home, variables, warnings, locate, cache };
}

function fault(expected: HubFault, ...messages: RegExp[]): (error: unknown) => boolean {
  return (error) => {
    assert.ok(error instanceof HubError, String(error));
    assert.equal(error.fault, expected, error.message);
    for (const message of messages) assert.match(error.message, message);
    return true;
  };
}

const paths = (asked: readonly Asked[]): string[] => asked.map(({ path }) => path.split('?')[0]!);

test('only what a model is read from is fetched, into the layout that Python reads, and it opens', async (t) => {
  const { hub, locate, cache, warnings } = await setUp(t, withBallast(whole));
  const seen: DownloadProgress[] = [];
  const { path, identity } = await locate(name, { onProgress: (progress) => seen.push(progress) });
  const commit = (await readFile(join(cache, 'refs/main'), 'utf8')).trim();
  assert.equal(path, join(cache, 'snapshots', commit));
  assert.equal(identity, `hf://${name}@${commit}`);
  assert.deepEqual([...filesOf(path).keys()].sort(), [...whole.keys()].sort());
  assert.deepEqual(filesOf(path), whole);

  const etags = [...whole].map(([file, bytes]) => (isLarge(file) ? sha256(bytes) : gitDigest(bytes)));
  assert.deepEqual((await readdir(join(cache, 'blobs'))).sort(), etags.sort());
  assert.equal(await readlink(join(path, unet)), join('../../../blobs', unetDigest));

  const asked = hub.asked.map(({ path: p }) => p);
  for (const unwanted of ballast) assert.ok(!asked.some((p) => p.endsWith(`/${unwanted}`)), unwanted);
  for (const { headers, server } of hub.asked) {
    const usual = [
      'host',
      'connection',
      'accept',
      'accept-language',
      'sec-fetch-mode',
      'accept-encoding',
      'range',
    ];
    assert.deepEqual(
      Object.keys(headers).filter((h) => !usual.includes(h)),
      ['user-agent'],
      server,
    );
    assert.equal(headers['user-agent'], 'portrayal');
  }

  const total = [...whole.values()].reduce((sum, { length }) => sum + length, 0);
  assert.deepEqual(new Set(seen.map(({ totalBytes }) => totalBytes)), new Set([total]));
  assert.equal(seen.at(-1)!.bytes, total);
  assert.ok(seen.every(({ bytes }, i) => i === 0 || bytes >= seen[i - 1]!.bytes));
  assert.deepEqual(warnings, []);

  const model = await StableDiffusion.open(path);
  assert.equal(model.folder.pipeline, 'StableDiffusionPipeline');
});

test('what is cached costs one request for a branch, and none for a commit or without a connection', async (t) => {
  const { hub, locate } = await setUp(t, withBallast(whole));
  const first = await locate();
  hub.takePaths();
  assert.deepEqual(await locate(), first);
  assert.deepEqual(hub.takePaths(), [`/api/models/${name}/revision/main`]);
  assert.deepEqual(await locate(first.identity), first);
  assert.deepEqual(await locate(`${name}@${first.identity.split('@')[1]}`), first);
  assert.deepEqual(await locate(name, { offline: true }), first);
  assert.deepEqual(hub.takePaths(), []);
});

test('a branch that has moved is followed; what has not changed is not fetched again', async (t) => {
  const { hub, locate, cache } = await setUp(t);
  const before = await locate();
  hub.takePaths();
  const scheduler = Buffer.from(whole.get('scheduler/scheduler_config.json')!.toString().replace('{', '{\n'));
  const commit = hub.commit('main', new Map([...whole, ['scheduler/scheduler_config.json', scheduler]]));
  const after = await locate();
  assert.equal(after.path, join(cache, 'snapshots', commit));
  assert.equal(await readFile(join(cache, 'refs/main'), 'utf8'), commit);
  assert.deepEqual(
    hub.takePaths().filter((p) => !p.startsWith('/api/')),
    [`/${name}/resolve/${commit}/scheduler/scheduler_config.json`],
  );
  assert.deepEqual(filesOf(before.path), whole);
});

test('other revisions: a tag, a pull request, and an address of a page', async (t) => {
  const { hub, locate, cache } = await setUp(t);
  const tagged = hub.commit('v1.0', whole);
  const proposed = hub.commit('refs/pr/1', whole);
  assert.equal((await locate(`${name}@v1.0`)).path, join(cache, 'snapshots', tagged));
  assert.equal((await locate(`${name}@refs/pr/1`)).path, join(cache, 'snapshots', proposed));
  assert.equal(await readFile(join(cache, 'refs/refs/pr/1'), 'utf8'), proposed);
  assert.equal(
    (await locate(`https://huggingface.co/${name}/tree/v1.0`)).path,
    join(cache, 'snapshots', tagged),
  );
});

test('shards are fetched with their index', async (t) => {
  const { locate } = await setUp(t, sharded);
  const { path } = await locate();
  assert.deepEqual(filesOf(path), sharded);
  await StableDiffusion.open(path);
});

test('one precision is fetched: the full one, or half where that is asked for', async (t) => {
  const { locate, hub } = await setUp(t, withHalf(whole));
  const full = await locate();
  assert.deepEqual(
    [...filesOf(full.path).keys()].filter((p) => /fp16/.test(p)),
    [],
  );
  hub.takePaths();
  const half = await locate(name, { variant: 'fp16' });
  const weights = [...filesOf(half.path).keys()].filter((p) => /fp16/.test(p));
  assert.deepEqual(weights, [
    'text_encoder/model.fp16.safetensors',
    'unet/diffusion_pytorch_model.fp16.safetensors',
    'vae/diffusion_pytorch_model.fp16.safetensors',
  ]);
  assert.equal(hub.takePaths().filter((p) => p.endsWith(unet)).length, 0);
});

test('where only the other precision exists it is taken, and known to be complete the next time', async (t) => {
  const { hub, locate, cache } = await setUp(t);
  const { path } = await locate(name, { variant: 'fp16' });
  assert.deepEqual(filesOf(path), whole);
  hub.takePaths();
  await locate(name, { variant: 'fp16' });
  assert.deepEqual(hub.takePaths(), [`/api/models/${name}/revision/main`]);
  const absent = filesOf(join(cache, '.no_exist', path.split('/').at(-1)!));
  assert.ok(absent.has('unet/diffusion_pytorch_model.fp16.safetensors'));
});

test('repositories that are not a model are refused before anything large is fetched', async (t) => {
  const pickled = new Map([...whole].filter(([path]) => path !== unet));
  pickled.set('unet/diffusion_pytorch_model.bin', Buffer.from('pickle'));
  const cases: [Map<string, Buffer>, RegExp][] = [
    [
      pickled,
      /only unet\/diffusion_pytorch_model\.bin: such files can run code.*never fetched or read\. Get unet\/diffusion_pytorch_model\.safetensors instead/,
    ],
    [
      new Map([...whole].filter(([path]) => !path.startsWith('vae/'))),
      /has no vae\/diffusion_pytorch_model\.safetensors/,
    ],
    [new Map([...whole].filter(([path]) => path !== 'vae/config.json')), /has no vae\/config\.json/],
    [new Map([['pytorch_lora_weights.safetensors', Buffer.from('x')]]), /looks like a LoRA/],
    [
      new Map([
        ['config.json', Buffer.from('{}')],
        ['model.safetensors', Buffer.from('x')],
      ]),
      /single network/,
    ],
    [new Map([['sd.safetensors', Buffer.from('x')]]), /single-file checkpoints \(sd\.safetensors\)/],
    [new Map([['sd.ckpt', Buffer.from('x')]]), /pickle files, which are never read/],
    [new Map([['README.md', Buffer.from('x')]]), /nothing of a text-to-image model/],
    [
      new Map([...whole, ['model_index.json', Buffer.from('{"_class_name": "FluxPipeline"}')]]),
      /model_index\.json.*FluxPipeline/s,
    ],
  ];
  for (const [files, message] of cases) {
    const { hub, locate } = await setUp(t, files);
    await assert.rejects(locate(), (error) => {
      assert.ok(error instanceof ModelError, String(error));
      assert.match(error.message, message);
      return true;
    });
    assert.equal(hub.asked.filter(({ server }) => server === 'storage').length, 0);
  }
});

test('an index cannot name a file elsewhere', async (t) => {
  const index = 'unet/diffusion_pytorch_model.safetensors.index.json';
  const text = sharded.get(index)!.toString().replaceAll('diffusion_pytorch_model-00002', '../../../../x');
  const { locate } = await setUp(t, new Map([...sharded, [index, Buffer.from(text)]]));
  await assert.rejects(locate(), /names the shard "\.\.\/\.\.\/\.\.\/\.\.\/x.*which is not there/);
});

/** Sends the first bytes of a large file, and then breaks the connection or falls silent. */
function breaksOff(bytes: Buffer, after: number, end: 'break' | 'silence' = 'break') {
  return (response: ServerResponse): void => {
    response.writeHead(200, { 'Content-Length': String(bytes.length), ETag: '"x"' });
    response.write(bytes.subarray(0, after), () => {
      if (end === 'break') setTimeout(() => response.destroy(), 50);
    });
  };
}

/** The weights' bytes themselves, not the questions about them. */
function isTransfer({ server, path, headers }: Asked, digest = unetDigest): boolean {
  return server === 'storage' && path === `/${digest}` && headers.range !== 'bytes=0-0';
}

for (const end of ['break', 'silence'] as const) {
  test(`a connection that ends in ${end} in the middle is gone on with`, async (t) => {
    const { hub, locate, warnings } = await setUp(t);
    const bytes = whole.get(unet)!;
    let failures = 2;
    hub.intercept = (asked, response) => {
      if (!isTransfer(asked) || asked.headers.range !== undefined || failures-- <= 0) return false;
      breaksOff(bytes, 100_000, end)(response);
      return true;
    };
    // Long enough for a machine that is busy with other things, where silence is not what the test is about.
    const patience = { pause: 1, attempts: 10, ...(end === 'silence' ? { idleTimeout: 3000 } : {}) };
    const { path } = await locate(name, { patience });
    assert.deepEqual(filesOf(path), whole);
    const ranges = hub.asked.filter((asked) => isTransfer(asked)).map(({ headers }) => headers.range);
    assert.equal(ranges[0], undefined);
    assert.match(ranges.at(-1)!, /^bytes=[1-9]\d+-237711$/);
    assert.match(warnings.join(), /cannot be reached; trying again in 1 s/);
  });
}

test('a download that was given up is gone on with by the next call', async (t) => {
  const { hub, locate, cache } = await setUp(t);
  const bytes = whole.get(unet)!;
  hub.intercept = (asked, response) => {
    if (!isTransfer(asked)) return false;
    if (asked.headers.range === undefined) breaksOff(bytes, 100_000)(response);
    else refuse(response, 503, undefined);
    return true;
  };
  await assert.rejects(locate(), (error) => {
    assert.ok(error instanceof HubError && ['network', 'server'].includes(error.fault), String(error));
    return true;
  });
  const partial = await stat(join(cache, 'blobs', `${unetDigest}.portrayal.incomplete`));
  assert.ok(partial.size > 0 && partial.size < bytes.length);
  await assert.rejects(stat(join(cache, 'refs/main')), 'a revision that is not complete is not noted');
  await assert.rejects(locate(name, { offline: true }), fault('offline', /only in part/));

  hub.intercept = () => false;
  hub.asked.length = 0;
  const { path } = await locate();
  assert.deepEqual(filesOf(path), whole);
  const [first] = hub.asked.filter((asked) => isTransfer(asked));
  assert.equal(first!.headers.range, `bytes=${partial.size}-${bytes.length - 1}`);
});

test('a server that cannot send parts of files does too', async (t) => {
  const { hub, locate, cache } = await setUp(t);
  const bytes = whole.get(unet)!;
  await mkdir(join(cache, 'blobs'), { recursive: true });
  await writeFile(join(cache, 'blobs', `${unetDigest}.portrayal.incomplete`), bytes.subarray(0, 100_000));
  hub.intercept = (asked, response) => {
    if (!isTransfer(asked)) return false;
    assert.equal(asked.headers.range, `bytes=100000-${bytes.length - 1}`);
    response.writeHead(200, { 'Content-Length': String(bytes.length), ETag: '"x"' }).end(bytes);
    return true;
  };
  const { path } = await locate();
  assert.deepEqual(filesOf(path), whole);
});

test('bytes that are not those promised are fetched anew, once', async (t) => {
  const { hub, locate, warnings, cache } = await setUp(t);
  const wrong = Buffer.from(whole.get(unet)!);
  wrong[5000]! ^= 1;
  let times = 1;
  hub.intercept = (asked, response) => {
    if (!isTransfer(asked) || times-- <= 0) return false;
    response.writeHead(200, { 'Content-Length': String(wrong.length), ETag: '"x"' }).end(wrong);
    return true;
  };
  const { path } = await locate();
  assert.deepEqual(filesOf(path), whole);
  assert.deepEqual(warnings, [`${unet} arrived damaged; getting it again.`]);

  await rm(cache, { recursive: true });
  times = Number.POSITIVE_INFINITY;
  await assert.rejects(locate(), fault('checksum', /arrived twice with other bytes/, /proxy/));
  const left = await readdir(join(cache, 'blobs'));
  assert.ok(!left.some((file) => file.startsWith(unetDigest)), left.join());
});

test('a small file is checked like a large one', async (t) => {
  const { hub, locate } = await setUp(t);
  hub.intercept = (asked, response) => {
    if (!asked.path.endsWith('/unet/config.json')) return false;
    const bytes = Buffer.from(whole.get('unet/config.json')!.toString().replace('1', '2'));
    response.writeHead(200, { 'Content-Length': String(bytes.length) }).end(bytes);
    return true;
  };
  await assert.rejects(locate(), fault('checksum', /unet\/config\.json/));
});

test('what an earlier attempt has left is not trusted', async (t) => {
  for (const left of [Buffer.alloc(1000, 7), Buffer.alloc(300_000, 7)]) {
    const { locate, cache } = await setUp(t);
    await mkdir(join(cache, 'blobs'), { recursive: true });
    await writeFile(join(cache, 'blobs', `${unetDigest}.portrayal.incomplete`), left);
    const { path } = await locate();
    assert.deepEqual(filesOf(path), whole);
  }
});

test('a file of the cache that was cut short, or has gone, is fetched again', async (t) => {
  const { hub, locate, cache } = await setUp(t);
  const { path } = await locate();
  await rm(join(cache, 'blobs', unetDigest));
  hub.takePaths();
  await locate();
  assert.ok(hub.takePaths().includes(`/${unetDigest}`));
  assert.deepEqual(filesOf(path), whole);
  await truncate(join(cache, 'blobs', unetDigest), 1000);
  await rm(join(cache, 'blobs', sha256(whole.get('vae/diffusion_pytorch_model.safetensors')!)));
  await locate();
  assert.deepEqual(filesOf(path), whole);
});

test("large files come in the hub's chunked form where it has one, from the middle on too", async (t) => {
  const { hub, locate, warnings, variables, cache } = await setUp(t);
  hub.chunked = true;
  const { path } = await locate();
  assert.deepEqual(filesOf(path), whole);
  const chunks = ({ path: p }: Asked): boolean => p.startsWith('/xorb/');
  assert.ok(hub.asked.some(chunks));
  assert.ok(!hub.asked.some((asked) => isTransfer(asked)));
  for (const { server, path: p, headers } of hub.asked) {
    assert.equal(headers.authorization, p.startsWith('/v2/') ? 'Bearer of-the-storage' : undefined, server);
  }

  const large = [...whole].filter(([file]) => isLarge(file)).map(([, bytes]) => bytes);
  for (const bytes of large) {
    await rm(join(cache, 'blobs', sha256(bytes)));
    await writeFile(join(cache, 'blobs', `${sha256(bytes)}.portrayal.incomplete`), bytes.subarray(0, 20_000));
  }
  hub.asked.length = 0;
  assert.deepEqual(filesOf((await locate()).path), whole);
  const ranges = hub.asked.filter(({ path: p }) => p.startsWith('/v2/')).map(({ headers }) => headers.range);
  assert.deepEqual(new Set(ranges), new Set(large.map(({ length }) => `bytes=20000-${length - 1}`)));
  assert.deepEqual(warnings, []);

  // What fails in that form is had in the plain one, and it can be switched off.
  for (const disabled of [undefined, '1']) {
    await rm(cache, { recursive: true });
    hub.asked.length = 0;
    hub.intercept = (asked, response) => {
      if (!chunks(asked)) return false;
      refuse(response, 500, undefined);
      return true;
    };
    const { path: plain } = await locate(name, { variables: { ...variables, HF_HUB_DISABLE_XET: disabled } });
    assert.deepEqual(filesOf(plain), whole);
    assert.equal(hub.asked.some(chunks), disabled === undefined);
  }
});

const refusals: {
  what: string;
  on: RegExp;
  status: number;
  code?: string;
  token?: string;
  headers?: Record<string, string>;
  fault: HubFault;
  message: RegExp;
}[] = [
  {
    what: 'a gated model, without a token',
    on: /resolve/,
    status: 401,
    code: 'GatedRepo',
    fault: 'gated',
    message:
      /accepted first\. Do so at http:\/\/127\.0\.0\.1:\d+\/someone\/tiny-diffusion, then make a token at http.*\/settings\/tokens.*HF_TOKEN/,
  },
  {
    what: 'a gated model, with a token',
    on: /resolve/,
    status: 403,
    code: 'GatedRepo',
    token: 'hf_x',
    fault: 'gated',
    message: /with the account of the token in use.*fine-grained/,
  },
  {
    what: 'no such model',
    on: /revision/,
    status: 401,
    code: 'RepoNotFound',
    fault: 'no-repository',
    message:
      /no model someone\/tiny-diffusion on http.*no folder of that name here.*If it is private, give a token/,
  },
  {
    what: 'no such model, with a token',
    on: /revision/,
    status: 404,
    code: 'RepoNotFound',
    token: 'hf_x',
    fault: 'no-repository',
    message: /the token in use.*may not read it/,
  },
  {
    what: 'no such revision',
    on: /revision/,
    status: 404,
    code: 'RevisionNotFound',
    fault: 'no-revision',
    message: /has no revision "main"\. Its branches and tags are at/,
  },
  {
    what: 'a file that has gone',
    on: /resolve/,
    status: 404,
    code: 'EntryNotFound',
    fault: 'no-file',
    message: /that the hub lists is not there/,
  },
  {
    what: 'a token that is not valid',
    on: /revision/,
    status: 401,
    token: 'hf_x',
    headers: { 'X-Error-Message': 'Invalid credentials in Authorization header' },
    fault: 'access',
    message: /refuses the token in use.*Invalid credentials in Authorization header\. Make a new one at/,
  },
  {
    what: 'a server that fails',
    on: /revision/,
    status: 500,
    fault: 'server',
    message: /answered with status 500\. Try again later/,
  },
  {
    what: 'too many requests for long',
    on: /revision/,
    status: 429,
    headers: { 'Retry-After': '3600' },
    fault: 'rate-limit',
    message: /too many requests.*Try again in 3600 s.*With a token/,
  },
];

for (const { what, on, status, code, token, headers, fault: expected, message } of refusals) {
  test(`refused: ${what}`, async (t) => {
    const { hub, locate, variables, cache } = await setUp(t);
    hub.intercept = ({ path }, response) => {
      if (!on.test(path)) return false;
      refuse(response, status, code, headers);
      return true;
    };
    await assert.rejects(
      locate(name, { variables: { ...variables, HF_TOKEN: token } }),
      fault(expected, message),
    );
    const left = await readdir(join(cache, 'snapshots')).catch(() => []);
    assert.deepEqual(left, []);
  });
}

test('a hub that asks for patience gets it', async (t) => {
  const { hub, locate, warnings } = await setUp(t);
  let times = 2;
  hub.intercept = ({ path }, response) => {
    if (!path.includes('/tree/') || times-- <= 0) return false;
    refuse(response, 429, undefined, times === 0 ? { RateLimit: '"api";r=0;t=1' } : { 'Retry-After': '0' });
    return true;
  };
  assert.deepEqual(filesOf((await locate()).path), whole);
  assert.equal(warnings.length, 2);
  assert.match(warnings[1]!, /has had too many requests from this machine; trying again in 1 s\.$/);
});

test('a failure of the storage is tried again with a new address', async (t) => {
  const { hub, locate } = await setUp(t);
  let times = 2;
  hub.intercept = (asked, response) => {
    if (!isTransfer(asked) || times-- <= 0) return false;
    refuse(response, times === 1 ? 403 : 500, undefined);
    return true;
  };
  assert.deepEqual(filesOf((await locate()).path), whole);
});

test('a server that is no hub is told apart', async (t) => {
  const { hub, locate } = await setUp(t);
  hub.intercept = (_, response) => {
    response.end('<html>Welcome</html>');
    return true;
  };
  await assert.rejects(
    locate(),
    fault('server', /what cannot be understood.*Is HF_ENDPOINT the address of a hub/),
  );
});

async function closedPort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  server.close();
  return port;
}

test('no connection: the copy here is used if there is one, with a word', async (t) => {
  const { locate, variables, warnings } = await setUp(t);
  const nowhere = { ...variables, HF_ENDPOINT: `http://127.0.0.1:${await closedPort()}` };
  await assert.rejects(
    locate(name, { variables: nowhere, patience: { attempts: 1 } }),
    fault('network', /http:\/\/127\.0\.0\.1:\d+ cannot be reached: the connection was refused.*--offline/s),
  );
  const here = await locate();
  assert.deepEqual(await locate(name, { variables: nowhere }), here);
  assert.match(warnings.at(-1)!, /did not answer.*The copy on this machine is used/);
});

test('without a connection: what is not here, and what is here in part', async (t) => {
  const { hub, locate, variables, warnings } = await setUp(t, withHalf(whole));
  await assert.rejects(
    locate(name, { offline: true }),
    fault('offline', /is not on this machine.*connections are forbidden/),
  );
  const { path } = await locate(name, { variant: 'fp16' });
  hub.takePaths();
  const offline = { variables: { ...variables, HF_HUB_OFFLINE: '1' } };
  await assert.rejects(locate(`${name}@v2`, offline), fault('offline', /Revision "v2"/));
  assert.equal((await locate(name, offline)).path, path);
  assert.match(
    warnings.at(-1)!,
    /unet\/diffusion_pytorch_model\.safetensors.*of the other precision are used/,
  );
  await rm(join(path, 'vae/config.json'));
  await assert.rejects(
    locate(name, offline),
    fault('offline', /only in part: .* lacks .*vae\/config\.json.*gets the rest/),
  );
  assert.deepEqual(hub.takePaths(), []);
});

test('the token goes to the hub and nowhere else', async (t) => {
  const { hub, home, locate, variables } = await setUp(t);
  hub.token = 'anything_goes';
  await assert.rejects(locate(), fault('no-repository'));
  await writeFile(join(home, 'token'), 'anything_goes\n');
  await locate(name);
  for (const { server, headers } of hub.asked.slice(1)) {
    assert.equal(headers.authorization, server === 'hub' ? 'Bearer anything_goes' : undefined);
  }
  await assert.rejects(
    locate(`${name}@v1`, { variables: { ...variables, HF_TOKEN: 'other' } }),
    fault('no-repository', /the token in use.*may not read it/),
  );
  const forbidden = { ...variables, HF_HUB_DISABLE_IMPLICIT_TOKEN: '1' };
  hub.asked.length = 0;
  await assert.rejects(locate(`${name}@v1`, { variables: forbidden }), fault('no-repository'));
  assert.equal(hub.asked[0]!.headers.authorization, undefined);
});

test('a model that the disk cannot hold is refused before it is fetched', async (t) => {
  const { hub, locate } = await setUp(t);
  hub.intercept = ({ path }, response) => {
    if (!path.includes('/tree/')) return false;
    const entries = [...whole].map(([file, bytes]) => ({
      type: 'file',
      path: file,
      size: bytes.length,
      oid: gitDigest(bytes),
      ...(file === unet ? { lfs: { oid: unetDigest, size: 1e16, pointerSize: 130 } } : {}),
    }));
    response.setHeader('Content-Type', 'application/json');
    response.end(JSON.stringify(entries));
    return true;
  };
  await assert.rejects(locate(), (error) => {
    assert.ok(error instanceof OutputError, String(error));
    assert.match(error.message, /needs 10000 TB more in .*set HF_HUB_CACHE to a folder on a larger disk/);
    return true;
  });
});

test('a disk that fills up meanwhile', {
  skip: process.platform !== 'linux' && 'needs /dev/full',
}, async (t) => {
  const { locate, cache } = await setUp(t);
  await mkdir(join(cache, 'blobs'), { recursive: true });
  await symlink('/dev/full', join(cache, 'blobs', `${unetDigest}.portrayal.incomplete`));
  await assert.rejects(locate(), (error) => {
    assert.ok(error instanceof OutputError, String(error));
    assert.match(error.message, /the disk is full/);
    return true;
  });
});

test('stopped in the middle: what has come is kept', async (t) => {
  const { hub, locate, cache } = await setUp(t);
  const bytes = whole.get(unet)!;
  const stop = new AbortController();
  hub.intercept = (asked, response) => {
    if (!isTransfer(asked)) return false;
    breaksOff(bytes, 100_000, 'silence')(response);
    setTimeout(() => stop.abort(), 200);
    return true;
  };
  await assert.rejects(locate(name, { signal: stop.signal }), (error) => {
    assert.ok(error instanceof CancelledError, String(error));
    assert.match(error.message, /What has come is kept; the same command goes on from there/);
    return true;
  });
  assert.ok((await stat(join(cache, 'blobs', `${unetDigest}.portrayal.incomplete`))).size > 0);
  await assert.rejects(locate(name, { signal: AbortSignal.abort() }), CancelledError);
  hub.intercept = () => false;
  assert.deepEqual(filesOf((await locate()).path), whole);
});

test('two calls at once, and two processes at once, fetch every file once', async (t) => {
  const { hub, locate, cache, home, variables } = await setUp(t);
  // Slow enough for the others to come in between.
  const slowly = async (asked: Asked): Promise<boolean> => {
    if (asked.server === 'storage') await new Promise((resolve) => setTimeout(resolve, 100));
    return false;
  };
  hub.intercept = slowly;
  const fetched = (): number => hub.asked.filter((asked) => isTransfer(asked)).length;
  const [one, two] = await Promise.all([locate(), locate()]);
  assert.deepEqual(one, two);
  assert.equal(fetched(), 1);

  await rm(cache, { recursive: true });
  hub.asked.length = 0;
  const module = new URL('../../src/pretrained/model-reference.js', import.meta.url).href;
  const script = `import { locateModel } from ${JSON.stringify(module)};
    const { path } = await locateModel(${JSON.stringify(name)});
    console.log(path);`;
  const outputs = await Promise.all(
    Array.from({ length: 3 }, async () => {
      const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
        env: { ...process.env, ...variables },
        stdio: ['ignore', 'pipe', 'inherit'],
      });
      let out = '';
      child.stdout.on('data', (data: Buffer) => (out += data));
      const [status] = await once(child, 'close');
      assert.equal(status, 0);
      return out.trim();
    }),
  );
  assert.deepEqual(outputs, Array(3).fill(one.path));
  assert.equal(fetched(), 1);
  assert.deepEqual(filesOf(one.path), whole);
  assert.deepEqual(await readdir(join(home, 'hub/.locks/models--someone--tiny-diffusion')), []);
});

test('a folder is a folder, whatever it is called; a name with a slip in it is not asked for', async (t) => {
  const { hub, locate } = await setUp(t);
  const here = await temporaryFolder(t);
  const before = process.cwd();
  t.after(() => process.chdir(before));
  process.chdir(here);
  await mkdir('someone/tiny-diffusion', { recursive: true });
  const local = join(here, 'someone/tiny-diffusion');
  assert.deepEqual(await locate(), { path: local, identity: local });
  await assert.rejects(locate('someone/tiny-difusion'), (error) => {
    assert.ok(error instanceof ModelError, String(error));
    assert.match(
      error.message,
      /There is no model at .*, although someone\/ is there.*write hf:\/\/someone\/tiny-difusion/,
    );
    return true;
  });
  for (const path of [
    './a/b',
    '../a',
    'a',
    'a/b/c',
    '/a/b',
    'a/b.safetensors',
    'a\\b',
    '~/a',
    'a/..',
    'a/b@../c',
    '',
  ]) {
    assert.equal((await locate(path)).path, resolve(here, path), path);
  }
  assert.deepEqual(paths(hub.asked), []);
});
