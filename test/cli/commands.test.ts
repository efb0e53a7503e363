import assert from 'node:assert/strict';
import { mkdir } from 'node:fs/promises';
import { test } from 'node:test';
import { createConvertCommand } from '../../src/cli/convert.js';
import { createDemoCommand } from '../../src/cli/demo.js';
import { createGenerateCommand } from '../../src/cli/generate.js';
import { createMergeCommand } from '../../src/cli/merge.js';
import { createPretrainCommand } from '../../src/cli/pretrain.js';
import { readSubjectPrompt } from '../../src/data/prompts.js';
import { CancelledError } from '../../src/errors.js';
import type { PretrainOptions } from '../../src/training/pretrain.js';
import { completeSettings } from '../../src/workflows/personalisation-settings.js';
import type { PersonaliseOptions } from '../../src/workflows/personalise.js';
import { temporaryFolder } from '../temporary-folder.js';
import { callMain, entry } from './terminal.js';

test('generate passes its flags on and writes the paths of the pictures, one a line', async () => {
  let asked: unknown;
  const generate = entry((terminal) =>
    createGenerateCommand(terminal, async ({ onEvent, signal: _, ...options }) => {
      onEvent?.({ kind: 'stage', name: 'drawing', done: 1, total: 1 });
      asked = options;
      return ['out/0000-a.png', 'out/0001-a.png'];
    }),
  );
  const flags =
    '--run r --model m --variant fp16 --offline --output out --num-images 2 --seed 5 --steps 20 --guidance-scale 3 --scheduler dpm --use-karras-sigmas --negative-prompt blue --resolution 96 --threads 1';
  const prompts = ['--prompt', 'a sks dog', '--prompt', 'a dog in the snow'];
  const { status, out, err } = await callMain(['generate', ...flags.split(' '), ...prompts], { generate });
  assert.deepEqual(asked, {
    run: 'r',
    model: 'm',
    variant: 'fp16',
    offline: true,
    prompts: ['a sks dog', 'a dog in the snow'],
    output: 'out',
    numImages: 2,
    seed: 5,
    steps: 20,
    guidanceScale: 3,
    scheduler: 'dpm',
    useKarrasSigmas: true,
    negativePrompt: 'blue',
    resolution: 96,
    threads: 1,
  });
  assert.deepEqual({ status, out }, { status: 0, out: 'out/0000-a.png\nout/0001-a.png\n' });
  assert.match(err, /^drawing 1\/1\n$/);

  const missing = await callMain(['generate', '--run', 'r'], { generate });
  assert.match(missing.err, /^portrayal generate needs --prompt and --output\./);
});

test('pretrain takes the shipped settings, and the flags over them', async () => {
  let asked: Omit<PretrainOptions, 'engine'> | undefined;
  let processors: number | undefined;
  const pretrain = entry((terminal) =>
    createPretrainCommand(terminal, async (options, threads) => {
      asked = options;
      processors = threads;
    }),
  );
  await callMain(['pretrain', '--output', 'base'], { pretrain });
  const { output, onEvent, signal, ...shipped } = asked!;
  assert.ok(output === 'base' && onEvent && signal);
  const given = [
    ...[
      '--steps',
      '3',
      '--batch-size',
      '2',
      '--vae-crop-steps',
      '9',
      '--vae-steps',
      '4',
      '--vae-batch-size',
      '5',
    ],
    ...['--examples', '6', '--learning-rate', '1e-5', '--checkpointing-steps', '7', '--seed', '8'],
    ...['--threads', '1'],
  ];
  const outcome = await callMain(['pretrain', '--output', 'base', ...given], { pretrain });
  assert.deepEqual(outcome, { status: 0, out: 'base\n', err: '' });
  const changed: Partial<PretrainOptions> = {
    steps: 3,
    batchSize: 2,
    vaeCropSteps: 9,
    vaeSteps: 4,
    vaeBatchSize: 5,
    examples: 6,
    learningRate: 1e-5,
    checkpointingSteps: 7,
    seed: 8,
  };
  for (const [name, value] of Object.entries(changed))
    assert.equal(asked![name as keyof typeof asked], value);
  assert.deepEqual(Object.keys(shipped).sort(), Object.keys(changed).sort());
  assert.equal(processors, 1);
});

test('the demo runs DPG with the look-forward reward, and ends with the report', async () => {
  let asked: PersonaliseOptions | undefined;
  const demo = entry((terminal) =>
    createDemoCommand(terminal, async (options) => {
      asked = options;
      return { run: options.output, report: `${options.output}/report.html` };
    }),
  );
  const { status, out, err } = await callMain(['demo', '--output', 'here'], { demo });
  assert.deepEqual({ status, out }, { status: 0, out: 'here/report.html\n' });
  assert.match(err, /report:\n$/);
  const { images, onEvent, signal, instancePrompt, classPrompt, model, output, ...settings } = asked!;
  assert.equal(output, 'here');
  assert.equal(model, undefined);
  assert.ok(onEvent && signal && String(images).endsWith('teal-zigzag-star-backpack'));
  const complete = completeSettings(settings);
  assert.deepEqual([complete.method, complete.reward], ['dpg', 'look-forward']);
  const { token } = readSubjectPrompt({ instancePrompt: instancePrompt!, classPrompt: classPrompt! });
  assert.ok(complete.validationPrompts!.every((prompt) => prompt.split(' ').includes(token)));
});

test('the demo takes a folder that is not there yet, and goes on with one that it is given', async (t) => {
  const outputs: string[] = [];
  const demo = entry((terminal) =>
    createDemoCommand(terminal, async ({ output, resumeFromCheckpoint }) => {
      outputs.push(resumeFromCheckpoint === undefined ? output : `${output} (${resumeFromCheckpoint})`);
      await mkdir(output, { recursive: true });
      if (outputs.length === 4) throw new CancelledError('Stopped after step 3.');
      return { run: output, report: output };
    }),
  );
  const before = process.cwd();
  process.chdir(await temporaryFolder(t));
  try {
    for (let i = 0; i < 3; i++) await callMain(['demo'], { demo });
    const { status, err } = await callMain(['demo', '--output', 'runs/demo-2'], { demo });
    assert.equal(status, 130);
    assert.match(err, /Stopped\. .*\n {2}portrayal demo --output runs\/demo-2\n$/);
  } finally {
    process.chdir(before);
  }
  assert.deepEqual(outputs, ['runs/demo', 'runs/demo-2', 'runs/demo-3', 'runs/demo-2 (latest)']);
});

test('merge and convert pass their flags on and write the path of what they made', async () => {
  let asked: unknown;
  const record = async (options: object): Promise<string> => {
    const { onEvent: _onEvent, signal: _signal, ...plain } = options as Record<string, unknown>;
    asked = Object.fromEntries(Object.entries(plain).filter(([, value]) => value !== undefined));
    return 'made';
  };
  const commands = {
    merge: entry((terminal) => createMergeCommand(terminal, record)),
    convert: entry((terminal) => createConvertCommand(terminal, { lora: record, model: record })),
  };
  const done = { status: 0, out: 'made\n', err: '' };
  const loras = [
    '--lora',
    'a.safetensors:0.8',
    '--lora',
    'b:c.safetensors',
    '--lora',
    'C:\\d.safetensors:-1e-1',
  ];
  const source = ['--variant', 'fp16', '--offline'];
  assert.deepEqual(
    await callMain(['merge', '--model', 'm', ...source, ...loras, '--output', 'o'], commands),
    done,
  );
  assert.deepEqual(asked, {
    model: 'm',
    variant: 'fp16',
    offline: true,
    loras: [
      { file: 'a.safetensors', weight: 0.8 },
      { file: 'b:c.safetensors' },
      { file: 'C:\\d.safetensors', weight: -0.1 },
    ],
    output: 'o',
  });
  const lora = ['convert', '--lora', 'a', '--format', 'kohya', '--output', 'o'];
  assert.deepEqual(await callMain(lora, commands), done);
  assert.deepEqual(asked, { lora: 'a', format: 'kohya', output: 'o' });
  assert.deepEqual(await callMain([...lora, '--save-precision', 'bf16'], commands), done);
  assert.deepEqual(asked, { lora: 'a', format: 'kohya', output: 'o', savePrecision: 'bf16' });
  const model = ['convert', '--model', 'm', '--prediction-type', 'v_prediction', '--output', 'o'];
  assert.deepEqual(await callMain([...model, ...source], commands), done);
  assert.deepEqual(asked, {
    model: 'm',
    output: 'o',
    predictionType: 'v_prediction',
    variant: 'fp16',
    offline: true,
  });
  for (const [args, message] of [
    [['merge', '--model', 'm'], /needs --lora and --output/],
    [['convert', '--output', 'o'], /either --lora or --model/],
    [[...lora, '--model', 'm'], /either --lora or --model/],
    [['convert', '--lora', 'a', '--output', 'o'], /--lora needs --format: peft, kohya or diffusers/],
    [[...model, '--format', 'peft'], /--format is for --lora/],
    [[...model, '--save-precision', 'fp16'], /--save-precision is for --lora/],
    [
      ['convert', '--lora', 'a', '--format', 'x', '--output', 'o'],
      /--format x: expected peft, kohya or diffusers/,
    ],
  ] as const) {
    const { status, err } = await callMain([...args], commands);
    assert.equal(status, 2);
    assert.match(err, message);
  }
});
