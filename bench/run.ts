// Times the training step beside PyTorch, in one run on one machine, turn by turn: on the shipped base model, or with --full on the shape of Stable Diffusion 1.5.
// npm run bench -- [--full] [--device NAME] [--write] [--repeats N] [--threads N] [--model DIR] [--without-pytorch] [--profile]; --write puts the result into
// docs/benchmarks.md. With --device it times that size on a graphics card.
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { availableParallelism, cpus, tmpdir, totalmem } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { allocatorSettings } from '../src/engine/allocator.js';
import { type Device, devices } from '../src/engine/device.js';
import { createNodeEngine } from '../src/engine/node.js';
import { PortrayalError, UsageError } from '../src/errors.js';
import { writeSafetensorsFile } from '../src/formats/safetensors-file.js';
import type { ComputeType } from '../src/nn/parameters.js';
import { StableDiffusion } from '../src/pretrained/stable-diffusion.js';
import { pretrain } from '../src/training/pretrain.js';
import { type DocsSection, writeDocsSection } from './docs-section.js';
import { type ForwardPart, forwardInputs } from './forward-inputs.js';
import { operatorTimes } from './operator-profile.js';
import { LineProcess } from './process-lines.js';
import { findPython } from './python-environment.js';
import { learningRates, type Method, stepInputs, type Workload } from './step-inputs.js';

const root = fileURLToPath(new URL('../../', import.meta.url));
/** What is timed, by the size of the model. */
interface Size {
  readonly instances: number;
  readonly priors: number;
  readonly rank: number;
  readonly repeats: number;
  readonly warmUp: number;
  readonly cases: readonly Case[];
  readonly compileSeconds: number;
  /** Of the part of docs/benchmarks.md that it writes. */
  readonly marker: string;
}

/** One line of measurements, and how much of PyTorch's time it may take. */
interface Case {
  readonly title: string;
  /** None where nothing was promised. */
  readonly bar?: number;
  readonly work: StepWork | ForwardPart;
  /** Of the denoiser; 32-bit floats where it is left out. */
  readonly computeType?: ComputeType;
}

/** A training step. */
interface StepWork {
  readonly method: Method;
  readonly gradientCheckpointing: boolean;
}

function stepCase(method: Method, bar?: number, gradientCheckpointing = false): Case {
  const name = method === 'dpg' ? 'DPG, look-forward' : 'DreamBooth';
  return {
    title: `step, ${name}${gradientCheckpointing ? ', gradient checkpointing' : ''}`,
    ...(bar === undefined ? {} : { bar }),
    work: { method, gradientCheckpointing },
  };
}

const inHalves = (one: Case): Case => ({
  ...one,
  title: `${one.title}, half precision`,
  computeType: 'float16',
});

const BASE: Size = {
  instances: 4,
  priors: 4,
  rank: 8,
  repeats: 15,
  warmUp: 2,
  cases: [stepCase('dpg', 1), stepCase('dreambooth', 1)],
  compileSeconds: 3,
  marker: 'training step',
};
const FULL: Size = {
  instances: 1,
  priors: 1,
  rank: 4,
  repeats: 5,
  warmUp: 0,
  cases: [
    stepCase('dreambooth', 0.8),
    stepCase('dreambooth', 0.75, true),
    stepCase('dpg', 0.8),
    { title: 'denoiser, 2 rows', bar: 0.85, work: 'denoiser' },
    ...(['autoencoder, decoding', 'autoencoder, encoding', 'text encoder'] as const).map((work) => ({
      title: work,
      bar: 0.9,
      work,
    })),
  ],
  compileSeconds: 40,
  marker: 'full-size step',
};
/** The cases of a size that are timed on a graphics card, where the processor's bars mean nothing. */
function onCard(size: Size): Size {
  const steps = [stepCase('dreambooth'), stepCase('dpg')];
  return {
    ...size,
    warmUp: 2,
    repeats: 15,
    cases: [...steps, ...steps.map(inHalves), inHalves(stepCase('dreambooth', undefined, true))],
    marker: `${size.marker} on ${device}`,
  };
}

/** Threads that were left spinning at the end of one side's step are asleep after this long. */
const REST_MILLISECONDS = 100;
const LARGEST_LOSS_DIFFERENCE = { float32: 1e-4, float16: 1e-2 } as const;

const { values: options } = parseArgs({
  options: {
    full: { type: 'boolean', default: false },
    device: { type: 'string', default: 'cpu' },
    repeats: { type: 'string' },
    threads: { type: 'string', default: String(availableParallelism()) },
    model: { type: 'string' },
    /** Lines whose title has this in it, and nothing else. */
    only: { type: 'string' },
    write: { type: 'boolean', default: false },
    'without-pytorch': { type: 'boolean', default: false },
    profile: { type: 'boolean', default: false },
  },
});

const device = options.device as Device;
const sizeOnProcessor = options.full ? FULL : BASE;
const size = device === 'cpu' ? sizeOnProcessor : onCard(sizeOnProcessor);

function count(name: 'repeats' | 'threads', least: number): number {
  const value = Number(options[name] ?? size.repeats);
  if (!Number.isInteger(value) || value < least)
    throw new UsageError(`--${name} ${options[name]}: expected a whole number of at least ${least}.`);
  return value;
}

interface Ready {
  readonly version: string;
  /** The graphics card's name; PyTorch's side alone says it. */
  readonly card?: string;
  readonly buildSeconds?: number;
  readonly compileSeconds?: number;
}
interface Step {
  readonly seconds: number;
  /** The loss, or the mean size of what a network puts out: the same on both sides. */
  readonly loss: number;
  /** What the process holds after it; ours alone says it. */
  readonly residentBytes?: number;
}
interface End {
  readonly peakBytes: number;
  /** On the graphics card, by its driver. */
  readonly deviceBytes?: number;
  /** The engine's profile, where one was asked for. */
  readonly profile?: string;
}

/** What one side's process showed. */
interface Side extends Ready, End {
  readonly seconds: readonly number[];
  readonly firstStep: Step;
  /** From the start of the process to the end of its first step. */
  readonly startSeconds: number;
}

interface Result extends Case {
  readonly ours: Side;
  readonly pytorch: Side | undefined;
}

const median = (values: readonly number[]): number => {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
};

/** Times the sides in turn, so that whatever else the machine does meets both. */
async function measure(starts: readonly (() => LineProcess)[], repeats: number): Promise<Side[]> {
  const processes: LineProcess[] = [];
  try {
    const sides: {
      process: LineProcess;
      ready: Ready;
      firstStep: Step;
      startSeconds: number;
      seconds: number[];
    }[] = [];
    for (const start of starts) {
      const started = performance.now();
      const process = start();
      processes.push(process);
      const ready = await process.read<Ready>();
      const firstStep = await process.ask<Step>('step');
      const startSeconds = (performance.now() - started) / 1000;
      sides.push({ process, ready, firstStep, startSeconds, seconds: [] });
    }
    for (let i = 0; i < size.warmUp + repeats; i++) {
      // Each side goes first as often as the other.
      for (const side of i % 2 === 0 ? sides : [...sides].reverse()) {
        await sleep(REST_MILLISECONDS);
        const { seconds } = await side.process.ask<Step>('step');
        if (i >= size.warmUp) side.seconds.push(seconds);
      }
    }
    const results: Side[] = [];
    for (const { process, ready, ...times } of sides) {
      results.push({ ...ready, ...times, ...(await process.ask<End>('end')) });
    }
    return results;
  } finally {
    for (const process of processes) process.stop();
  }
}

/** A model of the shape of Stable Diffusion 1.5 with random weights. */
function fullSizeModel(temporary: string, python: string | undefined): { path: string; name: string } {
  const name = 'the shape of Stable Diffusion 1.5 with random weights, at 512 pixels';
  if (options.model !== undefined) return { path: options.model, name };
  if (python === undefined)
    throw new UsageError('--full without --model needs Python, which makes the weights.');
  const path = join(temporary, 'full');
  const script = join(root, 'bench', 'full_size_model.py');
  const made = spawnSync(python, [script, path, join(root, 'models', 'base')], { encoding: 'utf8' });
  if (made.status !== 0) throw new Error(made.stderr);
  return { path, name };
}

/** The shipped base, or one of its shape with random weights, which take the same time. */
async function baseModel(temporary: string, threads: number): Promise<{ path: string; name: string }> {
  if (options.model !== undefined) return { path: options.model, name: options.model };
  const shipped = join(root, 'models', 'base');
  if (existsSync(join(shipped, 'model_index.json'))) return { path: shipped, name: 'the shipped base model' };
  const path = join(temporary, 'base');
  const engine = createNodeEngine({ threads });
  await pretrain({
    output: path,
    engine,
    seed: 1,
    examples: 16,
    vaeCropSteps: 0,
    vaeSteps: 0,
    vaeBatchSize: 1,
    steps: 0,
    batchSize: 1,
    learningRate: 1e-3,
    checkpointingSteps: 1,
  });
  await engine.close();
  return { path, name: 'a model of the base configuration with random weights' };
}

/** What both sides of a case are told, with their inputs written where the other side finds them. */
async function taskOf({ title, work, computeType = 'float32' }: Case, path: string, temporary: string) {
  const model = await StableDiffusion.open(path);
  const threads = count('threads', 1);
  const inputs = join(temporary, `${title.replaceAll(/[^a-z]+/gi, '-')}.safetensors`);
  if (typeof work === 'string') {
    await writeSafetensorsFile(inputs, forwardInputs(model, work));
    return { scripts: FORWARD_SCRIPTS, task: { model: path, inputs, threads, part: work } };
  }
  const { method, gradientCheckpointing } = work;
  const workload: Workload = {
    method,
    instances: size.instances,
    priors: size.priors,
    resolution: model.resolution,
    lora: { rank: size.rank, alpha: size.rank, textEncoder: false },
  };
  const { batch, factors, critic } = stepInputs(model, workload);
  await writeSafetensorsFile(inputs, new Map([...batch, ...factors, ...critic]));
  return {
    scripts: STEP_SCRIPTS,
    task: {
      model: path,
      inputs,
      threads,
      device,
      computeType,
      workload,
      gradientCheckpointing,
      learningRates,
      adamw: {},
    },
  };
}

const STEP_SCRIPTS = ['training-step.js', 'pytorch_step.py'] as const;
const FORWARD_SCRIPTS = ['forward-pass.js', 'pytorch_forward.py'] as const;

/** With the allocator as the command sets it. */
function ourProcess(script: string, task: object): LineProcess {
  const file = fileURLToPath(new URL(`./${script}`, import.meta.url));
  return new LineProcess(process.execPath, [file, JSON.stringify(task)], allocatorSettings);
}

async function bench(
  one: Case,
  path: string,
  temporary: string,
  python: string | undefined,
): Promise<Result> {
  const {
    scripts: [script, otherScript],
    task,
  } = await taskOf(one, path, temporary);
  const profilePrefix = options.profile ? join(temporary, 'profile') : undefined;
  const ours = () => ourProcess(script, { ...task, profilePrefix });
  const other = (command: string) => () =>
    new LineProcess(command, [join(root, 'bench', otherScript), JSON.stringify(task)]);
  const repeats = count('repeats', 3);
  const [first, second] = await measure(python === undefined ? [ours] : [ours, other(python)], repeats).catch(
    (error: unknown) => {
      if (python === undefined) throw error;
      console.log(
        `PyTorch is skipped, as its side failed: ${error instanceof Error ? error.message : error}`,
      );
      return measure([ours], repeats);
    },
  );
  if (first?.profile !== undefined) printProfile(first.profile, 1 + size.warmUp + repeats);
  return { ...one, ours: first!, pytorch: second };
}

/** How much longer a DPG step takes than a DreamBooth step, both ours, turn by turn. */
async function dpgOverDreamBooth(path: string, temporary: string): Promise<number> {
  const starts: (() => LineProcess)[] = [];
  for (const method of ['dpg', 'dreambooth'] as const) {
    const { scripts, task } = await taskOf(stepCase(method, 1), path, temporary);
    starts.push(() => ourProcess(scripts[0], task));
  }
  const [dpg, dreambooth] = await measure(starts, count('repeats', 3));
  return median(turnRatios(dpg!, dreambooth!));
}

const FLAT_STEPS = 30;
const FLAT_FROM = 5;

/** How much more memory a run holds at the end of many steps than after the first few, as a share. */
async function memoryGrowth(path: string, temporary: string): Promise<number> {
  const { scripts, task } = await taskOf(stepCase('dpg', 1), path, temporary);
  const steps = ourProcess(scripts[0], task);
  try {
    await steps.read<Ready>();
    const resident: number[] = [];
    for (let i = 0; i < FLAT_STEPS; i++) resident.push((await steps.ask<Step>('step')).residentBytes!);
    return Math.max(...resident.slice(FLAT_FROM)) / resident[FLAT_FROM - 1]! - 1;
  } finally {
    steps.stop();
  }
}

function printProfile(profile: string, steps: number): void {
  for (const [withShapes, rows] of [
    [false, 30],
    [true, 40],
  ] as const) {
    for (const { operator, calls, seconds } of operatorTimes(profile, withShapes).slice(0, rows)) {
      const each = ((1000 * seconds) / steps).toFixed(2).padStart(8);
      console.log(`${each} ms ${String(Math.round(calls / steps)).padStart(5)}  ${operator}`);
    }
    console.log();
  }
}

const mebibytes = (bytes: number): string => `${(bytes / 2 ** 20).toFixed(0)} MiB`;
const milliseconds = (seconds: number): string => `${(1000 * seconds).toFixed(0)} ms`;
const spread = ({ seconds }: Side): string =>
  `${milliseconds(median(seconds))} (${milliseconds(Math.min(...seconds))} to ${milliseconds(Math.max(...seconds))})`;
const ratioOf = ({ ours, pytorch }: Result): number | undefined =>
  pytorch && median(ours.seconds) / median(pytorch.seconds);
/** The ratios of the steps that followed one another: a machine that is busy with other things for a while slows both. */
const turnRatios = (side: Side, other: Side): number[] =>
  side.seconds.map((seconds, i) => seconds / other.seconds[i]!);
const ratioSpread = ({ ours, pytorch }: Result): string => {
  if (!pytorch) return '-';
  const ratios = turnRatios(ours, pytorch);
  const [middle, least, most] = [median(ratios), Math.min(...ratios), Math.max(...ratios)];
  return `${middle.toFixed(2)} (${least.toFixed(2)} to ${most.toFixed(2)})`;
};

function table(results: readonly Result[]): string {
  const row = (title: string, of: (side: Side) => string | undefined): string[] =>
    results.map((result) => {
      const cells = [result.ours, result.pytorch].map((side) => (side && of(side)) ?? '-');
      return `| ${result.title} | ${title} | ${cells.join(' | ')} |`;
    });
  const compile = ({ buildSeconds, compileSeconds }: Side): string | undefined =>
    buildSeconds === undefined || compileSeconds === undefined
      ? undefined
      : `${buildSeconds.toFixed(2)} s + ${compileSeconds.toFixed(2)} s`;
  return [
    '| what | | portrayal | PyTorch |',
    '|---|---|---|---|',
    ...row('time, median (fastest to slowest)', spread),
    ...results.map((r) => `| ${r.title} | ratio of the medians | ${ratioOf(r)?.toFixed(2) ?? '-'} | 1 |`),
    ...results.map((r) => `| ${r.title} | ratio of a turn, median (least to most) | ${ratioSpread(r)} | 1 |`),
    ...row('graph build + compile', compile),
    ...row('start of the process to the end of its first run', (s) => `${s.startSeconds.toFixed(1)} s`),
    ...row('peak memory of the process', (s) => mebibytes(s.peakBytes)),
    ...(device === 'cpu'
      ? []
      : row('memory on the card', ({ deviceBytes }) =>
          deviceBytes === undefined ? undefined : mebibytes(deviceBytes),
        )),
  ].join('\n');
}

function conditions(results: readonly Result[], modelName: string): string {
  const repeats = results[0]!.ours.seconds.length;
  const card = results[0]!.pytorch?.card;
  const versions = [results[0]!.ours.version, results[0]!.pytorch?.version].filter((v) => v !== undefined);
  return [
    `Training steps on ${modelName}: ${size.instances} ${size.instances === 1 ? 'row' : 'rows'} of the subject and ${size.priors} of its class,`,
    `low-rank updates of rank ${size.rank} on the attention projections, forward, backward, clipping, AdamW and (DPG) the critic's step,`,
    `${device === 'cpu' ? 'float32, ' : ''}${count('threads', 1)} threads each. Both sides run at the same time, turn by turn, in processes of their own;`,
    `${repeats} steps each after ${1 + size.warmUp} to warm up.`,
    `${cpus()[0]?.model.trim() ?? 'unknown processor'}, ${availableParallelism()} processors, ${Math.round(totalmem() / 2 ** 30)} GiB;${card ? ` ${card};` : ''} ${versions.join('; ')}.`,
  ].join('\n');
}

const section: DocsSection = {
  page: 'benchmarks.md',
  begin: `<!-- ${size.marker}: written by npm run bench -- ${options.full ? '--full ' : ''}${device === 'cpu' ? '' : `--device ${device} `}--write -->`,
  end: `<!-- end of the ${size.marker} -->`,
};

/** Says where a bar is missed, or where the two sides did not do the same work. */
function verdicts(results: readonly Result[]): string[] {
  return results.flatMap((result) => {
    const { title, bar, ours, pytorch, computeType = 'float32' } = result;
    const found: string[] = [];
    const ratio = ratioOf(result);
    if (ratio !== undefined && bar !== undefined && ratio > bar)
      found.push(`${title}: the ratio ${ratio.toFixed(2)} is over ${bar}`);
    const compile = (ours.buildSeconds ?? 0) + (ours.compileSeconds ?? 0);
    if (compile > size.compileSeconds)
      found.push(`${title}: build and compile took ${compile.toFixed(1)} s, over ${size.compileSeconds} s`);
    if (pytorch) {
      const difference = Math.abs(ours.firstStep.loss / pytorch.firstStep.loss - 1);
      if (!(difference <= LARGEST_LOSS_DIFFERENCE[computeType])) {
        found.push(
          `${title}: the first loss, or output, is ${ours.firstStep.loss} here and ${pytorch.firstStep.loss} in PyTorch: not the same work`,
        );
      }
    }
    return found;
  });
}

/** The lines that are measured. @throws UsageError where none has what was asked for */
function chosenCases(): readonly Case[] {
  const { only } = options;
  if (only === undefined) return size.cases;
  if (options.write) throw new UsageError('--write writes the whole table: leave --only out.');
  const chosen = size.cases.filter(({ title }) => title.includes(only));
  if (chosen.length > 0) return chosen;
  const titles = size.cases.map(({ title }) => title).join('; ');
  throw new UsageError(`--only ${only}: no line has it in its title. There are: ${titles}.`);
}

async function main(): Promise<void> {
  if (!devices.includes(device))
    throw new UsageError(`--device ${device}: expected one of ${devices.join(', ')}.`);
  const threads = count('threads', 1);
  count('repeats', 3);
  const cases = chosenCases();
  const temporary = await mkdtemp(join(tmpdir(), 'portrayal-bench-'));
  try {
    const environment = options['without-pytorch']
      ? { missing: 'left out by --without-pytorch' }
      : findPython(root, console.log);
    if ('missing' in environment) console.log(`PyTorch is skipped: ${environment.missing}.`);
    const python = 'python' in environment ? environment.python : undefined;
    const { path, name } = options.full
      ? fullSizeModel(temporary, python)
      : await baseModel(temporary, threads);
    const results: Result[] = [];
    for (const one of cases) {
      const result = await bench(one, path, temporary, python);
      const times = [result.ours, result.pytorch].map((side) => (side ? spread(side) : '-'));
      console.error(`${one.title}: ${times.join(' against ')}`);
      results.push(result);
    }
    const text = [conditions(results, name), table(results)];
    const missed = verdicts(results);
    if (options.full && device === 'cpu' && options.only === undefined) {
      const over = await dpgOverDreamBooth(path, temporary);
      const growth = await memoryGrowth(path, temporary);
      if (over > 1.05) missed.push(`a DPG step takes ${over.toFixed(2)} of a DreamBooth step, over 1.05`);
      if (growth > 0.01) missed.push(`memory grows by ${(100 * growth).toFixed(1)} %, over 1 %`);
      text.push(
        `A DPG step takes ${over.toFixed(3)} of the time of a DreamBooth step (both ours, median of the turns). Over ${FLAT_STEPS} DPG steps the process holds at most ${(100 * growth).toFixed(2)} % more than after step ${FLAT_FROM}.`,
      );
    }
    console.log(`\n${text.join('\n\n')}\n`);
    console.log(missed.length ? missed.join('\n') : 'Every bar is held.');
    if (options.write) await writeDocsSection(section, text.join('\n\n'));
    process.exitCode = missed.length ? 1 : 0;
  } finally {
    await rm(temporary, { recursive: true, force: true });
  }
}

try {
  await main();
} catch (error) {
  if (!(error instanceof PortrayalError)) throw error;
  console.error(error.message);
  process.exitCode = error.exitCode;
}
