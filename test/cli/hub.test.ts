import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { filesOf, HubImitation, sha256 } from '../pretrained/hub-imitation.js';
import { temporaryFolder } from '../temporary-folder.js';

const root = new URL('../../../', import.meta.url);
const program = fileURLToPath(new URL('bin/portrayal.js', root));
const images = fileURLToPath(new URL('examples/teal-zigzag-star-backpack', root));
const name = 'someone/tiny-diffusion';
const files = filesOf(fileURLToPath(new URL('test/goldens/models/sd1-tiny', root)));

interface Ended {
  readonly status: number | null;
  readonly out: string;
  readonly err: string;
}

/** Calls the program itself, with these variables. @param onError hears what has been written to the standard error so far */
async function call(
  args: readonly string[],
  variables: Record<string, string>,
  onError: (text: string, interrupt: () => void) => void = () => undefined,
): Promise<Ended> {
  const child = spawn(process.execPath, [program, ...args], {
    env: { ...process.env, ...variables },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  const written = { out: '', err: '' };
  child.stdout.on('data', (data: Buffer) => (written.out += data));
  child.stderr.on('data', (data: Buffer) => {
    written.err += data;
    onError(written.err, () => child.kill('SIGINT'));
  });
  const [status] = (await once(child, 'close')) as [number | null];
  return { status, ...written };
}

test('a model of the hub: trained on, written down by its commit, and drawn with without a connection', async (t) => {
  const hub = await HubImitation.start(t, name, files);
  const folder = await temporaryFolder(t);
  const variables = { HF_ENDPOINT: hub.endpoint, HF_HOME: join(folder, 'home') };
  const run = join(folder, 'run');
  const trained = await call(
    [
      ...[
        'train',
        '--model',
        name,
        '--images',
        images,
        '--output',
        run,
        '--prompt',
        'a photo of sks backpack',
      ],
      ...'--method dreambooth --no-with-prior-preservation --steps 1 --sampling-steps 1'.split(' '),
      ...'--num-validation-images 1 --threads 1 --validation-prompt sks'.split(' '),
    ],
    variables,
  );
  assert.equal(trained.status, 0, trained.err);
  assert.match(trained.err, /^downloading someone\/tiny-diffusion {2}341 kB of 341 kB$/m);
  const config = JSON.parse(await readFile(join(run, 'config.json'), 'utf8')) as { model: string };
  assert.match(config.model, /^hf:\/\/someone\/tiny-diffusion@[0-9a-f]{40}$/);

  // The branch moves on; the run stays with what it was trained on.
  hub.commit('main', new Map([...files].filter(([path]) => !path.startsWith('unet/'))));
  hub.takePaths();
  const drawn = await call(
    ['generate', '--run', run, '--prompt', 'sks', '--output', join(folder, 'out'), '--steps', '1'],
    variables,
  );
  assert.equal(drawn.status, 0, drawn.err);
  assert.deepEqual(await readdir(join(folder, 'out')), ['0000-sks.png']);
  assert.deepEqual(hub.takePaths(), []);

  const offline = await call(
    ['generate', '--model', 'someone/else', '--offline', '--prompt', 'x', '--output', join(folder, 'out')],
    variables,
  );
  assert.equal(offline.status, 9);
  assert.match(offline.err, /^someone\/else is not on this machine .*connections are forbidden/);
  assert.deepEqual(hub.takePaths(), []);
});

test('Ctrl-C in a download keeps what has come', async (t) => {
  const hub = await HubImitation.start(t, name, files);
  const home = await temporaryFolder(t);
  const unet = files.get('unet/diffusion_pytorch_model.safetensors')!;
  let begun = (): void => {};
  const partCame = new Promise<void>((resolve) => {
    begun = resolve;
  });
  hub.intercept = ({ path, headers }, response) => {
    if (path !== `/${sha256(unet)}` || headers.range === 'bytes=0-0') return false;
    response.writeHead(200, { 'Content-Length': String(unet.length), ETag: '"x"' });
    response.write(unet.subarray(0, 200_000));
    begun();
    return true;
  };
  let interrupted = false;
  const { status, out, err } = await call(
    ['generate', '--model', name, '--prompt', 'x', '--output', join(home, 'out')],
    { HF_ENDPOINT: hub.endpoint, HF_HOME: home },
    (text, interrupt) => {
      if (interrupted || !/downloading .* of 341 kB/.test(text)) return;
      interrupted = true;
      void partCame.then(() => setTimeout(interrupt, 1000));
    },
  );
  assert.equal(status, 130, err);
  assert.equal(out, '');
  assert.match(err, /Stopped while downloading someone\/tiny-diffusion\. What has come is kept/);
  const blobs = await readdir(join(home, 'hub/models--someone--tiny-diffusion/blobs'));
  assert.ok(
    blobs.some((file) => file === `${sha256(unet)}.portrayal.incomplete`),
    blobs.join(),
  );
});
