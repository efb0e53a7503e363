// Compares the estimate of a run's memory with the most that the run held, each in a process of its own.
// npm run bench:memory -- [--write] [--threads N] [--model FOLDER] [--only TEXT]; --write puts the table into docs/benchmarks.md. Takes some minutes and up to 4 GiB.
import { execFile } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { availableParallelism, cpus, tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs, promisify } from 'node:util';
import { allocatorSettings } from '../src/engine/allocator.js';
import { onnxRuntimeVersion } from '../src/engine/version.js';
import { PortrayalError, UsageError } from '../src/errors.js';
import { estimatePersonalisation, type PersonaliseOptions } from '../src/workflows/personalise.js';
import { bundledSubjectPath } from '../src/workflows/shipped.js';
import { writeDocsSection } from './docs-section.js';
import { writeRandomEncoder, writeRandomModel } from './random-model.js';

const { values: flags } = parseArgs({
  options: {
    write: { type: 'boolean', default: false },
    /** A model of the shape of Stable Diffusion 1.5, to be measured too. */
    model: { type: 'string' },
    /** Runs whose model or description has this in it, and nothing else. */
    only: { type: 'string' },
    threads: { type: 'string', default: String(availableParallelism()) },
  },
});

/** Of a third of Stable Diffusion's width, with attention at its first two levels and in the autoencoder: 26 M parameters. */
const midSize = {
  unet: {
    block_out_channels: [96, 192, 320],
    attention_head_dim: 8,
    down_block_types: ['CrossAttnDownBlock2D', 'CrossAttnDownBlock2D', 'DownBlock2D'],
    up_block_types: ['UpBlock2D', 'CrossAttnUpBlock2D', 'CrossAttnUpBlock2D'],
    norm_num_groups: 32,
    in_channels: 4,
    out_channels: 4,
    sample_size: 64,
  },
  vae: {
    block_out_channels: [32, 64, 128, 128],
    latent_channels: 4,
    norm_num_groups: 8,
    down_block_types: new Array(4).fill('DownEncoderBlock2D'),
    up_block_types: new Array(4).fill('UpDecoderBlock2D'),
    mid_block_add_attention: true,
  },
};

const SHIPPED = 'shipped base';
const MID_SIZE = 'mid-size';
const FULL_SIZE = 'Stable Diffusion 1.5';
type Case = readonly [model: string, what: string, options: Partial<PersonaliseOptions>];

/** What the factors of the estimate were fitted to. */
const fitted: readonly Case[] = [
  [SHIPPED, '64 px, batch 4 + 4', { trainBatchSize: 4 }],
  [MID_SIZE, '256 px, batch 1 + 1', { resolution: 256 }],
  [MID_SIZE, '256 px, batch 2 + 2', { resolution: 256, trainBatchSize: 2 }],
  [MID_SIZE, '256 px, batch 4 + 4', { resolution: 256, trainBatchSize: 4 }],
  [
    MID_SIZE,
    '256 px, batch 2 + 2, gradient checkpointing, text encoder',
    { resolution: 256, trainBatchSize: 2, gradientCheckpointing: true, trainTextEncoder: true },
  ],
  [MID_SIZE, '384 px, batch 1 + 1', { resolution: 384, guidanceScale: 1 }],
  [
    MID_SIZE,
    '384 px, batch 1 + 1, gradient checkpointing',
    { resolution: 384, gradientCheckpointing: true, guidanceScale: 1 },
  ],
  [
    MID_SIZE,
    '384 px, batch 2, DreamBooth alone',
    {
      resolution: 384,
      trainBatchSize: 2,
      method: 'dreambooth',
      withPriorPreservation: false,
      guidanceScale: 1,
    },
  ],
];

/** What they were not fitted to. */
const others = (encoder: string): readonly Case[] => [
  [SHIPPED, '64 px, batch 16 + 16', { trainBatchSize: 16 }],
  [MID_SIZE, '256 px, batch 1 + 1, reward of DINO ViT-S/16', { resolution: 256, reward: `dino:${encoder}` }],
  [
    MID_SIZE,
    '256 px, batch 2 + 2, reward of DINO ViT-S/16, gradient checkpointing',
    { resolution: 256, trainBatchSize: 2, reward: `dino:${encoder}`, gradientCheckpointing: true },
  ],
  [MID_SIZE, '256 px, batch 1 + 1, JPEG size as reward', { resolution: 256, reward: 'jpeg-size' }],
  [
    MID_SIZE,
    '320 px, batch 3 + 3, text encoder, moving average',
    { resolution: 320, trainBatchSize: 3, trainTextEncoder: true, useEma: true },
  ],
  [
    MID_SIZE,
    '384 px, batch 2 + 2, rank 64, two steps accumulated',
    { resolution: 384, trainBatchSize: 2, rank: 64, loraAlpha: 64, gradientAccumulationSteps: 2 },
  ],
  [
    MID_SIZE,
    '512 px, batch 1, DreamBooth alone, gradient checkpointing',
    {
      resolution: 512,
      method: 'dreambooth',
      withPriorPreservation: false,
      gradientCheckpointing: true,
    },
  ],
];

const full: readonly Case[] = [
  [
    FULL_SIZE,
    '512 px, batch 1 + 1, all weights, gradient checkpointing',
    { resolution: 512, train: 'full', gradientCheckpointing: true, saveModel: false },
  ],
  [FULL_SIZE, '512 px, batch 1 + 1', { resolution: 512, guidanceScale: 1 }],
  [
    FULL_SIZE,
    '512 px, batch 1 + 1, gradient checkpointing',
    { resolution: 512, gradientCheckpointing: true, guidanceScale: 1 },
  ],
];

const folder = await mkdtemp(join(tmpdir(), 'portrayal-memory-'));
try {
  if (flags.only !== undefined && flags.write)
    throw new UsageError('--write writes the whole table: leave --only out.');
  const midSizePath = join(folder, 'model');
  await writeRandomModel(midSizePath, midSize);
  const encoder = join(folder, 'encoder');
  await writeRandomEncoder(encoder);
  const paths: Readonly<Record<string, string | undefined>> = {
    [MID_SIZE]: midSizePath,
    [FULL_SIZE]: flags.model && resolve(flags.model),
  };
  const cases = [...fitted, ...others(encoder), ...(flags.model === undefined ? [] : full)];
  const { only = '' } = flags;
  const chosen = cases.filter(([model, what]) => `${model}, ${what}`.includes(only));
  if (chosen.length === 0) throw new UsageError(`--only ${only}: no run has it in its description.`);
  const rows: string[] = [];
  for (const one of chosen) {
    const [model, what, changes] = one;
    const options: PersonaliseOptions = {
      model: paths[model],
      images: bundledSubjectPath(),
      instancePrompt: 'a photo of sks backpack',
      classPrompt: 'a photo of backpack',
      output: join(folder, 'run'),
      steps: 2,
      numClassImages: 1,
      validationPrompts: ['a sks backpack'],
      numValidationImages: 1,
      samplingSteps: 1,
      // Random networks are far from any picture: with small steps their training stays finite.
      criticLearningRate: 1e-7,
      threads: Number(flags.threads),
      memoryCheck: false,
      ...changes,
    };
    const { peak } = await estimatePersonalisation(options);
    const program = fileURLToPath(new URL('./memory-run.js', import.meta.url));
    const { stdout } = await promisify(execFile)(process.execPath, [program, JSON.stringify(options)], {
      env: { ...process.env, ...allocatorSettings },
    });
    const measured = Number(stdout);
    const mebibytes = (bytes: number): string => `${Math.round(bytes / 2 ** 20)} MiB`;
    const error = peak.total / measured - 1;
    const cells = [
      model,
      what,
      fitted.includes(one) ? 'yes' : 'no',
      peak.name,
      mebibytes(peak.total),
      mebibytes(measured),
      `${error > 0 ? '+' : ''}${(100 * error).toFixed(0)} %`,
    ];
    rows.push(`| ${cells.join(' | ')} |`);
    process.stdout.write(`${rows.at(-1)}\n`);
    await rm(options.output, { recursive: true });
  }
  if (flags.write) await writeTable(rows);
} catch (error) {
  if (!(error instanceof PortrayalError)) throw error;
  console.error(error.message);
  process.exitCode = error.exitCode;
} finally {
  await rm(folder, { recursive: true, force: true });
}

async function writeTable(rows: readonly string[]): Promise<void> {
  const section = {
    page: 'benchmarks.md',
    begin: '<!-- memory: written by npm run bench:memory -- --write -->',
    end: '<!-- end of memory -->',
  };
  const table = [
    `${cpus()[0]?.model.trim()}, ${flags.threads} threads; Node ${process.versions.node}, ONNX Runtime ${onnxRuntimeVersion()}.`,
    '',
    '| model | run | used to fit | needs most while | estimate | measured | error |',
    '|---|---|---|---|---|---|---|',
    ...rows,
  ];
  await writeDocsSection(section, table.join('\n'));
}
