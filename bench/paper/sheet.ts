import { composeGrid, encodeJpeg, type RgbImage } from '../../src/data/image-grid.js';
import { readReferenceImages } from '../../src/data/reference-images.js';
import type { HeldOutSubject } from '../../src/data/world/held-out.js';
import type { Workplace } from './job.js';
import { type Job, METHODS, type Method, REPORT_SUBJECTS } from './plan.js';

/** Prompts of which the sheet shows the first picture, by their number from 0. */
export const SHEET_PROMPTS = [0, 2, 6, 9, 20] as const;
const QUALITY = 90;

/** A row a subject and method: three photographs, then the first picture of some prompts; nothing is picked by its looks. */
export async function pictureSheet(
  place: Workplace,
  jobOf: (method: Method, subject: HeldOutSubject) => Job,
): Promise<Uint8Array> {
  const cells: RgbImage[] = [];
  for (const subject of REPORT_SUBJECTS) {
    const files = await place.references(subject.name);
    const { images } = await readReferenceImages(files.slice(0, 1), { resolution: 64, smallestSide: 1 });
    cells.push(images[0]!);
    const byMethod: RgbImage[][] = [];
    for (const method of METHODS) {
      const rows = await place.drawn(jobOf(method, subject));
      byMethod.push(SHEET_PROMPTS.map((p) => rows[p]![0]!));
    }
    cells.push(...byMethod.flat());
  }
  return encodeJpeg(
    composeGrid(cells, { columns: 1 + METHODS.length * SHEET_PROMPTS.length, gap: 2 }),
    QUALITY,
  );
}
