import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { encodePng } from '../data/image-grid.js';
import type { Engine } from '../engine/engine.js';
import { CancelledError, InputError } from '../errors.js';
import { contentDigest } from '../evaluation/embedding-cache.js';
import { promptFolderName } from '../evaluation/picture-folders.js';
import { fillPrompt } from '../evaluation/protocol.js';
import { removeStaleTemporaries, writeFileAtomic } from '../formats/atomic-file.js';
import { makeFolder } from '../formats/make-folder.js';
import { pathExists } from '../formats/path-exists.js';
import type { StableDiffusion } from '../pretrained/stable-diffusion.js';
import { TextToImage } from '../pretrained/text-to-image.js';
import type { Tensor } from '../tensor/tensor.js';
import type { TrainingListener } from '../training/events.js';
import { differingSettings, type RunConfig } from '../training/run-folder.js';
import { openBaseModel } from './base-model.js';
import { Cleanup } from './cleanup.js';
import { CountedStage } from './counted-stage.js';
import type { EvaluationPlan, PlannedSubject } from './evaluation-plan.js';
import { type Learnt, readRun, requireFitting } from './generate.js';

export interface EvaluationDrawing {
  /** Where pictures go: a folder a method, in it one a subject, in it one a prompt. */
  readonly folder: string;
  readonly numImages: number;
  /** Picture i of each prompt has the seed `seed + i`. */
  readonly seed: number;
  readonly steps: number;
  readonly guidanceScale: number;
  /** In place of the runs' own. */
  readonly model?: string;
  readonly resolution?: number;
  readonly onEvent?: TrainingListener;
  readonly signal?: AbortSignal;
}

/** The pictures of one run, one subject: some may be there already. */
interface Task {
  readonly run: string;
  readonly folder: string;
  readonly subject: PlannedSubject;
  readonly token: string;
}

const DESCRIPTION = 'drawn.json';

/** The files of a subject's pictures, by prompt. */
export function drawnFiles(folder: string, subject: PlannedSubject, numImages: number): string[][] {
  return subject.texts.map((text, p) =>
    Array.from({ length: numImages }, (_, i) => join(folder, promptFolderName(p, text), `${i}.png`)),
  );
}

/**
 * Draws the pictures of all runs of a plan that are not there yet. The pictures of a prompt are drawn together whichever are missing, so that they come out the same.
 *
 * @throws InputError when a folder holds pictures of another run or of other settings; CancelledError when the signal is raised, with all pictures kept.
 */
export async function drawMissingPictures(
  plan: EvaluationPlan,
  engine: Engine,
  options: EvaluationDrawing,
): Promise<void> {
  const tasks = plan.methods.flatMap((method) =>
    method.sources.flatMap((source, i): Task[] => {
      const subject = plan.subjects[i]!;
      if (source.kind !== 'run') return [];
      const folder = join(options.folder, method.folder, subject.name);
      return [{ run: source.path, folder, subject, token: source.prompt.token }];
    }),
  );
  let there = 0;
  const missing = new Map<Task, number[]>();
  for (const task of tasks) {
    const learnt = await readRun(task.run);
    await describe(task, learnt, options);
    const prompts: number[] = [];
    for (const [p, files] of drawnFiles(task.folder, task.subject, options.numImages).entries()) {
      const present = await Promise.all(files.map(pathExists));
      there += present.filter((is) => is).length;
      if (present.includes(false)) prompts.push(p);
    }
    if (prompts.length > 0) missing.set(task, prompts);
  }
  if (missing.size === 0) return;
  const total = tasks.reduce((sum, { subject }) => sum + subject.texts.length * options.numImages, 0);
  const stage = new CountedStage('drawing pictures', total, there, options.onEvent);
  stage.advance(0);
  const drawers = new DrawerPool(engine, options);
  await Cleanup.after(async (cleanup) => {
    cleanup.release(drawers);
    for (const [task, prompts] of missing) {
      const learnt = await readRun(task.run);
      const drawer = await drawers.drawerFor(task.run, learnt);
      const state = await engine.state(learnt.factors);
      try {
        for (const p of prompts) await drawPrompt(task, p, drawer, { ...options, stage, state });
      } finally {
        await state.release();
      }
    }
  });
}

async function drawPrompt(
  { folder, subject, token }: Task,
  p: number,
  drawer: TextToImage,
  options: EvaluationDrawing & { stage: CountedStage; state: Awaited<ReturnType<Engine['state']>> },
): Promise<void> {
  const { numImages, seed, steps, guidanceScale, signal, stage, state } = options;
  const prompt = fillPrompt(subject.templates[p]!, `${token} ${subject.className}`);
  const files = drawnFiles(folder, subject, numImages)[p]!;
  const place = join(folder, promptFolderName(p, subject.texts[p]!));
  await makeFolder(place);
  await removeStaleTemporaries(place);
  for (let start = 0; start < numImages; start += drawer.batch) {
    const batch = files.slice(start, start + drawer.batch);
    const present = await Promise.all(batch.map(pathExists));
    const lacking = present.filter((is) => !is).length;
    if (lacking === 0) continue;
    const requests = batch.map((_, i) => ({ prompt, seed: seed + start + i }));
    const drawn = await drawer
      .draw(requests, {
        steps,
        guidanceScale,
        state,
        onProgress: (done, all) => stage.advance(0, (lacking * done) / all),
        ...(signal ? { signal } : {}),
      })
      .catch((error: unknown) => {
        if (!(error instanceof CancelledError)) throw error;
        throw new CancelledError(
          'Stopped while drawing. The pictures so far are kept; the same command goes on from there.',
          { cause: error },
        );
      });
    for (const [i, path] of batch.entries()) {
      if (!present[i]) await writeFileAtomic(path, await encodePng(drawn[i]!));
    }
    stage.advance(lacking);
  }
}

/** Keeps the compiled model of the last run: the runs of a method share it. */
class DrawerPool {
  #key = '';
  #drawer: TextToImage | undefined;
  #model: StableDiffusion | undefined;

  constructor(
    private readonly engine: Engine,
    private readonly options: EvaluationDrawing,
  ) {}

  async drawerFor(run: string, learnt: Learnt): Promise<TextToImage> {
    const { lora, predictionType, variant } = learnt;
    const path = this.options.model ?? learnt.model;
    const resolution = this.options.resolution ?? learnt.resolution;
    const key = JSON.stringify([path, resolution, lora, predictionType, variant]);
    if (!this.#drawer || !this.#model || key !== this.#key) {
      await this.release();
      this.#model = (await openBaseModel({ model: path, variant, predictionType })).model;
      requireFitting(this.#model, learnt, run);
      this.#drawer = await TextToImage.create(this.#model, this.engine, {
        resolution,
        batchSize: Math.min(4, this.options.numImages),
        lora,
      });
      this.#key = key;
    } else {
      requireFitting(this.#model, learnt, run);
    }
    return this.#drawer;
  }

  async release(): Promise<void> {
    const drawer = this.#drawer;
    this.#drawer = undefined;
    await drawer?.release();
  }
}

/** Says beside the pictures what they are, and refuses a folder of others. */
async function describe(task: Task, learnt: Learnt, options: EvaluationDrawing): Promise<void> {
  const { folder, subject, token } = task;
  const path = join(folder, DESCRIPTION);
  const description: RunConfig = {
    learnt: digestFactors(learnt.factors),
    model: options.model ?? learnt.model,
    prompts: subject.templates.map((template) => fillPrompt(template, `${token} ${subject.className}`)),
    seed: options.seed,
    steps: options.steps,
    guidanceScale: options.guidanceScale,
    resolution: options.resolution ?? learnt.resolution,
  };
  const text = `${JSON.stringify(description, null, 2)}\n`;
  const before = await readFile(path, 'utf8').catch(() => undefined);
  if (before === text) return;
  if (before !== undefined) {
    const changed = differingSettings(JSON.parse(before) as RunConfig, description).map(({ key, was, is }) =>
      key === 'learnt' || key === 'prompts' ? key : `${key} (there ${was}, now ${is})`,
    );
    throw new InputError(
      `${folder}: these pictures were drawn from something else: ${changed.join(', ')}. Choose another --output, or remove this folder to have them drawn again.`,
    );
  }
  await makeFolder(folder);
  await writeFileAtomic(path, text);
}

function digestFactors(factors: ReadonlyMap<string, Tensor>): string {
  const names = [...factors.keys()].sort();
  const parts = names.map((name) => {
    const { data } = factors.get(name)!;
    return `${name} ${contentDigest(new Uint8Array(data.buffer, data.byteOffset, data.byteLength))}`;
  });
  return contentDigest(parts.join('\n'));
}
