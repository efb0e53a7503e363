// Holds the cache of hub models against Python's huggingface_hub: what one has fetched the other finds, both ways, through the imitation of the hub that the
// tests use. Run: node dist/scripts/check-hub-cache.js PYTHON, where that Python has huggingface_hub (and diffusers, if it is to open the model too).
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readdir, readlink, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { locateModel } from '../src/pretrained/model-reference.js';
import { filesOf, HubImitation } from '../test/pretrained/hub-imitation.js';

const name = 'someone/tiny-diffusion';
const files = filesOf(fileURLToPath(new URL('../../test/goldens/models/sd1-tiny', import.meta.url)));
const program = process.argv[2];
if (program === undefined) throw new Error('usage: node dist/scripts/check-hub-cache.js PYTHON');

const download = `
from huggingface_hub import snapshot_download
print(snapshot_download("${name}"))
`;

const inspect = `
from huggingface_hub import hf_hub_download, scan_cache_dir, snapshot_download, try_to_load_from_cache, _CACHED_NO_EXIST
cache = scan_cache_dir()
assert not cache.warnings, cache.warnings
[repository] = cache.repos
[revision] = repository.revisions
assert repository.repo_id == "${name}" and repository.repo_type == "model"
assert revision.refs == {"main"}, revision.refs
assert {f.file_path.relative_to(revision.snapshot_path).as_posix() for f in revision.files} == set(${JSON.stringify([...files.keys()])})
assert revision.size_on_disk == ${[...files.values()].reduce((sum, { length }) => sum + length, 0)}
assert try_to_load_from_cache("${name}", "unet/diffusion_pytorch_model.fp16.safetensors") in (None, _CACHED_NO_EXIST)
assert hf_hub_download("${name}", "unet/config.json", local_files_only=True).startswith(str(revision.snapshot_path))
try:
    from diffusers import StableDiffusionPipeline
    pipeline = StableDiffusionPipeline.from_pretrained("${name}", local_files_only=True, safety_checker=None, feature_extractor=None)
    assert sum(p.numel() for p in pipeline.unet.parameters()) > 0
    import sys; print("diffusers opened it", file=sys.stderr)
except ImportError:
    pass
print(snapshot_download("${name}", local_files_only=True))
`;

/** The last line that a script prints. */
async function python(script: string, variables: Record<string, string>): Promise<string> {
  const child = spawn(program!, ['-c', script], {
    env: { ...process.env, ...variables, HF_HUB_DISABLE_TELEMETRY: '1', HF_HUB_DISABLE_PROGRESS_BARS: '1' },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  let out = '';
  child.stdout.on('data', (data: Buffer) => (out += data));
  const [status] = (await once(child, 'close')) as [number | null];
  assert.equal(status, 0, 'the Python script failed');
  return out.trim().split('\n').at(-1)!;
}

/** The model in a cache: files, and links with what they lead to; not what each notes down for itself. */
async function contents(cache: string): Promise<string[]> {
  const paths = (await readdir(join(cache, 'models--someone--tiny-diffusion'), { recursive: true }))
    .filter((path) => /^(blobs|refs|snapshots)/.test(path))
    .sort();
  const told = paths.map(async (path) => {
    const target = await readlink(join(cache, 'models--someone--tiny-diffusion', path)).catch(
      () => undefined,
    );
    return target === undefined ? path : `${path} -> ${target}`;
  });
  return Promise.all(told);
}

const closing: (() => void)[] = [];
const hub = await HubImitation.start({ after: (close) => closing.push(close as () => void) }, name, files);
const folder = await mkdtemp(join(tmpdir(), 'hub-cache-'));
try {
  const variables = (home: string) => ({ HF_ENDPOINT: hub.endpoint, HF_HOME: join(folder, home) });

  const ours = await locateModel(name, { variables: variables('ours') });
  hub.takePaths();
  assert.equal(await python(inspect, variables('ours')), ours.path);
  assert.deepEqual(hub.takePaths(), [], 'Python asked the hub for what we had fetched');
  console.log('Python finds what portrayal fetched');

  const theirs = await python(download, variables('theirs'));
  hub.takePaths();
  assert.deepEqual(await locateModel(name, { variables: variables('theirs') }), {
    ...ours,
    path: theirs,
  });
  assert.deepEqual(hub.takePaths(), [`/api/models/${name}/revision/main`]);
  assert.equal((await locateModel(name, { variables: variables('theirs'), offline: true })).path, theirs);
  console.log('portrayal finds what Python fetched');

  assert.deepEqual(await contents(join(folder, 'ours/hub')), await contents(join(folder, 'theirs/hub')));
  console.log('both caches hold the same files and links');
} finally {
  for (const close of closing) close();
  await rm(folder, { recursive: true, force: true });
}
