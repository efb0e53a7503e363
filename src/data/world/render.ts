import sharp from 'sharp';
import { Random } from '../../tensor/random.js';
import { type Labels, labelsOf, type SampleOptions, sampleExample, type WorldExample } from './example.js';
import { drawSvg } from './picture.js';
import type { SceneName } from './scenes.js';
import type { Subject } from './subject.js';

/** Renders a square SVG to RGB bytes, [size, size, 3] row by row. */
export async function renderSvg(svg: string, size: number): Promise<Uint8Array> {
  const { data, info } = await sharp(Buffer.from(svg), { density: 72 })
    .flatten({ background: '#ffffff' })
    .raw()
    .toBuffer({ resolveWithObject: true });
  if (info.width !== size || info.height !== size || info.channels !== 3) {
    throw new RangeError(
      `internal: a drawing of ${size} pixels came out as ${info.width}x${info.height}x${info.channels}`,
    );
  }
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
}

/** The places the pictures of one subject are taken in, in turn. */
const PICTURE_PLACES = [
  'studio',
  'wooden floor',
  'studio',
  'cobblestone street',
  'white rug',
] as const satisfies readonly SceneName[];

/** Draws one subject `count` times in different poses and places, as PNG files: what a user's few photographs of it would be. */
export async function subjectPictures(
  subject: Subject,
  count: number,
  size: number,
  seed: number,
): Promise<Uint8Array[]> {
  const pictures: Uint8Array[] = [];
  for (let i = 0; i < count; i++) {
    const svg = drawSvg(
      { subject, scene: PICTURE_PLACES[i % PICTURE_PLACES.length]! },
      size,
      new Random(seed, 'pictures', i),
    );
    const png = await sharp(Buffer.from(svg), { density: 72 })
      .flatten({ background: '#ffffff' })
      .png({ compressionLevel: 9 })
      .toBuffer();
    pictures.push(new Uint8Array(png.buffer, png.byteOffset, png.byteLength));
  }
  return pictures;
}

/** A captioned picture with its labels. */
export interface RenderedExample {
  readonly example: WorldExample;
  readonly labels: Labels;
  /** [size, size, 3] */
  readonly pixels: Uint8Array;
}

/** Example number `index` of the world with this seed; the same whatever is drawn before it. */
export function worldExample(
  seed: number,
  index: number,
  size: number,
  options?: SampleOptions,
): { example: WorldExample; svg: string } {
  const random = new Random(seed, 'world', index);
  const example = sampleExample(random, options);
  return { example, svg: drawSvg(example, size, random) };
}

/** Draws and renders examples `start` to `start + count` of the world with this seed, several at a time. */
export async function renderExamples(
  seed: number,
  start: number,
  count: number,
  size: number,
  options?: SampleOptions,
): Promise<RenderedExample[]> {
  const rendered = new Array<RenderedExample>(count);
  let next = 0;
  const draw = async () => {
    while (next < count) {
      const i = next++;
      const { example, svg } = worldExample(seed, start + i, size, options);
      rendered[i] = { example, labels: labelsOf(example), pixels: await renderSvg(svg, size) };
    }
  };
  await Promise.all(Array.from({ length: Math.min(4, count) }, draw));
  return rendered;
}
