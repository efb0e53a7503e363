import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { cp, mkdir, readdir, readFile, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { xlLora } from '../../scripts/goldens/lora.js';
import { CancelledError, ModelError, OutputError, UsageError } from '../../src/errors.js';
import {
  openSafetensors,
  readSafetensorsFile,
  writeSafetensorsFile,
} from '../../src/formats/safetensors-file.js';
import { peftContents } from '../../src/pretrained/lora-formats.js';
import { StableDiffusion } from '../../src/pretrained/stable-diffusion.js';
import { float32, fromFloat32, type Tensor, tensor, toFloat32 } from '../../src/tensor/tensor.js';
import { mergeLoras } from '../../src/workflows/merge.js';
import { goldenPath, goldenTensors, relativeError } from '../goldens.js';
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

test('bfloat16 is rounded to nearest even, as PyTorch does', () => {
  const values = float32([5], [1, 1.00390625, 1.01171875, -3.14159274, 65536.5]);
  assert.deepEqual(
    fromFloat32(values, 'bfloat16'),
    tensor('bfloat16', [5], Uint16Array.of(0x3f80, 0x3f80, 0x3f82, 0xc049, 0x4780)),
  );
});
