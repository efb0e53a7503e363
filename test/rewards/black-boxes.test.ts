import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { decodePng, encodeJpeg, encodePng } from '../../src/data/image-grid.js';
import { RewardError, UsageError } from '../../src/errors.js';
import { type EndpointOptions, endpointReward } from '../../src/rewards/endpoint.js';
import { functionReward, type ScoreFunction } from '../../src/rewards/function-reward.js';
import { jpegSizeReward } from '../../src/rewards/jpeg-size.js';
import type { BlackBoxReward, Picture } from '../../src/rewards/reward.js';
import { score } from '../../src/rewards/scoring.js';
import { Random } from '../../src/tensor/random.js';
import { openModuleReward } from '../../src/workflows/module-reward.js';
import { temporaryFolder } from '../temporary-folder.js';

/** Pictures of one grey, of the values 10, 20, … */
const greys = (count: number): Picture[] =>
  Array.from({ length: count }, (_, i) => ({
    width: 4,
    height: 4,
    pixels: new Uint8Array(48).fill(10 * (i + 1)),
  }));
const context = { step: 3, prompt: 'a photo of sks backpack', prompts: ['a backpack', 'on snow', 'on sand'] };
const ask = (reward: BlackBoxReward, count = 3): Promise<Float32Array> =>
  score(reward, greys(count), context);

function fails(answer: Promise<unknown>, message: RegExp): Promise<void> {
  return assert.rejects(answer, (error) => {
    assert.ok(error instanceof RewardError, String(error));
    assert.match(error.message, message);
    return true;
  });
}

test('a function answers, or its fault is told by the name of the reward', async () => {
  const mine = (f: ScoreFunction, timeout = 5): BlackBoxReward => functionReward('mine', f, timeout);
  const brightness = mine((pictures) => pictures.map((p) => p.pixels[0]! / 100));
  assert.deepEqual(await ask(brightness), Float32Array.of(0.1, 0.2, 0.3));
  assert.deepEqual(await ask(mine(async () => Float32Array.of(1, 2, 3))), Float32Array.of(1, 2, 3));
  await fails(
    ask(
      mine(() => {
        throw new Error('no model loaded');
      }),
    ),
    /reward mine failed: no model loaded/,
  );
  await fails(
    ask(mine(() => [1, Number.NaN, 3])),
    /answered NaN for picture 2 of 3; expected a finite number/,
  );
  await fails(ask(mine(() => [1, 2])), /answered 2 numbers for 3 pictures/);
  await fails(ask(mine(() => 'good' as never)), /answered "good"; expected a list of 3 numbers/);
  await fails(
    ask(mine(() => new Promise(() => undefined), 0.05)),
    /no answer for 3 pictures within 0.05 s.*--reward-timeout/,
  );
});

test('a module answers from a thread of its own; an endless loop there is ended, and the next question answered', async (t) => {
  const folder = await temporaryFolder(t);
  const module = async (name: string, source: string): Promise<string> => {
    const path = join(folder, name);
    await writeFile(path, source);
    return path;
  };
  const good = await openModuleReward(
    'good',
    await module(
      'good.mjs',
      'export default (pictures, { step, prompt }) => pictures.map((p) => p.pixels[0] + step + prompt.length);',
    ),
    20,
  );
  t.after(() => good.close?.());
  assert.deepEqual(await ask(good, 2), Float32Array.of(10 + 3 + 23, 20 + 3 + 23));

  const slow = await openModuleReward(
    'slow',
    await module('slow.mjs', 'export default (pictures) => { while (pictures.length > 1) {} return [7]; };'),
    1,
  );
  t.after(() => slow.close?.());
  await fails(ask(slow), /slow gave no answer for 3 pictures within 1 s/);
  assert.deepEqual(await ask({ ...slow, timeout: 30 }, 1), Float32Array.of(7));

  const throwing = await openModuleReward(
    'throwing',
    await module('t.mjs', 'export default () => { throw new Error("boo"); };'),
    20,
  );
  t.after(() => throwing.close?.());
  await fails(ask(throwing), /reward throwing failed: boo/);
  await fails(
    openModuleReward('none', await module('none.mjs', 'export const f = 1;'), 5),
    /default export is missing/,
  );
  await fails(
    openModuleReward('bad', await module('bad.mjs', 'export default ('), 5),
    /bad.mjs cannot be used/,
  );
  await assert.rejects(openModuleReward('gone', join(folder, 'gone.mjs'), 5), UsageError);
});

type Handler = (request: IncomingMessage, body: string, response: ServerResponse) => void;

/** An endpoint on this machine that answers as the handler says. */
async function serve(t: TestContext, handler: Handler): Promise<string> {
  const server = createServer((request, response) => {
    let body = '';
    request.on('data', (chunk) => {
      body += chunk;
    });
    request.on('end', () => handler(request, body, response));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}/score`;
}

const endpoint = (url: string, change: Partial<EndpointOptions> = {}): BlackBoxReward =>
  endpointReward('judge', {
    url,
    batchSize: 2,
    timeout: 20,
    retries: 2,
    backOff: 0.01,
    encode: encodePng,
    ...change,
  });

interface Asked {
  readonly pictures: readonly {
    readonly width: number;
    readonly height: number;
    readonly png: string;
    readonly prompt?: string;
  }[];
  readonly prompt: string;
  readonly step: number;
}

test('an endpoint is sent pictures in batches and answers in their order', async (t) => {
  const sizes: number[] = [];
  const told: (string | undefined)[] = [];
  const url = await serve(t, async (request, body, response) => {
    const asked = JSON.parse(body) as Asked;
    sizes.push(asked.pictures.length);
    assert.equal(request.method, 'POST');
    assert.deepEqual([asked.step, asked.prompt], [context.step, context.prompt]);
    told.push(...asked.pictures.map((p) => p.prompt));
    const decoded = await Promise.all(asked.pictures.map((p) => decodePng(Buffer.from(p.png, 'base64'))));
    response.end(JSON.stringify({ rewards: decoded.map((p) => p.pixels[0]! / 10) }));
  });
  assert.deepEqual(await ask(endpoint(url), 5), Float32Array.of(1, 2, 3, 4, 5));
  assert.deepEqual(sizes, [2, 2, 1]);
  assert.deepEqual(told.slice(0, 3), context.prompts);
});

test('what fails for a while is sent again; what is final is not', async (t) => {
  let attempts = 0;
  const retries: string[] = [];
  const flaky = await serve(t, (_, __, response) => {
    attempts++;
    if (attempts === 1) response.writeHead(503).end('warming up');
    else if (attempts === 2) response.end('{"rewards": ["good"]}');
    else response.end('[0.5]');
  });
  const reward = endpoint(flaky, { onRetry: (message) => retries.push(message) });
  assert.deepEqual(await ask(reward, 1), Float32Array.of(0.5));
  assert.match(retries[0]!, /status 503: warming up; trying again in 0.01 s \(1 of 2\)/);
  assert.match(retries[1]!, /expected \{"rewards": \[1 numbers\]\}.*trying again in 0.02 s \(2 of 2\)/);

  let asked = 0;
  const forbidden = await serve(t, (_, __, response) => {
    asked++;
    response.writeHead(401).end('no token');
  });
  await fails(ask(endpoint(forbidden), 1), /judge could not be had from .*status 401: no token/);
  assert.equal(asked, 1);

  const nonsense = await serve(t, (_, __, response) => void response.end('<html>hello</html>'));
  await fails(ask(endpoint(nonsense), 1), /the answer is not JSON: <html>hello<\/html> \(after 3 attempts\)/);
  const silent = await serve(t, () => undefined);
  await fails(ask(endpoint(silent, { timeout: 0.1 }), 1), /no answer within 0.1 s/);
  await fails(ask(endpoint('http://127.0.0.1:9/score'), 1), /no connection/);
  const stop = AbortSignal.abort();
  await fails(ask(endpoint(nonsense, { stop, backOff: 1000 }), 1), /the answer is not JSON/);
});

test('the JPEG size of a picture, in bits per pixel', async () => {
  const random = new Random(1, 'noise');
  const noise: Picture = {
    width: 32,
    height: 32,
    pixels: Uint8Array.from({ length: 3072 }, () => random.int(256)),
  };
  const plain: Picture = { width: 32, height: 32, pixels: new Uint8Array(3072).fill(90) };
  const reward = jpegSizeReward('jpeg-size', (picture) => encodeJpeg(picture, 90));
  const [busy, empty] = await score(reward, [noise, plain], context);
  assert.equal(busy, Math.fround((8 * (await encodeJpeg(noise, 90)).length) / 1024));
  assert.ok(busy! > 2 * empty!);
});
