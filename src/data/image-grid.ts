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

/**
 * Turns a model's picture into bytes.
 * @param values [3, height, width], RGB in [-1, 1]; what lies outside is clipped.
 */
export function imageFromPlanes(values: ArrayLike<number>, width: number, height: number): RgbImage {
  const plane = width * height;
  if (values.length !== 3 * plane) {
    throw new RangeError(
      `internal: a ${width} x ${height} picture has ${3 * plane} values, got ${values.length}`,
    );
  }
  // A clamped array rounds to the nearest byte and clips.
  const pixels = new Uint8ClampedArray(3 * plane);
  for (let i = 0; i < plane; i++) {
    for (let channel = 0; channel < 3; channel++) {
      pixels[3 * i + channel] = (values[channel * plane + i]! + 1) * 127.5;
    }
  }
  return { width, height, pixels: new Uint8Array(pixels.buffer) };
}

/**
 * Lays pictures of one size out in rows, on white. An incomplete last row is left white.
 * The result depends on the pixels alone, so equal runs give equal grids.
 */
export function composeGrid(images: readonly RgbImage[], options: GridOptions): RgbImage {
  const { columns, gap = 4, enlarge = 1 } = options;
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

/** Encodes a picture without loss. Equal pixels give equal bytes. */
export async function encodePng(image: RgbImage): Promise<Uint8Array> {
  return raw(image).png({ compressionLevel: 9, effort: 10, palette: false }).toBuffer();
}

/** Encodes a picture for a page that has to stay small: at most `side` pixels on its longer side, JPEG. */
export async function encodeThumbnail(image: RgbImage, side: number): Promise<Uint8Array> {
  return raw(image)
    .resize(side, side, { fit: 'inside', withoutEnlargement: true })
    .jpeg({ quality: 88, chromaSubsampling: '4:4:4' })
    .toBuffer();
}

function raw({ pixels, width, height }: RgbImage) {
  return sharp(pixels, { raw: { width, height, channels: 3 }, limitInputPixels: false });
}
