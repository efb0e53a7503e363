import sharp from 'sharp';

/** A picture in memory: interleaved RGB, row by row from the top, values 0 … 255. */
export interface RgbImage {
  readonly width: number;
  readonly height: number;
  readonly pixels: Uint8Array;
}

export interface GridOptions {
  /** Pictures in a row. */
  readonly columns: number;
  /** Space between pictures and around the grid, in pixels. Default 4. */
  readonly gap?: number;
  /** Each picture is enlarged this many whole times, with hard edges. Default 1. */
  readonly enlarge?: number;
}

/** Space between the pictures of a grid and around it, in pixels, where nothing else is asked for. */
const GAP = 4;

/**
 * Lays pictures of one size out in rows, on white. An incomplete last row is left white.
 * The result depends on the pixels alone, so equal runs give equal grids.
 */
export function composeGrid(images: readonly RgbImage[], options: GridOptions): RgbImage {
  const { columns, gap = GAP, enlarge = 1 } = options;
  const [first] = images;
  if (first === undefined) throw new RangeError('internal: a grid of no pictures');
  const odd = images.find((i) => i.width !== first.width || i.height !== first.height);
  if (odd) {
    throw new RangeError(
      `internal: a grid takes pictures of one size, got ${first.width} x ${first.height} and ${odd.width} x ${odd.height}`,
    );
  }
  const rows = Math.ceil(images.length / columns);
  const [cellWidth, cellHeight] = [first.width * enlarge, first.height * enlarge];
  const width = columns * (cellWidth + gap) + gap;
  const height = rows * (cellHeight + gap) + gap;
  const pixels = new Uint8Array(width * height * 3).fill(255);
  images.forEach((image, index) => {
    const left = gap + (index % columns) * (cellWidth + gap);
    const top = gap + Math.floor(index / columns) * (cellHeight + gap);
    for (let y = 0; y < cellHeight; y++) {
      const from = Math.floor(y / enlarge) * image.width;
      let to = 3 * ((top + y) * width + left);
      for (let x = 0; x < cellWidth; x++) {
        const at = 3 * (from + Math.floor(x / enlarge));
        pixels[to++] = image.pixels[at]!;
        pixels[to++] = image.pixels[at + 1]!;
        pixels[to++] = image.pixels[at + 2]!;
      }
    }
  });
  return { width, height, pixels };
}

/**
 * Cuts the pictures out of a grid that {@link composeGrid} laid out, not enlarged and with the default gap, row by row from the top.
 * Undefined when a grid of so many rows and columns cannot have this size.
 */
export function cutGrid(grid: RgbImage, rows: number, columns: number): RgbImage[][] | undefined {
  const width = (grid.width - GAP) / columns - GAP;
  const height = (grid.height - GAP) / rows - GAP;
  if (![width, height].every((side) => Number.isInteger(side) && side > 0)) return undefined;
  return Array.from({ length: rows }, (_, row) =>
    Array.from({ length: columns }, (_, column) => {
      const [left, top] = [GAP + column * (width + GAP), GAP + row * (height + GAP)];
      const pixels = new Uint8Array(3 * width * height);
      for (let y = 0; y < height; y++) {
        const start = 3 * ((top + y) * grid.width + left);
        pixels.set(grid.pixels.subarray(start, start + 3 * width), 3 * y * width);
      }
      return { width, height, pixels };
    }),
  );
}

/** Encodes a picture without loss. Equal pixels give equal bytes. */
export async function encodePng(image: RgbImage): Promise<Uint8Array> {
  return raw(image).png({ compressionLevel: 9, effort: 10, palette: false }).toBuffer();
}

/**
 * Decodes a picture that {@link encodePng} encoded, with every pixel as it was, however large: for our own files, not for those of strangers.
 * @param source the file's path, or its bytes.
 */
export async function decodePng(source: string | Uint8Array): Promise<RgbImage> {
  const { data, info } = await sharp(source, { limitInputPixels: false, unlimited: true })
    .toColourspace('srgb')
    .removeAlpha()
    .raw()
    .toBuffer({ resolveWithObject: true });
  return {
    width: info.width,
    height: info.height,
    pixels: new Uint8Array(data.buffer, data.byteOffset, data.length),
  };
}

/** Encodes a picture for a page that has to stay small: at most `side` pixels on its longer side, JPEG. */
export async function encodeThumbnail(image: RgbImage, side: number): Promise<Uint8Array> {
  return raw(image)
    .resize(side, side, { fit: 'inside', withoutEnlargement: true })
    .jpeg({ quality: 88, chromaSubsampling: '4:4:4' })
    .toBuffer();
}

/** Encodes a picture as a JPEG file of this quality, 1 to 100. */
export async function encodeJpeg(image: RgbImage, quality: number): Promise<Uint8Array> {
  return raw(image).jpeg({ quality }).toBuffer();
}

function raw({ pixels, width, height }: RgbImage) {
  return sharp(pixels, { raw: { width, height, channels: 3 }, limitInputPixels: false });
}
