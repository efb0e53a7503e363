import { createHash } from 'node:crypto';
import { mkdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { composeGrid, cutGrid, decodePng, encodePng, type RgbImage } from '../../src/data/image-grid.js';
import { HELD_OUT_SUBJECTS, type HeldOutSubject } from '../../src/data/world/held-out.js';
import { dreamBenchPrompts } from '../../src/data/world/prompts.js';
import { subjectPictures } from '../../src/data/world/render.js';
import type { Engine } from '../../src/engine/engine.js';
import { writeFileAtomic } from '../../src/formats/atomic-file.js';
import { pathExists } from '../../src/formats/path-exists.js';
import { TextToImage } from '../../src/pretrained/text-to-image.js';
import { openBaseModel } from '../../src/workflows/base-model.js';
import { putOnModel, readRunRecord, storedLearnt } from '../../src/workflows/learnt.js';
import { personalise } from '../../src/workflows/personalise.js';
import type { Material } from './material.js';
import { type Job, SAMPLING } from './plan.js';

const REFERENCES = 5;
const REFERENCE_SIZE = 256;
/** Of the references' poses; the demo's pictures have another. */
const REFERENCE_SEED = 31;
/** Noise of its own for each picture, the same for every method: the base takes colours from the noise, so that one noise for all prompts would say little. */
const pictureSeed = (seed: number, prompt: number, image: number): number =>
  23 + 1000 * seed + 10 * prompt + image;

export function subjectNamed(name: string): HeldOutSubject {
  const subject = HELD_OUT_SUBJECTS.find((s) => s.name === name);
  if (!subject) throw new Error(`internal: no subject ${name}`);
  return subject;
}

/** The prompts of a run, in DreamBench's order. */
export function promptsOf({ subject, token, namesClass }: Job): string[] {
  const { noun } = subjectNamed(subject);
  return namesClass
    ? dreamBenchPrompts(noun, token)
    : dreamBenchPrompts(noun, '').map((prompt) => prompt.replace(noun, token));
}

/** Where things are kept: pictures of each job under a name that follows from the job and from what it is drawn with. */
export class Workplace {
  constructor(
    readonly folder: string,
    readonly material: Material,
  ) {}

  jobFolder(job: Job): string {
    return join(
      this.folder,
      'jobs',
      createHash('sha256').update(this.material.drawing).update(canonical(job)).digest('hex').slice(0, 20),
    );
  }

  pictures(job: Job): string {
    return join(this.jobFolder(job), 'pictures.png');
  }

  /** The photographs of a subject, drawn at first use. */
  async references(name: string): Promise<string[]> {
    const folder = join(this.folder, 'references', name);
    const files = Array.from({ length: REFERENCES }, (_, i) => join(folder, `${i + 1}.png`));
    if (!(await Promise.all(files.map(pathExists))).every((is) => is)) {
      await mkdir(folder, { recursive: true });
      const pictures = await subjectPictures(subjectNamed(name), REFERENCES, REFERENCE_SIZE, REFERENCE_SEED);
      for (const [i, png] of pictures.entries()) await writeFileAtomic(files[i]!, png);
    }
    return files;
  }

  /** What a job drew, by prompt. */
  async drawn(job: Job): Promise<RgbImage[][]> {
    const prompts = promptsOf(job).length;
    const rows = cutGrid(await decodePng(this.pictures(job)), prompts, job.images);
    if (!rows) throw new Error(`${this.pictures(job)} is no grid of ${prompts} x ${job.images} pictures`);
    return rows;
  }
}

/** JSON whose keys are sorted, so that equal settings are equal texts. */
function canonical(value: unknown): string {
  return JSON.stringify(value, (_, v: unknown) =>
    v !== null && typeof v === 'object' && !Array.isArray(v)
      ? Object.fromEntries(Object.entries(v).sort(([a], [b]) => (a < b ? -1 : 1)))
      : v,
  );
}

/** Trains a run and draws its pictures, which is all that is kept of it beside its curves. */
export async function trainAndDraw(job: Job, place: Workplace, engine: Engine): Promise<void> {
  const { noun } = subjectNamed(job.subject);
  const folder = place.jobFolder(job);
  const run = join(folder, 'run');
  await rm(run, { recursive: true, force: true });
  const prompts = promptsOf(job);
  const { steps = 1, seed = 0 } = job.settings;
  await personalise({
    ...job.settings,
    images: await place.references(job.subject),
    instancePrompt: `a photo of ${job.namesClass ? `${job.token} ${noun}` : job.token}`,
    classPrompt: `a photo of ${noun}`,
    // New words start as a word of the class that is one token: a "stuffed animal" as "animal".
    ...(job.settings.train === 'textual-inversion' ? { initializerToken: [noun.split(' ').at(-1)!] } : {}),
    output: run,
    checkpointingSteps: steps,
    validationPrompts: [prompts[0]!],
    engine,
  });
  const record = await readRunRecord(run);
  const { model: base } = await openBaseModel({});
  const learnt = await putOnModel(record, await storedLearnt(record, base), base);
  const drawer = await TextToImage.create(learnt.model, engine, {
    ...(learnt.lora ? { adaptation: { lora: learnt.lora } } : {}),
  });
  const state = await engine.state(learnt.state);
  const requests = prompts.flatMap((prompt, p) =>
    Array.from({ length: job.images }, (_, i) => ({ prompt, seed: pictureSeed(seed, p, i) })),
  );
  const { samplingSteps, ...sampling } = SAMPLING;
  const drawn = await drawer.draw(requests, { ...sampling, steps: samplingSteps, state });
  await state.release();
  await drawer.release();
  await writeFile(join(folder, 'job.json'), `${JSON.stringify(job, null, 2)}\n`);
  await writeFileAtomic(place.pictures(job), await encodePng(composeGrid(drawn, { columns: job.images })));
  await rm(run, { recursive: true, force: true });
}
