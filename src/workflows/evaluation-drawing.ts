import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { encodePng } from '../data/image-grid.js';
import { subjectName } from '../data/prompts.js';
import type { Device } from '../engine/device.js';
import type { Engine } from '../engine/engine.js';
import { CancelledError, InputError } from '../errors.js';
import { contentDigest } from '../evaluation/embedding-cache.js';
import { promptFolderName } from '../evaluation/picture-folders.js';
import { fillPrompt } from '../evaluation/protocol.js';
import { removeStaleTemporaries, writeFileAtomic } from '../formats/atomic-file.js';
import { makeFolder } from '../formats/make-folder.js';
import { pathExists } from '../formats/path-exists.js';
import { tensorBytes } from '../formats/safetensors.js';
import type { StableDiffusion } from '../pretrained/stable-diffusion.js';
import { drawnAtOnce, TextToImage } from '../pretrained/text-to-image.js';
import type { TrainingListener } from '../training/events.js';
import { differingSettings, type RunConfig } from '../training/run-folder.js';
import { openBaseModel } from './base-model.js';
import { Cleanup } from './cleanup.js';
import { CountedStage } from './counted-stage.js';
import type { EvaluationPlan, PlannedSubject } from './evaluation-plan.js';
import { type Learnt, putOnModel, type RunRecord, readRunRecord, storedLearnt } from './learnt.js';
import { drawsInTurn } from './memory-estimate.js';
import type { StoredTensor } from './training-kind.js';

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
  /** Where the engine runs. Default "cpu". */
  readonly device?: Device;
  readonly onEvent?: TrainingListener;
  readonly signal?: AbortSignal;
}

/** The pictures of one run, one subject: some may be there already. */
interface Task {
  readonly run: string;
  readonly folder: string;
  readonly subject: PlannedSubject;
  /** How the run's prompts speak of it. */
  readonly named: string;
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
      return [{ run: source.path, folder, subject, named: subjectName(source.prompt, subject.className) }];
    }),
  );
  let there = 0;
  const missing = new Map<Task, number[]>();
  const bases = new BaseModels(options);
  for (const task of tasks) {
    const record = await readRunRecord(task.run);
    await describe(task, record, await storedLearnt(record, await bases.of(record)), options);
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
  const drawers = new DrawerPool(engine, bases, options);
  await Cleanup.after(async (cleanup) => {
    cleanup.release(drawers);
    for (const [task, prompts] of missing) {
      const record = await readRunRecord(task.run);
      const base = await bases.of(record);
      const learnt = await putOnModel(record, await storedLearnt(record, base), base);
      const drawer = await drawers.drawerFor(record, learnt);
      const state = await engine.state(learnt.state);
      try {
        for (const p of prompts) await drawPrompt(task, p, drawer, { ...options, stage, state });
      } finally {
        await state.release();
      }
    }
  });
}

async function drawPrompt(
  { folder, subject, named }: Task,
  p: number,
  drawer: TextToImage,
  options: EvaluationDrawing & { stage: CountedStage; state: Awaited<ReturnType<Engine['state']>> },
): Promise<void> {
  const { numImages, seed, steps, guidanceScale, signal, stage, state } = options;
  const prompt = fillPrompt(subject.templates[p]!, named);
  const files = drawnFiles(folder, subject, numImages)[p]!;
  const place = join(folder, promptFolderName(p, subject.texts[p]!));
  await makeFolder(place);
  await removeStaleTemporaries(place);
  const present = await Promise.all(files.map(pathExists));
  const ofBatch = (b: number): number[] =>
    files.map((_, i) => i).slice(b * drawer.batch, (b + 1) * drawer.batch);
  const isMissing = (b: number): boolean => ofBatch(b).some((i) => !present[i]);
  const missing = Array.from({ length: Math.ceil(numImages / drawer.batch) }, (_, b) => b).filter(isMissing);
  const together = drawer.share / drawer.batch;
  for (let start = 0; start < missing.length; start += together) {
    const indices = missing.slice(start, start + together).flatMap(ofBatch);
    const lacking = indices.filter((i) => !present[i]).length;
    const drawn = await drawer
      .draw(
        indices.map((i) => ({ prompt, seed: seed + i })),
        {
          steps,
          guidanceScale,
          state,
          onProgress: (done, all) => stage.advance(0, (lacking * done) / all),
          ...(signal ? { signal } : {}),
        },
      )
      .catch((error: unknown) => {
        if (!(error instanceof CancelledError)) throw error;
        throw new CancelledError(
          'Stopped while drawing. The pictures so far are kept; the same command goes on from there.',
          { cause: error },
        );
      });
    for (const [place, i] of indices.entries()) {
      if (!present[i]) await writeFileAtomic(files[i]!, await encodePng(drawn[place]!));
    }
    stage.advance(lacking);
  }
}

/** Keeps the model that was opened last: most runs share one. */
class BaseModels {
  #key = '';
  #model: StableDiffusion | undefined;

  /** @param options.model instead of the runs' own. */
  constructor(private readonly options: Pick<EvaluationDrawing, 'model' | 'device'>) {}

  async of({ model, variant, predictionType }: RunRecord): Promise<StableDiffusion> {
    const path = this.options.model ?? model;
    const key = JSON.stringify([path, variant, predictionType]);
    if (!this.#model || key !== this.#key) {
      this.#model = (
        await openBaseModel({ model: path, variant, predictionType, device: this.options.device })
      ).model;
      this.#key = key;
    }
    return this.#model;
  }
}

/** Keeps the compiled model of the last run: the runs of a method share it where they learn the same beside the model's own weights. */
class DrawerPool {
  #shared: readonly unknown[] = [];
  #drawer: TextToImage | undefined;

  constructor(
    private readonly engine: Engine,
    private readonly bases: BaseModels,
    private readonly options: EvaluationDrawing,
  ) {}

  async drawerFor(record: RunRecord, { model, lora }: Learnt): Promise<TextToImage> {
    const resolution = this.options.resolution ?? record.resolution;
    const ownWeights = record.kind.trainable.weights ? record.path : undefined;
    const words = JSON.stringify(record.words);
    const shared = [await this.bases.of(record), resolution, JSON.stringify(lora), ownWeights, words];
    if (this.#drawer && shared.every((part, i) => part === this.#shared[i])) return this.#drawer;
    await this.release();
    const { numImages, guidanceScale, device = 'cpu' } = this.options;
    const drawn = {
      resolution,
      batchSize: Math.min(drawnAtOnce(resolution), numImages),
      adaptation: lora ? { lora } : {},
    };
    const inTurn = device === 'cpu' && drawsInTurn(model, { ...drawn, guided: guidanceScale !== 1 });
    this.#drawer = await TextToImage.create(model, this.engine, { ...drawn, inTurn });
    this.#shared = shared;
    return this.#drawer;
  }

  async release(): Promise<void> {
    const drawer = this.#drawer;
    this.#drawer = undefined;
    await drawer?.release();
  }
}

/** Says beside the pictures what they are, and refuses a folder of others. */
async function describe(
  task: Task,
  record: RunRecord,
  stored: ReadonlyMap<string, StoredTensor>,
  options: EvaluationDrawing,
): Promise<void> {
  const { folder, subject, named } = task;
  const path = join(folder, DESCRIPTION);
  const description: RunConfig = {
    learnt: await digestLearnt(stored),
    model: options.model ?? record.model,
    prompts: subject.templates.map((template) => fillPrompt(template, named)),
    seed: options.seed,
    steps: options.steps,
    guidanceScale: options.guidanceScale,
    resolution: options.resolution ?? record.resolution,
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

async function digestLearnt(stored: ReadonlyMap<string, StoredTensor>): Promise<string> {
  const parts: string[] = [];
  for (const name of [...stored.keys()].sort()) {
    parts.push(`${name} ${contentDigest(tensorBytes(await stored.get(name)!.read()))}`);
  }
  return contentDigest(parts.join('\n'));
}
