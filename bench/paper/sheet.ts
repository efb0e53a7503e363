import { resizeBicubic } from '../../src/data/bicubic-resize.js';
import { composeGrid, encodeJpeg, type RgbImage } from '../../src/data/image-grid.js';
import { readReferenceImages } from '../../src/data/reference-images.js';
import type { HeldOutSubject } from '../../src/data/world/held-out.js';
import type { Workplace } from './job.js';
import { type Job, METHODS, type Method, REPORT_SUBJECTS } from './plan.js';

/** Prompts of which the sheet shows the first picture, by their number from 0: two places, and another colour. */
export const SHEET_PROMPTS = [0, 9, 20] as const;
const SIDE = 64;
const QUALITY = 90;

/** A row a subject and prompt: one of the photographs, then each method's first picture; nothing is picked by its looks. */
export async function pictureSheet(
  place: Workplace,
  jobOf: (method: Method, subject: HeldOutSubject) => Job,
): Promise<Uint8Array> {
  const cells: RgbImage[] = [];
  for (const subject of REPORT_SUBJECTS) {
    const files = (await place.references(subject.name)).slice(0, SHEET_PROMPTS.length);
    const { images } = await readReferenceImages(files, { resolution: SIDE, smallestSide: 1 });
    const byMethod: RgbImage[][][] = [];
    for (const method of METHODS) byMethod.push(await place.drawn(jobOf(method, subject)));
    SHEET_PROMPTS.forEach((prompt, row) => {
      cells.push(resizeBicubic(images[row]!, SIDE, SIDE), ...byMethod.map((rows) => rows[prompt]![0]!));
    });
  }
  return encodeJpeg(composeGrid(cells, { columns: 1 + METHODS.length, gap: 2 }), QUALITY);
}
