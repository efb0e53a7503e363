import { stat } from 'node:fs/promises';
import { dirname, join, relative, sep } from 'node:path';
import { encodeThumbnail } from '../data/image-grid.js';
import { readReferenceImages } from '../data/reference-images.js';
import type { Comparison } from '../evaluation/comparison.js';
import type { TableContext } from '../evaluation/comparison-table.js';
import {
  type GalleryPicture,
  type GalleryPrompt,
  type GallerySubject,
  renderGallery,
} from '../evaluation/gallery.js';
import { promptFolderName } from '../evaluation/picture-folders.js';
import { writeFileAtomic } from '../formats/atomic-file.js';
import { makeFolder } from '../formats/make-folder.js';
import { packageVersion } from './environment.js';
import type { Judged } from './evaluation-judging.js';
import type { EvaluationPlan, PlannedMethod, PlannedSubject } from './evaluation-plan.js';

/** Longer side of the copies on the page, in pixels. */
const THUMBNAIL = 320;
/** Pictures up to this size in bytes are taken for small ones, and shown with their own pixels. */
const SMALL_FILE = 20_000;

interface PagePlace {
  readonly output: string;
  /** By method, subject and prompt. */
  readonly files: readonly (readonly (readonly (readonly string[])[])[])[];
}

/**
 * The page to leaf through. Pictures that were drawn here are shown where they lie; of photographs and of pictures from elsewhere small copies are put beside the page.
 */
export async function evaluationPage(
  plan: EvaluationPlan,
  judged: Judged,
  comparison: Comparison,
  context: TableContext,
  { output, files }: PagePlace,
): Promise<string> {
  const subjects: GallerySubject[] = [];
  for (const [i, subject] of plan.subjects.entries()) {
    const references: GalleryPicture[] = [];
    for (const [r, file] of subject.references.entries()) {
      const copy = join('references', subject.name, `${String(r + 1).padStart(2, '0')}.jpg`);
      references.push({ shown: await thumbnail(output, copy, file) });
    }
    const prompts: GalleryPrompt[] = [];
    for (const [p, text] of subject.texts.entries()) {
      const methods = [];
      for (const [m, method] of plan.methods.entries()) {
        const own = files[m]![i]![p]!;
        const pictures =
          method.sources[i]!.kind === 'run'
            ? await Promise.all(own.map((file) => drawnHere(output, file)))
            : await copies(output, method, subject, p, own);
        methods.push({ pictures, scores: judged.methods[m]![i]!.prompts[p]! });
      }
      prompts.push({ text, methods });
    }
    subjects.push({ name: subject.name, className: subject.className, references, prompts });
  }
  return renderGallery({
    context,
    comparison,
    methods: plan.methods.map(({ name }) => name),
    subjects,
    producer: `portrayal ${packageVersion()}`,
  });
}

async function drawnHere(output: string, file: string): Promise<GalleryPicture> {
  const { size } = await stat(file);
  return { shown: relative(output, file).split(sep).join('/'), small: size < SMALL_FILE };
}

async function copies(
  output: string,
  method: PlannedMethod,
  subject: PlannedSubject,
  p: number,
  files: readonly string[],
): Promise<GalleryPicture[]> {
  const folder = join('thumbnails', method.folder, subject.name, promptFolderName(p, subject.texts[p]!));
  const pictures: GalleryPicture[] = [];
  for (const [n, file] of files.entries()) {
    pictures.push({ shown: await thumbnail(output, join(folder, `${n}.jpg`), file) });
  }
  return pictures;
}

/** Writes a small copy of a picture, unless there is one that is younger than the picture. Returns its place as a link. */
async function thumbnail(output: string, copy: string, file: string): Promise<string> {
  const path = join(output, copy);
  const [made, source] = await Promise.all([stat(path).catch(() => undefined), stat(file)]);
  if (!made || made.mtimeMs < source.mtimeMs) {
    const { images } = await readReferenceImages([file], { resolution: 1, smallestSide: 1 });
    await makeFolder(dirname(path));
    await writeFileAtomic(path, await encodeThumbnail(images[0]!, THUMBNAIL));
  }
  return copy.split(sep).join('/');
}
