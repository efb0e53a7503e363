import type { Stats } from 'node:fs';
import { readdir, readFile, stat } from 'node:fs/promises';
import { extname, join } from 'node:path';
import sharp from 'sharp';
import { InputError } from '../errors.js';
import type { SizeCondition } from '../models/size-condition.js';
import type { Random } from '../tensor/random.js';
import { float32, type Tensor } from '../tensor/tensor.js';
import type { PictureSize } from './aspect-buckets.js';
import { type Caption, metadataFile, readCaptions, sidecarOf } from './captions.js';
import { channelsFirst } from './channels-first.js';
import { readableExtensions, recogniseImage, unreadableExtensions } from './image-format.js';

/** A photograph of the subject: upright, three channels, sRGB, eight bits. */
export interface ReferenceImage {
  readonly path: string;
  readonly width: number;
  readonly height: number;
  /** Height and width of the file's picture, upright, before anything was scaled. */
  readonly originalSize: readonly [number, number];
  /** Interleaved RGB, row by row from the top: width * height * 3 values in 0 … 255. */
  readonly pixels: Uint8Array;
  /** What its owner wrote beside it, where captions are read. */
  readonly caption?: Caption;
}

export interface ReferenceOptions {
  /** The side in pixels that the model is trained at; smaller pictures are reported. */
  readonly resolution: number;
  /** Pictures with more pixels than this (width * height, known from the header) are refused before they are decoded. */
  readonly maxPixels?: number;
  /** Pictures with a shorter side are refused: they show too little to learn from. Default 32. */
  readonly smallestSide?: number;
  /** Read the captions beside the pictures (see captions.ts). Default false. */
  readonly captions?: boolean;
  /** The shape that a picture is cut to, for the warning about what is lost. Default: a square. */
  readonly cutTo?: (picture: PictureSize) => PictureSize;
  /** Keep every pixel of large pictures, for metrics that resize by a rule of their own. */
  readonly fullSize?: boolean;
}

export interface ReferenceImages {
  /** In the order of their file names by UTF-16 code units, or as listed. */
  readonly images: readonly ReferenceImage[];
  /** What was passed over or bent, one sentence each, naming the file. */
  readonly warnings: readonly string[];
}

const DEFAULT_MAX_PIXELS = 100e6;
const MAX_FILE_BYTES = 2 ** 30;
const DEFAULT_SMALLEST_SIDE = 32;
/** Pictures are kept no larger than this on their shorter side (or the resolution, if that is more): beyond what any model here sees, they only cost memory. */
const LARGEST_SHORT_SIDE = 2048;
const LONG_ASPECT = 3;

/**
 * Reads the reference photographs of a folder, of a list of files, or one file. The files are only ever read.
 *
 * EXIF orientation is applied; greyscale, palette, CMYK, 16-bit and wide-gamut pictures are converted to 8-bit sRGB (through the embedded ICC profile where
 * there is one); transparency is laid on white; of an animation or a many-page TIFF the first frame is taken, with a warning. In a folder, hidden files,
 * folders and files that do not end like a picture are passed over, with a warning; in a list every file must be a picture.
 *
 * @throws InputError naming the file: nothing there, no permission, empty, damaged or cut short, not a picture, smaller than 32 pixels a side, or more than
 * `maxPixels` (100 million by default).
 */
export async function readReferenceImages(
  source: string | readonly string[],
  options: ReferenceOptions,
): Promise<ReferenceImages> {
  const { files, warnings } = await listPictures(source, options.captions ?? false);
  const images: ReferenceImage[] = [];
  for (const file of files) {
    const read = await readPicture(file, options);
    images.push(read.image);
    warnings.push(...read.warnings);
  }
  if (!options.captions) return { images, warnings };
  const read = await readCaptions(files);
  return {
    images: images.map((image) => {
      const caption = read.captions.get(image.path);
      return caption ? { ...image, caption } : image;
    }),
    warnings: [...warnings, ...read.warnings],
  };
}

export interface PrepareOptions {
  readonly size: PictureSize;
  /** Which part of a picture of another shape: its middle, or one drawn from a random stream. */
  readonly crop?: 'center' | Random;
  /** Mirror left and right. */
  readonly flip?: boolean;
}

/** One photograph as the model sees it, and what became of it on the way. */
export interface PreparedImage {
  /** [3, height, width], RGB in [-1, 1]. */
  readonly pixels: Tensor<'float32'>;
  /** Where the crop is counted in the mirrored photograph, if it was mirrored. */
  readonly size: SizeCondition;
}

/** Where a photograph lies under the frame that is cut out of it. */
interface Placement {
  /** Its sides when it is scaled until it just covers the frame. */
  readonly scaled: PictureSize;
  readonly left: number;
  readonly top: number;
  readonly size: SizeCondition;
}

function place(image: ReferenceImage, { size, crop = 'center', flip = false }: PrepareOptions): Placement {
  const scale = Math.max(size.width / image.width, size.height / image.height);
  const width = Math.max(size.width, Math.round(image.width * scale));
  const height = Math.max(size.height, Math.round(image.height * scale));
  const [slackX, slackY] = [width - size.width, height - size.height];
  const left = crop === 'center' ? Math.floor(slackX / 2) : crop.int(slackX + 1);
  const top = crop === 'center' ? Math.floor(slackY / 2) : crop.int(slackY + 1);
  return {
    scaled: { width, height },
    left,
    top,
    size: {
      originalSize: image.originalSize,
      cropTopLeft: [top, flip ? slackX - left : left],
      targetSize: [size.height, size.width],
    },
  };
}

/** What `prepareImage` says of the sizes when it cuts the middle, without doing it. */
export function centerCropSize(image: ReferenceImage, size: PictureSize, flip: boolean): SizeCondition {
  return place(image, { size, flip }).size;
}

/** Prepares one photograph: it is scaled (Lanczos) until it just covers the size, and what juts out is cut off. */
export async function prepareImage(image: ReferenceImage, options: PrepareOptions): Promise<PreparedImage> {
  const { size: target, flip = false } = options;
  const { scaled, left, top, size } = place(image, options);
  const { width, height } = scaled;

  const raw = { width: image.width, height: image.height, channels: 3 } as const;
  let pipeline = sharp(image.pixels, { raw, limitInputPixels: false });
  if (width !== image.width || height !== image.height) {
    pipeline = pipeline.resize(width, height, { fit: 'fill', kernel: 'lanczos3' });
  }
  pipeline = pipeline.extract({ left, top, ...target });
  const cut = await (flip ? pipeline.flop() : pipeline).raw().toBuffer();

  const values = new Float32Array(cut.length);
  channelsFirst(cut, values);
  return { pixels: float32([3, target.height, target.width], values), size };
}

async function listPictures(
  source: string | readonly string[],
  captions: boolean,
): Promise<{ files: readonly string[]; warnings: string[] }> {
  if (typeof source !== 'string') {
    if (source.length === 0) {
      throw new InputError('No reference pictures were given. List at least one; three to six work best.');
    }
    return { files: source, warnings: [] };
  }
  const found = await lookAt(source);
  if (found.isFile()) return { files: [source], warnings: [] };
  if (!found.isDirectory()) {
    throw new InputError(
      `${source}: expected a folder of pictures, but this is neither a folder nor a file.`,
    );
  }

  const files: string[] = [];
  const ignored: string[] = [];
  const warnings: string[] = [];
  const entries = await readdir(source, { withFileTypes: true }).catch((error: unknown) => {
    throw unreadable(source, error);
  });
  // The plain comparison is by code units: the same order in every locale.
  entries.sort((a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : 0));
  for (const entry of entries) {
    const path = join(source, entry.name);
    const extension = extname(entry.name).slice(1).toLowerCase();
    const remedy = unreadableExtensions.get(extension);
    if (entry.name.startsWith('.') || entry.isDirectory()) ignored.push(entry.name);
    else if (readableExtensions.has(extension)) files.push(path);
    else if (remedy)
      warnings.push(`${path}: .${extension} files cannot be read, so it is left out. ${remedy}`);
    else ignored.push(entry.name);
  }
  const captionFiles = new Set(captions ? [join(source, metadataFile), ...files.map(sidecarOf)] : []);
  const strange = ignored.filter((name) => !captionFiles.has(join(source, name)));
  if (strange.length > 0) {
    warnings.unshift(`${source}: ignored what is not a picture: ${nameSome(strange)}.`);
  }
  if (files.length === 0) {
    const there =
      entries.length === 0 ? 'the folder is empty' : `it holds only ${nameSome(entries.map((e) => e.name))}`;
    throw new InputError(
      `${source}: no pictures found; ${there}. Put three to six photographs of the subject there, as JPEG, PNG, WebP, AVIF, TIFF or GIF.`,
    );
  }
  return { files, warnings };
}

async function readPicture(
  path: string,
  {
    resolution,
    maxPixels = DEFAULT_MAX_PIXELS,
    smallestSide = DEFAULT_SMALLEST_SIDE,
    cutTo = () => ({ width: 1, height: 1 }),
    fullSize = false,
  }: ReferenceOptions,
): Promise<{ image: ReferenceImage; warnings: string[] }> {
  const bytes = await readWhole(path);
  const recognised = recogniseImage(bytes);
  if (!recognised.readable) {
    throw new InputError(
      `${path}: expected a picture (JPEG, PNG, WebP, AVIF, TIFF or GIF), but this is ${recognised.what}. ${recognised.remedy}`,
    );
  }
  const damaged = (error: unknown): never => {
    const reason = error instanceof Error ? error.message.split('\n')[0]!.trim() : String(error);
    throw new InputError(
      `${path}: this ${recognised.format} file is damaged or incomplete (${reason}). Copy or download it again, or take it out of the folder.`,
      { cause: error },
    );
  };

  // The header is read without a limit, so that a huge picture is refused with its size in the message.
  const header = await sharp(bytes, { limitInputPixels: false }).metadata().catch(damaged);
  const { width, height } = header.autoOrient;
  if (width * height > maxPixels) {
    throw new InputError(
      `${path}: ${width} x ${height} pixels are ${millions(width * height)} million; at most ${millions(maxPixels)} million are decoded. Scale the picture down first (2048 pixels on the shorter side are plenty).`,
    );
  }
  if (Math.min(width, height) < smallestSide) {
    throw new InputError(
      `${path}: ${width} x ${height} pixels are too few; each side needs at least ${smallestSide}. Use a larger picture of the subject.`,
    );
  }

  const warnings: string[] = [];
  if ((header.pages ?? 1) > 1) {
    warnings.push(`${path}: holds ${header.pages} frames or pages; only the first is used.`);
  }
  if (Math.min(width, height) < resolution) {
    warnings.push(
      `${path}: ${width} x ${height} pixels are fewer than the ${resolution} of the training resolution; it is enlarged and will look soft.`,
    );
  }
  const cut = cutTo({ width, height });
  const kept = (width * cut.height) / (height * cut.width);
  if (Math.max(kept, 1 / kept) > LONG_ASPECT) {
    const shape = cut.width === cut.height ? 'a square' : `${cut.width} x ${cut.height}`;
    warnings.push(
      `${path}: ${width} x ${height} is a long strip, and ${shape} is cut from it: make sure that the subject is in the middle.`,
    );
  }

  let pipeline = sharp(bytes, { limitInputPixels: maxPixels, failOn: 'error' })
    .autoOrient()
    .flatten({ background: '#ffffff' })
    .toColourspace('srgb');
  const most = fullSize ? Number.POSITIVE_INFINITY : Math.max(LARGEST_SHORT_SIDE, resolution);
  if (Math.min(width, height) > most) {
    pipeline = pipeline.resize(most, most, { fit: 'outside', kernel: 'lanczos3' });
  }
  const decoded = await pipeline.raw({ depth: 'uchar' }).toBuffer({ resolveWithObject: true }).catch(damaged);
  if (decoded.info.channels !== 3) {
    throw new InputError(
      `${path}: expected red, green and blue after conversion, got ${decoded.info.channels} channels. Save it as an ordinary RGB JPEG or PNG.`,
    );
  }
  const pixels = new Uint8Array(decoded.data.buffer, decoded.data.byteOffset, decoded.data.byteLength);
  if (isOneColour(pixels)) {
    warnings.push(
      `${path}: every pixel has the same colour, so there is nothing to learn from it; take it out if that is not meant.`,
    );
  }
  const { info } = decoded;
  return {
    image: { path, width: info.width, height: info.height, originalSize: [height, width], pixels },
    warnings,
  };
}

async function readWhole(path: string): Promise<Buffer> {
  const found = await lookAt(path);
  if (!found.isFile()) throw new InputError(`${path}: expected a picture file, but this is not a file.`);
  if (found.size === 0) {
    throw new InputError(
      `${path}: the file is empty (0 bytes). Copy or download it again, or take it out of the folder.`,
    );
  }
  if (found.size > MAX_FILE_BYTES) {
    throw new InputError(
      `${path}: ${(found.size / 2 ** 30).toFixed(1)} GB is too large for a picture; at most 1 GB is read. Save it smaller, as JPEG.`,
    );
  }
  return readFile(path).catch((error: unknown) => {
    throw unreadable(path, error);
  });
}

async function lookAt(path: string): Promise<Stats> {
  return stat(path).catch((error: unknown) => {
    throw unreadable(path, error);
  });
}

function unreadable(path: string, error: unknown): InputError {
  const code = error instanceof Error && 'code' in error ? error.code : undefined;
  const remedies: Record<string, string> = {
    ENOENT: 'there is nothing of this name. Check the path.',
    ENOTDIR: 'a part of this path is not a folder. Check the path.',
    EACCES: 'no permission to read it. Allow it, for example with "chmod u+r".',
    EPERM: 'no permission to read it. Allow it in your system settings.',
  };
  const why =
    remedies[String(code)] ?? `it could not be read (${error instanceof Error ? error.message : error}).`;
  return new InputError(`${path}: ${why}`, { cause: error });
}

function isOneColour(pixels: Uint8Array): boolean {
  for (let i = 3; i < pixels.length; i++) if (pixels[i] !== pixels[i - 3]) return false;
  return true;
}

function nameSome(names: readonly string[]): string {
  const shown = names.slice(0, 5).join(', ');
  return names.length > 5 ? `${shown} and ${names.length - 5} more` : shown;
}

function millions(pixels: number): string {
  return (pixels / 1e6).toFixed(pixels < 10e6 ? 1 : 0);
}
