// Runs PyTorch, diffusers, transformers and peft beside our own code and compares: `npm run test:reference`, with words to choose checks by their names. Models have
// their full shape and seeded random weights; they are written into a temporary folder, one at a time. Without a Python all is skipped, with a word.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { findPython } from '../../bench/python-environment.js';
import { variedPrompts } from '../../scripts/goldens/prompts.js';
import { createNodeEngine } from '../../src/engine/node.js';
import { readSamplerCases, sampleCase } from '../diffusion/sampler-cases.js';
import { goldenTensors, relativeError } from '../goldens.js';
import { shippedTokenizer } from '../shipped-tokenizer.js';
import { Checks } from './checks.js';
import { checkModel, type ModelCase } from './model-checks.js';

const root = fileURLToPath(new URL('../../../', import.meta.url));
const PROMPTS = 10_000;
const SAMPLE_LIMIT = 1e-3;

/** Models of full shape. */
const models: readonly ModelCase[] = [
  { name: 'Stable Diffusion 1', oracle: 'stable-diffusion-1', gradientCheckpointing: false },
  { name: 'Stable Diffusion 2, velocity', oracle: 'stable-diffusion-2', gradientCheckpointing: false },
  { name: 'Stable Diffusion XL', oracle: 'stable-diffusion-xl', gradientCheckpointing: true },
];

/** What is compared, by the name that words choose it by. */
type Comparison = (oracle: Oracle, folder: string, checks: Checks) => Promise<void>;

const comparisons: Readonly<Record<string, Comparison>> = {
  'token ids': compareTokens,
  samplers: compareSamplers,
  ...Object.fromEntries(models.map((model) => [model.name, compareModel(model)])),
};

/** Runs a Python script of the repository. */
type Oracle = (script: string, ...args: readonly string[]) => Promise<void>;

function oracleOf(python: string): Oracle {
  return async (script, ...args) => {
    // Warnings of the libraries are shown only when the script fails.
    const child = spawn(python, [join(root, script), ...args], { stdio: ['ignore', 'ignore', 'pipe'] });
    let told = '';
    child.stderr.on('data', (text: Buffer) => {
      told = (told + text).slice(-4000);
    });
    const [status] = (await once(child, 'close')) as [number | null];
    if (status !== 0) throw new Error(`${script} ${args.join(' ')} ended with ${status}:\n${told}`);
  };
}

async function compareTokens(oracle: Oracle, folder: string, checks: Checks): Promise<void> {
  const prompts = variedPrompts(PROMPTS);
  const [asked, answered] = [join(folder, 'prompts.json'), join(folder, 'ids.json')];
  await writeFile(asked, JSON.stringify(prompts));
  await oracle('scripts/goldens/token-ids.py', asked, answered, '--all');
  const ids = JSON.parse(await readFile(answered, 'utf8')) as number[][];
  const tokenizer = await shippedTokenizer();
  const same = prompts.filter((prompt, i) => tokenizer.encode(prompt).ids.join() === ids[i]!.join());
  checks.all('token ids of prompts', same.length, PROMPTS);
}

async function compareSamplers(oracle: Oracle, folder: string, checks: Checks): Promise<void> {
  await oracle('scripts/goldens/samplers.py', folder);
  const cases = readSamplerCases(await readFile(join(folder, 'samplers.json'), 'utf8'));
  const expected = goldenTensors(pathToFileURL(join(folder, 'samplers.safetensors')).href);
  for (const [name, c] of Object.entries(cases.cases)) {
    const { sample } = await sampleCase(cases, c);
    checks.within(`sampler: ${name}`, relativeError(sample, expected.get(name)!), SAMPLE_LIMIT);
  }
}

function compareModel(model: ModelCase): Comparison {
  return async (oracle, folder, checks) => {
    await oracle('test/reference/models.py', model.oracle, folder, join(root, 'models', 'clip-tokenizer'));
    const expected = goldenTensors(pathToFileURL(join(folder, 'expected.safetensors')).href);
    const engine = createNodeEngine();
    try {
      await checkModel(model, folder, expected, engine, checks);
    } finally {
      await engine.close();
    }
  };
}

const say = (line: string): void => {
  process.stdout.write(`${line}\n`);
};
const words = process.argv.slice(2).map((word) => word.toLowerCase());
const chosen = Object.entries(comparisons).filter(
  ([name]) => words.length === 0 || words.some((word) => name.toLowerCase().includes(word)),
);
const environment = findPython(root, say);
const checks = new Checks(say);
let skipped = '';
if ('missing' in environment) {
  say(`Nothing was compared with diffusers: ${environment.missing}. PORTRAYAL_PYTHON can name a Python.`);
  skipped = `, ${chosen.length} skipped`;
} else {
  const temporary = await mkdtemp(join(tmpdir(), 'portrayal-reference-'));
  try {
    for (const [name, compare] of chosen) {
      const started = performance.now();
      const folder = join(temporary, name.replaceAll(/\W+/g, '-'));
      await mkdir(folder);
      await compare(oracleOf(environment.python), folder, checks).catch((error: unknown) =>
        checks.broken(name, error),
      );
      await rm(folder, { recursive: true });
      say(`        ${name}: ${Math.round((performance.now() - started) / 1000)} s`);
    }
  } finally {
    await rm(temporary, { recursive: true, force: true });
  }
}
say(`${checks.passed} passed, ${checks.failed} failed${skipped}`);
process.exitCode = checks.failed > 0 || (checks.passed === 0 && skipped === '') ? 1 : 0;
