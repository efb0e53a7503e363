import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { cp, mkdir, open, readdir, readFile, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { xlLora } from '../../scripts/goldens/lora.js';
import { CancelledError, HubError, ModelError, OutputError, UsageError } from '../../src/errors.js';
import {
  openSafetensors,
  readSafetensorsFile,
  writeSafetensorsFile,
} from '../../src/formats/safetensors-file.js';
import { peftContents } from '../../src/pretrained/lora-formats.js';
import { StableDiffusion } from '../../src/pretrained/stable-diffusion.js';
import { Random } from '../../src/tensor/random.js';
import { float32, fromFloat32, type Tensor, tensor, toFloat32 } from '../../src/tensor/tensor.js';
import { mergeLoras } from '../../src/workflows/merge.js';
import { goldenPath, goldenTensors, relativeError } from '../goldens.js';
import { filesOf, HubImitation } from '../pretrained/hub-imitation.js';
import { writeSmallCheckpoint } from '../pretrained/small-checkpoints.js';
import { temporaryFolder } from '../temporary-folder.js';

const golden = (name: string): string => fileURLToPath(goldenPath(name));
const model = golden('models/sd1-tiny');
const loras = [
  { file: golden('lora/pytorch_lora_weights.safetensors'), weight: 0.7 },
  { file: golden('lora/convolutions.safetensors'), weight: -0.5 },
];
const weightFiles = {
  unet: 'unet/diffusion_pytorch_model.safetensors',
  text_encoder: 'text_encoder/model.safetensors',
} as const;

async function allFiles(folder: string, below = ''): Promise<string[]> {
  const found: string[] = [];
  for (const entry of await readdir(join(folder, below), { withFileTypes: true })) {
    const path = join(below, entry.name);
    if (entry.isDirectory()) found.push(...(await allFiles(folder, path)));
    else found.push(path);
  }
  return found.sort();
}

test('a folder: the weights that diffusers fuses, tensor by tensor, and all else as it was', async (t) => {
  const output = join(await temporaryFolder(t), 'merged');
  assert.equal(await mergeLoras({ model, loras, output }), output);
  const fused = goldenTensors('lora/applied.safetensors');
  let changed = 0;
  for (const [component, file] of Object.entries(weightFiles)) {
    const [before, after] = [
      await readSafetensorsFile(join(model, file)),
      await readSafetensorsFile(join(output, file)),
    ];
    assert.deepEqual(after.metadata, before.metadata);
    assert.deepEqual([...after.tensors.keys()], [...before.tensors.keys()]);
    for (const [name, value] of after.tensors) {
      const expected =
        fused.get(`${component}.${name}`) ?? fused.get(`${component}.${name.replace('text_model.', '')}`);
      if (expected === undefined) assert.deepEqual(value, before.tensors.get(name), name);
      else {
        changed++;
        assert.ok(relativeError(value, expected) < 1e-6, name);
      }
    }
  }
  assert.equal(changed, [...fused.keys()].filter((name) => /^(unet|text_encoder)\./.test(name)).length);
  const files = await allFiles(model);
  assert.deepEqual(await allFiles(output), files);
  for (const file of files.filter((f) => !Object.values(weightFiles).includes(f as never))) {
    assert.ok((await readFile(join(output, file))).equals(await readFile(join(model, file))), file);
  }
  await StableDiffusion.open(output);
});

test('half precision stays half precision, in a single file, also where one tensor holds three layers', async (t) => {
  const folder = await temporaryFolder(t);
  const single = await writeSmallCheckpoint(folder, 'sdxl-small', {
    metadata: new Map([
      ['modelspec.hash_sha256', '0x1'],
      ['a', 'b'],
    ]),
  });
  const lora = join(folder, 'xl.safetensors');
  const { tensors, metadata } = peftContents(xlLora());
  await writeSafetensorsFile(lora, tensors, metadata);
  const output = join(folder, 'merged.safetensors');
  await mergeLoras({ model: single, loras: [{ file: lora }], output });
  const [before, after] = [await readSafetensorsFile(single), await readSafetensorsFile(output)];
  assert.deepEqual([...after.metadata], [['a', 'b']]);
  assert.deepEqual(
    [...(await openSafetensors(output)).entries.keys()],
    [...(await openSafetensors(single)).entries.keys()],
  );
  const update = (module: string): Tensor<'float32'> => {
    const [down, up] = ['A', 'B'].map(
      (f) => tensors.get(`${module}.lora_${f}.weight`) as Tensor<'float32'>,
    ) as [Tensor<'float32'>, Tensor<'float32'>];
    const [rank, width] = down.shape as [number, number];
    return float32(
      [up.shape[0]!, width],
      Array.from({ length: up.shape[0]! * width }, (_, i) => {
        let sum = 0;
        for (let r = 0; r < rank; r++)
          sum += up.data[Math.floor(i / width) * rank + r]! * down.data[r * width + (i % width)]!;
        return sum;
      }),
    );
  };
  const places: Record<string, [module: string, firstRow: number]> = {
    'model.diffusion_model.input_blocks.5.1.transformer_blocks.1.attn1.to_q.weight': [
      'unet.down_blocks.1.attentions.1.transformer_blocks.1.attn1.to_q',
      0,
    ],
    'model.diffusion_model.input_blocks.7.1.transformer_blocks.2.attn2.to_k.weight': [
      'unet.down_blocks.2.attentions.0.transformer_blocks.2.attn2.to_k',
      0,
    ],
    'model.diffusion_model.output_blocks.3.1.transformer_blocks.1.ff.net.2.weight': [
      'unet.up_blocks.1.attentions.0.transformer_blocks.1.ff.net.2',
      0,
    ],
    'conditioner.embedders.0.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight': [
      'text_encoder.text_model.encoder.layers.0.self_attn.q_proj',
      0,
    ],
    'conditioner.embedders.1.model.transformer.resblocks.1.attn.in_proj_weight': [
      'text_encoder_2.text_model.encoder.layers.1.self_attn.v_proj',
      256,
    ],
  };
  for (const [name, [module, firstRow]] of Object.entries(places)) {
    const old = toFloat32(before.tensors.get(name)!);
    const added = update(module);
    const width = old.shape[1]!;
    const expected = fromFloat32(
      float32(
        old.shape,
        old.data.map((v, i) => v + (added.data[i - firstRow * width] ?? 0)),
      ),
      'float16',
    );
    const found = after.tensors.get(name)!;
    assert.equal(found.dtype, 'float16');
    // The sums are rounded in another order, so a value may be the neighbouring half.
    assert.ok(relativeError(found, expected) < 1e-3, name);
    assert.notDeepEqual(found, before.tensors.get(name));
  }
  const changed = [...after.tensors].filter(
    ([name, value]) =>
      !Buffer.from(value.data.buffer).equals(Buffer.from(before.tensors.get(name)!.data.buffer)),
  );
  assert.equal(changed.length, xlLora().size);
});

test('shards are merged shard by shard; weights of other precision would be stale and are left out', async (t) => {
  const folder = await temporaryFolder(t);
  const source = join(folder, 'model');
  await cp(golden('models/sd2-tiny-sharded'), source, { recursive: true });
  await writeFile(join(source, 'unet', 'diffusion_pytorch_model.fp16.safetensors'), 'stale');
  await writeFile(join(source, 'unet', 'diffusion_pytorch_model.bin'), 'stale');
  await mkdir(join(source, '.cache'));
  await symlink(join(source, 'model_index.json'), join(source, 'link.json'));
  const lora = join(folder, 'lora.safetensors');
  const key = 'unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q';
  await writeSafetensorsFile(
    lora,
    new Map([
      [`${key}.lora_A.weight`, float32([1, 12], new Float32Array(12).fill(1))],
      [`${key}.lora_B.weight`, float32([12, 1], new Float32Array(12).fill(2))],
    ]),
  );
  const output = join(folder, 'merged');
  await mergeLoras({ model: source, loras: [{ file: lora }], output });
  const expected = [...(await allFiles(golden('models/sd2-tiny-sharded'))), 'link.json'].sort();
  assert.deepEqual(await allFiles(output), expected);
  const all = async (root: string): Promise<Map<string, Tensor>> => {
    const shards = (await readdir(join(root, 'unet'))).filter((f) => /-0000\d-/.test(f)).sort();
    return new Map(
      (await Promise.all(shards.map((s) => readSafetensorsFile(join(root, 'unet', s))))).flatMap((f) => [
        ...f.tensors,
      ]),
    );
  };
  const [before, after] = [await all(source), await all(output)];
  for (const [name, value] of after) {
    const old = before.get(name)!.data as Float32Array;
    const by = name === `${key.slice(5)}.weight` ? 2 : 0;
    assert.deepEqual(
      value.data,
      old.map((v) => v + by),
      name,
    );
  }
});

test('what cannot be merged leaves nothing behind', async (t) => {
  const folder = await temporaryFolder(t);
  const single = await writeSmallCheckpoint(folder, 'sd1-small');
  const xl = golden('lora/xl_kohya.safetensors');
  const huge = join(folder, 'huge.safetensors');
  const key = 'unet.conv_in';
  await writeSafetensorsFile(
    huge,
    new Map<string, Tensor>([
      [`${key}.lora_A.weight`, float32([1, 4, 3, 3], new Float32Array(36).fill(1000))],
      [`${key}.lora_B.weight`, float32([32, 1, 1, 1], new Float32Array(32).fill(1000))],
    ]),
  );
  const output = join(folder, 'out');
  const taken = join(folder, 'taken');
  await writeFile(taken, 'mine');
  const before = (await readdir(folder)).sort();
  const cases: [Partial<Parameters<typeof mergeLoras>[0]>, new (m: string) => Error, RegExp][] = [
    [{ loras: [] }, UsageError, /nothing to merge/],
    [{ output: taken }, OutputError, /taken exists already and is not overwritten/],
    [
      { loras: [{ file: xl }] },
      ModelError,
      /xl_kohya\.safetensors is a LoRA for Stable Diffusion XL, but the model is of Stable Diffusion 1/,
    ],
    [{ loras: [{ file: join(folder, 'x.bin') }] }, ModelError, /is a pickle file/],
    [{ loras: [{ file: xl, weight: Number.NaN }] }, UsageError, /the weight is NaN/],
    [
      { model: single, loras: [{ file: huge }] },
      ModelError,
      /values that float16 cannot hold.*smaller weight/,
    ],
    [{ model: xl }, ModelError, /is a LoRA, which changes a model/],
    [{ output: join(folder, 'absent', 'out') }, OutputError, /its folder does not exist/],
    [{ signal: AbortSignal.abort() }, CancelledError, /nothing was written/],
  ];
  for (const [change, kind, message] of cases) {
    await assert.rejects(mergeLoras({ model, loras, output, ...change }), (error) => {
      assert.ok(error instanceof kind, String(error));
      assert.match((error as Error).message, message);
      return true;
    });
    assert.deepEqual((await readdir(folder)).sort(), before);
  }
  assert.equal(await readFile(taken, 'utf8'), 'mine');
});

test('a disk that takes no more midway: no folder, no file, and the old ones as they were', async (t) => {
  const folder = await temporaryFolder(t);
  const single = await writeSmallCheckpoint(folder, 'sd1-small');
  const before = (await readdir(folder)).sort();
  const program = `import { mergeLoras } from ${JSON.stringify(new URL('../../src/workflows/merge.js', import.meta.url).href)};
    for (const [model, loras, output] of ${JSON.stringify([
      [model, loras, join(folder, 'out')],
      [
        single,
        [{ file: golden('lora/convolutions.safetensors'), weight: 0 }],
        join(folder, 'out.safetensors'),
      ],
    ])}) await mergeLoras({ model, loras, output }).catch((e) => console.log(e.name + ': ' + e.message));`;
  // A limit on the size of files is the refusal that any user can set for a process; a full disk takes the same way out.
  const limited = `trap '' XFSZ; ulimit -f 100; exec "$0" --input-type=module -e "$1"`;
  const { stdout } = await promisify(execFile)('sh', ['-c', limited, process.execPath, program]);
  const [first, second] = stdout.trim().split('\n');
  assert.match(
    first!,
    /^OutputError: Cannot write .*out\/\w+\/[\w.]+: the file system does not take files this large/,
  );
  assert.doesNotMatch(first!, /partial/);
  assert.match(second!, /^(OutputError: Cannot write .*out\.safetensors: the file system|ModelError)/);
  assert.deepEqual((await readdir(folder)).sort(), before);
});

test('half precision: what diffusers fuses in float32 and saves, to the bit; what it fuses in half precision, within its rounding', async (t) => {
  const output = join(await temporaryFolder(t), 'merged');
  const lora = { file: golden('lora/half.safetensors'), weight: 0.7 };
  await mergeLoras({ model: golden('models/sdxl-tiny'), loras: [lora], output });
  const fused = goldenTensors('lora/half_fused.safetensors');
  const ours = new Map<string, Tensor>();
  for (const component of ['unet', 'text_encoder', 'text_encoder_2']) {
    const stem = component === 'unet' ? 'diffusion_pytorch_model' : 'model';
    const { tensors } = await readSafetensorsFile(join(output, component, `${stem}.fp16.safetensors`));
    for (const [name, value] of tensors) ours.set(`${component}.${name}`, value);
  }
  let [same, count, furthest] = [0, 0, 0];
  for (const [key, value] of fused) {
    const found = ours.get(key.slice(key.indexOf('.') + 1))!;
    assert.equal(found.dtype, 'float16');
    assert.deepEqual(found.shape, value.shape);
    if (key.startsWith('float32.')) {
      // Fused in float32 and rounded once, as here.
      assert.deepEqual(found.data, value.data, key);
    } else {
      // Fused in float16, which rounds the update and then the sum.
      furthest = Math.max(furthest, relativeError(toFloat32(found), toFloat32(value)));
      (value.data as Uint16Array).forEach((bits, i) => {
        if (bits === (found.data as Uint16Array)[i]) same++;
      });
      count += value.data.length;
    }
  }
  assert.ok(count > 0 && furthest > 0 && furthest < 2 ** -10, `${furthest} of the largest value`);
  assert.ok(same / count > 0.7, `${same} of ${count} the same`);
});

/** Models of both layouts, with a LoRA for each and the name of what is made. */
async function bothLayouts(folder: string) {
  const single = await writeSmallCheckpoint(folder, 'sdxl-small');
  const lora = join(folder, 'xl.safetensors');
  await writeSafetensorsFile(lora, peftContents(xlLora()).tensors);
  return [
    { model, loras, output: join(folder, 'out') },
    { model: single, loras: [{ file: lora }], output: join(folder, 'out.safetensors') },
  ];
}

test('a full disk midway: nothing of the new model stays, and nothing else is touched', async (t) => {
  const folder = await temporaryFolder(t);
  const handle = await open(join(folder, 'x'), 'w');
  const files = Object.getPrototypeOf(handle) as typeof handle;
  await handle.close();
  const write = files.writeFile;
  for (const options of await bothLayouts(folder)) {
    const before = (await readdir(folder)).sort();
    let room = 60_000;
    const mock = t.mock.method(files, 'writeFile', function (this: typeof handle, data: Uint8Array | string) {
      room -= data.length;
      if (room >= 0) return write.call(this, data);
      return Promise.reject(Object.assign(new Error('ENOSPC: no space left on device'), { code: 'ENOSPC' }));
    });
    await assert.rejects(mergeLoras(options), (error) => {
      assert.ok(error instanceof OutputError, String(error));
      assert.match(error.message, /Cannot write .*\/out.*: the disk is full; free some space/);
      assert.doesNotMatch(error.message, /partial/);
      return true;
    });
    mock.mock.restore();
    assert.deepEqual((await readdir(folder)).sort(), before);
  }
});

/** The bytes of a file, or of a folder's files by name. */
async function contents(path: string): Promise<Record<string, string>> {
  const names = (await stat(path)).isFile() ? [''] : await allFiles(path);
  return Object.fromEntries(
    await Promise.all(names.map(async (n) => [n, (await readFile(join(path, n))).toString('latin1')])),
  );
}

test('killed at random moments: whole or not there, and the next call clears up', async (t) => {
  const folder = await temporaryFolder(t);
  const program = `import { mergeLoras } from ${JSON.stringify(new URL('../../src/workflows/merge.js', import.meta.url).href)};
    process.stdout.write('ready');
    await mergeLoras(JSON.parse(process.argv[1]));`;
  const random = new Random(Number(process.env.KILL_SEED ?? 5), 'kills');
  for (const options of await bothLayouts(folder)) {
    const start = performance.now();
    await mergeLoras({ ...options, output: join(folder, 'expected') });
    const duration = performance.now() - start;
    const expected = await contents(join(folder, 'expected'));
    await rm(join(folder, 'expected'), { recursive: true });
    const others = (await readdir(folder)).sort();
    let interrupted = 0;
    for (let attempt = 0; interrupted < 3; attempt++) {
      assert.ok(attempt < 60, 'no kill came while the model was being written');
      const child = spawn(process.execPath, ['--input-type=module', '-e', program, JSON.stringify(options)], {
        stdio: ['ignore', 'pipe', 'inherit'],
      });
      const ended = once(child, 'close');
      await once(child.stdout, 'data');
      setTimeout(() => child.kill('SIGKILL'), random.uniform() * 2 * duration);
      await ended;
      const left = (await readdir(folder)).filter((name) => !others.includes(name));
      // Leftovers never outnumber the last call's: each call clears up after the one before.
      const partial = left.filter((name) => name.endsWith('.partial'));
      assert.ok(partial.length <= 1, left.join());
      interrupted += partial.length;
      if (left.includes(basename(options.output))) {
        assert.deepEqual(await contents(options.output), expected);
        await rm(options.output, { recursive: true });
      }
    }
    await mergeLoras(options);
    assert.deepEqual(await contents(options.output), expected);
    await rm(options.output, { recursive: true });
    assert.deepEqual((await readdir(folder)).sort(), others);
  }
});

test('one process at a time writes a path', async (t) => {
  const folder = await temporaryFolder(t);
  const options = { model, loras, output: join(folder, 'out') };
  const [first, second] = await Promise.allSettled([mergeLoras(options), mergeLoras(options)]);
  assert.equal(first.status, 'fulfilled');
  assert.ok(second.status === 'rejected' && second.reason instanceof OutputError);
  assert.match(second.reason.message, /out is being written by process \d+ .*Wait for it to end/);
  assert.deepEqual(await readdir(folder), ['out']);
});

test('a model of the hub is fetched, and merged like any folder', async (t) => {
  const folder = await temporaryFolder(t);
  const files = filesOf(model);
  const hub = await HubImitation.start(t, 'someone/tiny-diffusion', files);
  const environment = { HF_ENDPOINT: hub.endpoint, HF_HOME: join(folder, 'home') };
  const before = { ...process.env };
  t.after(() => {
    process.env = before;
  });
  Object.assign(process.env, environment);
  const output = await mergeLoras({ model: 'someone/tiny-diffusion', loras, output: join(folder, 'hub') });
  const plain = await mergeLoras({ model, loras, output: join(folder, 'plain') });
  const [fromHub, fromFolder] = [await contents(output), await contents(plain)];
  for (const [name, bytes] of Object.entries(fromHub)) assert.ok(bytes === fromFolder[name], name);
  assert.ok(Object.keys(fromHub).includes('unet/diffusion_pytorch_model.safetensors'));
  hub.takePaths();
  await assert.rejects(
    mergeLoras({ model: 'someone/else', offline: true, loras, output: join(folder, 'x') }),
    (error) => error instanceof HubError && /connections are forbidden/.test(error.message),
  );
  assert.deepEqual(hub.takePaths(), []);
});

test('bfloat16 is rounded to nearest even, as PyTorch does', () => {
  const values = float32([5], [1, 1.00390625, 1.01171875, -3.14159274, 65536.5]);
  assert.deepEqual(
    fromFloat32(values, 'bfloat16'),
    tensor('bfloat16', [5], Uint16Array.of(0x3f80, 0x3f80, 0x3f82, 0xc049, 0x4780)),
  );
});
