// Times the training step beside PyTorch, in one run on one machine, turn by turn: on the shipped base model, or with --full on the shape of Stable Diffusion 1.5.
// npm run bench -- [--full] [--write] [--repeats N] [--threads N] [--model DIR] [--without-pytorch] [--profile]; --write puts the result into docs/benchmarks.md.
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { availableParallelism, cpus, tmpdir, totalmem } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { createNodeEngine } from '../src/engine/node.js';
import { PortrayalError, UsageError } from '../src/errors.js';
import { writeSafetensorsFile } from '../src/formats/safetensors-file.js';
import { StableDiffusion } from '../src/pretrained/stable-diffusion.js';
import { pretrain } from '../src/training/pretrain.js';
import { operatorTimes } from './operator-profile.js';
import { LineProcess } from './process-lines.js';
import { findPython } from './python-environment.js';
import { learningRates, METHODS, type Method, stepInputs, type Workload } from './step-inputs.js';

const root = fileURLToPath(new URL('../../', import.meta.url));
/** What is timed, by the size of the model. */
interface Size {
  readonly instances: number;
  readonly priors: number;
  readonly rank: number;
  readonly repeats: number;
  readonly warmUp: number;
  readonly cases: readonly Case[];
  readonly bars: { readonly ratio: number; readonly compileSeconds: number };
  /** Of the part of docs/benchmarks.md that it writes. */
  readonly marker: string;
}

/** One line of measurements. */
interface Case {
  readonly method: Method;
  readonly gradientCheckpointing: boolean;
}

const BASE: Size = {
  instances: 4,
  priors: 4,
  rank: 8,
  repeats: 15,
  warmUp: 2,
  cases: METHODS.map((method) => ({ method, gradientCheckpointing: false })),
  bars: { ratio: 1, compileSeconds: 3 },
  marker: 'training step',
};
const FULL: Size = {
  instances: 1,
  priors: 1,
  rank: 4,
  repeats: 5,
  warmUp: 0,
  cases: [
    { method: 'dreambooth', gradientCheckpointing: false },
    { method: 'dreambooth', gradientCheckpointing: true },
    { method: 'dpg', gradientCheckpointing: false },
  ],
  bars: { ratio: 0.8, compileSeconds: 40 },
  marker: 'full-size step',
};
/** Threads that were left spinning at the end of one side's step are asleep after this long. */
const REST_MILLISECONDS = 100;
const LARGEST_LOSS_DIFFERENCE = 1e-4;

const { values: options } = parseArgs({
  options: {
    full: { type: 'boolean', default: false },
    repeats: { type: 'string' },
    threads: { type: 'string', default: String(availableParallelism()) },
    model: { type: 'string' },
    write: { type: 'boolean', default: false },
    'without-pytorch': { type: 'boolean', default: false },
    profile: { type: 'boolean', default: false },
  },
});

const size = options.full ? FULL : BASE;

function count(name: 'repeats' | 'threads', least: number): number {
  const value = Number(options[name] ?? size.repeats);
  if (!Number.isInteger(value) || value < least)
    throw new UsageError(`--${name} ${options[name]}: expected a whole number of at least ${least}.`);
  return value;
}

interface Ready {
  readonly version: string;
  readonly buildSeconds?: number;
  readonly compileSeconds?: number;
}
interface Step {
  readonly seconds: number;
  readonly loss: number;
  readonly gradientNorm: number;
}
interface End {
  readonly peakBytes: number;
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

async function bench(
  { method, gradientCheckpointing }: Case,
  path: string,
  temporary: string,
  python: string | undefined,
): Promise<Result> {
  const model = await StableDiffusion.open(path);
  const workload: Workload = {
    method,
    instances: size.instances,
    priors: size.priors,
    resolution: model.resolution,
    lora: { rank: size.rank, alpha: size.rank, textEncoder: false },
  };
  const inputs = join(temporary, `${method}${gradientCheckpointing ? '-checkpointing' : ''}.safetensors`);
  const { batch, factors, critic } = stepInputs(model, workload);
  await writeSafetensorsFile(inputs, new Map([...batch, ...factors, ...critic]));
  const threads = count('threads', 1);
  const task = { model: path, inputs, threads, workload, gradientCheckpointing, learningRates, adamw: {} };
  const profilePrefix = options.profile ? join(temporary, `profile-${method}`) : undefined;
  const script = fileURLToPath(new URL('./training-step.js', import.meta.url));
  const ours = () => new LineProcess(process.execPath, [script, JSON.stringify({ ...task, profilePrefix })]);
  const other = (command: string) => () =>
    new LineProcess(command, [join(root, 'bench', 'pytorch_step.py'), JSON.stringify(task)]);
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
  return { method, gradientCheckpointing, ours: first!, pytorch: second };
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

const TITLES: Readonly<Record<Method, string>> = { dpg: 'DPG, look-forward', dreambooth: 'DreamBooth' };
const titleOf = ({ method, gradientCheckpointing }: Case): string =>
  `${TITLES[method]}${gradientCheckpointing ? ', gradient checkpointing' : ''}`;
const milliseconds = (seconds: number): string => `${(1000 * seconds).toFixed(0)} ms`;
const spread = ({ seconds }: Side): string =>
  `${milliseconds(median(seconds))} (${milliseconds(Math.min(...seconds))} to ${milliseconds(Math.max(...seconds))})`;
const ratioOf = ({ ours, pytorch }: Result): number | undefined =>
  pytorch && median(ours.seconds) / median(pytorch.seconds);

function table(results: readonly Result[]): string {
  const row = (title: string, of: (side: Side) => string | undefined): string[] =>
    results.map((result) => {
      const cells = [result.ours, result.pytorch].map((side) => (side && of(side)) ?? '-');
      return `| ${titleOf(result)} | ${title} | ${cells.join(' | ')} |`;
    });
  const compile = ({ buildSeconds, compileSeconds }: Side): string | undefined =>
    buildSeconds === undefined || compileSeconds === undefined
      ? undefined
      : `${buildSeconds.toFixed(2)} s + ${compileSeconds.toFixed(2)} s`;
  return [
    '| objective | | portrayal | PyTorch |',
    '|---|---|---|---|',
    ...row('step, median (fastest to slowest)', spread),
    ...results.map((r) => `| ${titleOf(r)} | ratio of the medians | ${ratioOf(r)?.toFixed(2) ?? '-'} | 1 |`),
    ...row('graph build + compile', compile),
    ...row('start of the process to the end of its first step', (s) => `${s.startSeconds.toFixed(1)} s`),
    ...row('peak memory of the process', (s) => `${(s.peakBytes / 2 ** 20).toFixed(0)} MiB`),
  ].join('\n');
}

function conditions(results: readonly Result[], modelName: string): string {
  const repeats = results[0]!.ours.seconds.length;
  const versions = [results[0]!.ours.version, results[0]!.pytorch?.version].filter((v) => v !== undefined);
  return [
    `One training step on ${modelName}: ${size.instances} rows of the subject and ${size.priors} of its class,`,
    `low-rank updates of rank ${size.rank} on the attention projections, forward, backward, clipping, AdamW and (DPG) the critic's step,`,
    `float32, ${count('threads', 1)} threads each. Both sides run at the same time, turn by turn, in processes of their own;`,
    `${repeats} steps each after ${1 + size.warmUp} to warm up.`,
    `${cpus()[0]?.model.trim() ?? 'unknown processor'}, ${availableParallelism()} processors, ${Math.round(totalmem() / 2 ** 30)} GiB; ${versions.join('; ')}.`,
  ].join('\n');
}

const BEGIN = `<!-- ${size.marker}: written by npm run bench -- ${options.full ? '--full ' : ''}--write -->`;
const END = `<!-- end of the ${size.marker} -->`;

/** Puts the text between the markers of docs/benchmarks.md. */
async function writeDocs(text: string): Promise<void> {
  const path = join(root, 'docs', 'benchmarks.md');
  const old = existsSync(path) ? await readFile(path, 'utf8') : `# Benchmarks\n\n${BEGIN}\n${END}\n`;
  const [start, end] = [old.indexOf(BEGIN), old.indexOf(END)];
  if (start < 0 || end < start) throw new UsageError(`${path} lacks the lines "${BEGIN}" and "${END}".`);
  await writeFile(path, `${old.slice(0, start + BEGIN.length)}\n${text}\n${old.slice(end)}`);
  console.log(`written to ${path}`);
}

/** Says where a bar is missed, or where the two sides did not do the same work. */
function verdicts(results: readonly Result[]): string[] {
  return results.flatMap((result) => {
    const { ours, pytorch } = result;
    const title = titleOf(result);
    const found: string[] = [];
    const ratio = ratioOf(result);
    if (ratio !== undefined && ratio > size.bars.ratio)
      found.push(`${title}: the ratio ${ratio.toFixed(2)} is over ${size.bars.ratio}`);
    const compile = (ours.buildSeconds ?? 0) + (ours.compileSeconds ?? 0);
    if (compile > size.bars.compileSeconds)
      found.push(
        `${title}: build and compile took ${compile.toFixed(1)} s, over ${size.bars.compileSeconds} s`,
      );
    if (pytorch) {
      const difference = Math.abs(ours.firstStep.loss / pytorch.firstStep.loss - 1);
      if (!(difference <= LARGEST_LOSS_DIFFERENCE)) {
        found.push(
          `${title}: the first loss is ${ours.firstStep.loss} here and ${pytorch.firstStep.loss} in PyTorch: not the same work`,
        );
      }
    }
    return found;
  });
}

async function main(): Promise<void> {
  const threads = count('threads', 1);
  count('repeats', 3);
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
    for (const one of size.cases) {
      results.push(await bench(one, path, temporary, python));
    }
    const text = `${conditions(results, name)}\n\n${table(results)}`;
    console.log(`\n${text}\n`);
    const missed = verdicts(results);
    console.log(missed.length ? missed.join('\n') : 'Every bar is held.');
    if (options.write) await writeDocs(text);
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
