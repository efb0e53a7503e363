import assert from 'node:assert/strict';
import { chmod, mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { crc32, deflateSync } from 'node:zlib';
import sharp, { type Sharp } from 'sharp';
import { squareOf } from '../../src/data/aspect-buckets.js';
import { prepareImage, readReferenceImages } from '../../src/data/reference-images.js';
import { InputError } from '../../src/errors.js';
import { Random } from '../../src/tensor/random.js';

let root: string;
let count = 0;
before(async () => {
  root = await mkdtemp(join(tmpdir(), 'portrayal-images-'));
});
after(async () => {
  await rm(root, { recursive: true, force: true });
});

async function folder(files: Record<string, Uint8Array | string>): Promise<string> {
  const path = join(root, String(count++));
  await mkdir(path);
  for (const [name, contents] of Object.entries(files)) await writeFile(join(path, name), contents);
  return path;
}

/** Pixels that no two rows or columns share. */
function pattern(width: number, height: number): Uint8Array {
  const random = new Random(1, 'pattern');
  return Uint8Array.from({ length: width * height * 3 }, () => random.int(256));
}

function picture(width = 64, height = 48): Sharp {
  return sharp(pattern(width, height), { raw: { width, height, channels: 3 } });
}

function flat(background: string | { r: number; g: number; b: number; alpha: number }, channels: 3 | 4 = 3) {
  return sharp({ create: { width: 40, height: 40, channels, background } });
}

async function readOne(name: string, contents: Uint8Array, resolution = 32) {
  const { images, warnings } = await readReferenceImages(await folder({ [name]: contents }), { resolution });
  assert.equal(images.length, 1);
  return { image: images[0]!, warnings };
}

async function rejects(source: string | string[], ...expected: RegExp[]): Promise<void> {
  await assert.rejects(readReferenceImages(source, { resolution: 32 }), (error: unknown) => {
    assert.ok(error instanceof InputError, String(error));
    for (const pattern of expected) assert.match(error.message, pattern);
    return true;
  });
}

function pixel(image: { width: number; pixels: Uint8Array }, x: number, y: number): number[] {
  const at = 3 * (y * image.width + x);
  return [...image.pixels.subarray(at, at + 3)];
}

function near(actual: readonly number[], expected: readonly number[], tolerance: number): void {
  const worst = Math.max(...expected.map((e, i) => Math.abs(e - actual[i]!)));
  assert.ok(worst <= tolerance, `${actual} is not within ${tolerance} of ${expected}`);
}

test('a lossless picture comes back byte for byte, and its file stays as it was', async () => {
  const png = await picture().png().toBuffer();
  const path = await folder({ 'a.png': png });
  const { images, warnings } = await readReferenceImages(path, { resolution: 32 });
  assert.deepEqual(images[0], {
    path: join(path, 'a.png'),
    width: 64,
    height: 48,
    originalSize: [48, 64],
    pixels: pattern(64, 48),
  });
  assert.deepEqual(warnings, []);
  assert.deepEqual(await readFile(join(path, 'a.png')), png);
});

test('every EXIF orientation is undone, pixel for pixel', async () => {
  const [width, height] = [40, 33];
  const upright = pattern(width, height);
  // Where the stored pixel (x, y) of each orientation is seen, from the EXIF 2.3 table of tag 0x0112; 5 to 8 swap the sides.
  const stored: Record<number, (x: number, y: number) => [number, number]> = {
    1: (x, y) => [x, y],
    2: (x, y) => [width - 1 - x, y],
    3: (x, y) => [width - 1 - x, height - 1 - y],
    4: (x, y) => [x, height - 1 - y],
    5: (x, y) => [y, x],
    6: (x, y) => [y, width - 1 - x],
    7: (x, y) => [height - 1 - y, width - 1 - x],
    8: (x, y) => [height - 1 - y, x],
  };
  for (const [orientation, place] of Object.entries(stored)) {
    const turned = Number(orientation) >= 5;
    const [w, h] = turned ? [height, width] : [width, height];
    const raw = new Uint8Array(upright.length);
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const [sx, sy] = place(x, y);
        for (let c = 0; c < 3; c++) raw[3 * (sy * w + sx) + c] = upright[3 * (y * width + x) + c]!;
      }
    }
    const png = await sharp(raw, { raw: { width: w, height: h, channels: 3 } })
      .withMetadata({ orientation: Number(orientation) })
      .png()
      .toBuffer();
    const { image } = await readOne('a.png', png);
    assert.deepEqual([image.width, image.height], [width, height], `orientation ${orientation}`);
    assert.deepEqual(image.pixels, upright, `orientation ${orientation}`);
  }
});

test('greyscale becomes three equal channels', async () => {
  const grey = Uint8Array.from({ length: 40 * 40 }, (_, i) => i % 251);
  const png = await sharp(grey, { raw: { width: 40, height: 40, channels: 1 } })
    .toColourspace('b-w')
    .png()
    .toBuffer();
  const { image } = await readOne('a.png', png);
  assert.deepEqual(
    [...image.pixels],
    [...grey].flatMap((v) => [v, v, v]),
  );
});

test('16 bits a channel are scaled to 8', async () => {
  const deep = Uint16Array.from({ length: 40 * 40 * 3 }, (_, i) => [65535, 0, 257 * 128][i % 3]!);
  const png = await sharp(deep, { raw: { width: 40, height: 40, channels: 3 } })
    .toColourspace('rgb16')
    .png()
    .toBuffer();
  assert.equal((await sharp(png).metadata()).depth, 'ushort');
  near(pixel((await readOne('a.png', png)).image, 7, 9), [255, 0, 128], 1);
});

test('transparency is laid on white', async () => {
  const half = await flat({ r: 0, g: 100, b: 200, alpha: 0.5 }, 4).png().toBuffer();
  near(pixel((await readOne('a.png', half)).image, 3, 3), [127, 177, 227], 1);
  const none = await flat({ r: 0, g: 0, b: 0, alpha: 0 }, 4).webp({ lossless: true }).toBuffer();
  const { image, warnings } = await readOne('a.webp', none);
  assert.deepEqual(pixel(image, 3, 3), [255, 255, 255]);
  assert.match(warnings[0]!, /a\.webp: every pixel has the same colour/);
});

test('CMYK becomes RGB', async () => {
  const cmyk = await flat('#20a040').toColourspace('cmyk').jpeg({ quality: 100 }).toBuffer();
  assert.equal((await sharp(cmyk).metadata()).space, 'cmyk');
  // A green stays this green through the library's built-in press profile, which cannot print it all.
  near(pixel((await readOne('a.jpg', cmyk)).image, 20, 20), [0x20, 0xa0, 0x40], 40);
});

test('a wide-gamut picture is converted through its profile, not read as if it were sRGB', async () => {
  const p3 = await flat('#c03020').withIccProfile('p3').png().toBuffer();
  const stored = await sharp(p3, { ignoreIcc: true }).raw().toBuffer();
  assert.ok(Math.abs(stored[0]! - 0xc0) > 10, 'the stored numbers are those of the wide gamut');
  near(pixel((await readOne('a.png', p3)).image, 5, 5), [0xc0, 0x30, 0x20], 3);
});

test('of an animation the first frame is used, and a warning says so', async () => {
  const frames = [await flat('#ff0000').png().toBuffer(), await flat('#0000ff').png().toBuffer()];
  for (const format of ['gif', 'webp'] as const) {
    const animation = await sharp(frames, { join: { animated: true } })
      .toFormat(format, format === 'webp' ? { lossless: true } : {})
      .toBuffer();
    assert.equal((await sharp(animation).metadata()).pages, 2);
    const { image, warnings } = await readOne(`a.${format}`, animation);
    assert.deepEqual([image.width, image.height], [40, 40]);
    near(pixel(image, 9, 9), [255, 0, 0], 2);
    assert.match(warnings[0]!, new RegExp(`a\\.${format}: holds 2 frames or pages; only the first`));
  }
});

test('a file that was cut short is refused in every format, wherever it was cut', async () => {
  const whole = {
    'a.jpg': await picture().jpeg().toBuffer(),
    'b.jpg': await picture().jpeg({ progressive: true }).toBuffer(),
    'a.png': await picture().png().toBuffer(),
    'a.webp': await picture().webp().toBuffer(),
    'a.gif': await picture().gif().toBuffer(),
    'a.tiff': await picture().tiff({ compression: 'lzw' }).toBuffer(),
    'a.avif': await picture().avif().toBuffer(),
  };
  for (const [name, bytes] of Object.entries(whole)) {
    await readOne(name, bytes);
    for (const part of [0.3, 0.6, 0.9]) {
      const path = await folder({ [name]: bytes.subarray(0, Math.floor(bytes.length * part)) });
      await rejects(path, new RegExp(name.replace('.', '\\.')), /damaged or incomplete/, /again/);
    }
  }
});

test('an empty file, a text, a web page and a drawing under a picture name are told apart', async () => {
  await rejects(await folder({ 'a.jpg': '' }), /a\.jpg/, /empty \(0 bytes\)/);
  await rejects(await folder({ 'a.jpg': 'once upon a time' }), /a\.jpg/, /not a picture/);
  await rejects(await folder({ 'a.png': '<!DOCTYPE html><html>404</html>' }), /a\.png/, /web page/);
  await rejects(
    await folder({ 'a.png': '<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"/>' }),
    /SVG/,
  );
  await rejects(
    await folder({ 'a.jpg': 'version https://git-lfs.github.com/spec/v1\noid sha256:0\n' }),
    /git lfs pull/,
  );
  const heic = Buffer.concat([Buffer.from([0, 0, 0, 24]), Buffer.from('ftypheic\0\0\0\0mif1heic')]);
  await rejects(await folder({ 'a.jpg': heic }), /HEIC/, /Most Compatible/);
  await rejects(await folder({ 'a.jpg': Buffer.from([7]) }), /not a picture/);
});

test('a picture is known by its contents, not by its name', async () => {
  const { image } = await readOne('really-a-png.jpg', await picture().png().toBuffer());
  assert.deepEqual(image.pixels, pattern(64, 48));
});

test('a decompression bomb is refused by its header, before anything is decoded', async () => {
  const chunk = (type: string, data: Buffer) => {
    const body = Buffer.concat([Buffer.from(type), data]);
    const [length, check] = [Buffer.alloc(4), Buffer.alloc(4)];
    length.writeUInt32BE(data.length);
    check.writeUInt32BE(crc32(body));
    return Buffer.concat([length, body, check]);
  };
  const header = Buffer.alloc(13);
  header.writeUInt32BE(50000, 0);
  header.writeUInt32BE(50000, 4);
  header.set([8, 2], 8);
  const bomb = Buffer.concat([
    Buffer.from('\x89PNG\r\n\x1a\n', 'latin1'),
    chunk('IHDR', header),
    chunk('IDAT', deflateSync(Buffer.alloc(1000))),
    chunk('IEND', Buffer.alloc(0)),
  ]);
  const path = await folder({ 'bomb.png': bomb });
  await rejects(path, /bomb\.png: 50000 x 50000 pixels are 2500 million; at most 100 million/, /Scale/);
  await assert.rejects(
    readReferenceImages(await folder({ 'a.png': await picture().png().toBuffer() }), {
      resolution: 32,
      maxPixels: 3000,
    }),
    /64 x 48/,
  );
});

test('a tiny picture is refused, a small one is enlarged with a warning, a strip is pointed out', async () => {
  await rejects(
    await folder({ 'tiny.png': await picture(100, 31).png().toBuffer() }),
    /tiny\.png: 100 x 31/,
    /at least 32/,
  );
  const { image, warnings } = await readOne('small.png', await picture(64, 48).png().toBuffer(), 64);
  assert.deepEqual([image.width, image.height], [64, 48]);
  assert.match(warnings[0]!, /small\.png: 64 x 48 pixels are fewer than the 64 .* enlarged/);
  const strip = await readOne('strip.png', await picture(200, 40).png().toBuffer());
  assert.match(strip.warnings[0]!, /strip\.png: 200 x 40 is a long strip/);
});

test('a very large photograph is kept at a size that training can use', async () => {
  const large = await sharp({ create: { width: 5000, height: 2500, channels: 3, background: '#336699' } })
    .jpeg()
    .toBuffer();
  const { image } = await readOne('large.jpg', large);
  assert.deepEqual([image.width, image.height], [4096, 2048]);
  near(pixel(image, 99, 99), [0x33, 0x66, 0x99], 3);
});

test('a folder is read in code-unit order; what is not a picture is passed over with a word', async () => {
  const png = await picture().png().toBuffer();
  const path = await folder({
    'b.png': png,
    'a10.PNG': png,
    'a9.png': png,
    'Z.jpeg': png,
    '.hidden.png': png,
    'notes.txt': 'hello',
    'phone.HEIC': 'x',
  });
  await mkdir(join(path, 'more.png'));
  const { images, warnings } = await readReferenceImages(path, { resolution: 32 });
  assert.deepEqual(
    images.map((i) => i.path.slice(path.length + 1)),
    ['Z.jpeg', 'a10.PNG', 'a9.png', 'b.png'],
  );
  assert.match(warnings[0]!, /ignored what is not a picture: \.hidden\.png, more\.png, notes\.txt\./);
  assert.match(warnings[1]!, /phone\.HEIC: \.heic files cannot be read, so it is left out.*Most Compatible/);
});

test('a list of files is taken in its own order, and so is a single file', async () => {
  const png = await picture().png().toBuffer();
  const path = await folder({ 'a.png': png, 'b.png': png });
  const list = [join(path, 'b.png'), join(path, 'a.png')];
  const { images } = await readReferenceImages(list, { resolution: 32 });
  assert.deepEqual(
    images.map((i) => i.path),
    list,
  );
  const single = await readReferenceImages(list[0]!, { resolution: 32 });
  assert.deepEqual(
    single.images.map((i) => i.path),
    [list[0]],
  );
});

test('a missing, empty, pictureless or forbidden place says what is there and what to do', async () => {
  await rejects(join(root, 'nowhere'), /nowhere: there is nothing of this name/);
  await rejects(await folder({}), /the folder is empty/, /three to six photographs/);
  await rejects(await folder({ 'a.txt': 'x', 'b.md': 'y' }), /it holds only a\.txt, b\.md/);
  await rejects([], /No reference pictures were given/);
  await rejects([join(root, 'gone.png')], /gone\.png/);
  await rejects([await folder({})], /expected a picture file, but this is not a file/);
});

test('a file without read permission is named', async () => {
  const path = await folder({ 'a.png': await picture().png().toBuffer() });
  await chmod(root, 0o755);
  await chmod(join(path, 'a.png'), 0);
  // Root may read everything, so it steps down for the test.
  const user = process.geteuid?.();
  if (user === 0) process.seteuid?.(65534);
  try {
    await rejects(path, /a\.png: no permission to read it/, /chmod/);
  } finally {
    if (user === 0) process.seteuid?.(0);
  }
});

test('prepared at its own size, a square picture is the same numbers in [-1, 1], plane by plane', async () => {
  const pixels = pattern(48, 48);
  const image = { path: 'x', width: 48, height: 48, originalSize: [48, 48], pixels } as const;
  const { shape, data } = (await prepareImage(image, { size: squareOf(48) })).pixels;
  assert.deepEqual(shape, [3, 48, 48]);
  const flipped = (await prepareImage(image, { size: squareOf(48), flip: true })).pixels.data;
  for (let y = 0; y < 48; y++) {
    for (let x = 0; x < 48; x++) {
      for (let c = 0; c < 3; c++) {
        const expected = Math.fround(pixels[3 * (48 * y + x) + c]! / 127.5 - 1);
        assert.equal(data[48 * (48 * c + y) + x], expected);
        assert.equal(flipped[48 * (48 * c + y) + 47 - x], expected);
      }
    }
  }
});

test('the centre crop is the middle; a random crop is a square of the picture and comes again from its seed', async () => {
  // Red grows by 2 from left to right, so that a crop tells where it was cut.
  const [width, height] = [96, 40];
  const pixels = Uint8Array.from({ length: width * height * 3 }, (_, i) =>
    i % 3 === 0 ? 2 * (Math.floor(i / 3) % width) : 90,
  );
  const image = { path: 'x', width, height, originalSize: [400, 960], pixels } as const;
  const left = async (crop: 'center' | Random) => {
    const { pixels, size } = await prepareImage(image, { size: squareOf(40), crop });
    const first = Math.round((pixels.data[0]! + 1) * 127.5) / 2;
    const last = Math.round((pixels.data[39]! + 1) * 127.5) / 2;
    assert.equal(last - first, 39);
    assert.deepEqual(size, { originalSize: [400, 960], cropTopLeft: [0, first], targetSize: [40, 40] });
    return first;
  };
  assert.equal(await left('center'), 28);
  const mirrored = await prepareImage(image, {
    size: squareOf(40),
    crop: new Random(3, 'crop', 4),
    flip: true,
  });
  assert.deepEqual(mirrored.size.cropTopLeft, [0, 56 - (await left(new Random(3, 'crop', 4)))]);
  const drawn = [];
  for (let i = 0; i < 20; i++) drawn.push(await left(new Random(3, 'crop', i)));
  assert.ok(new Set(drawn).size > 10);
  assert.ok(drawn.every((x) => x >= 0 && x <= 56));
  assert.equal(await left(new Random(3, 'crop', 4)), drawn[4]);
});

test('scaling keeps flat areas flat and puts edges where they were', async () => {
  // The left half black, the right half white, twice and half the size.
  const [width, height] = [80, 80];
  const pixels = Uint8Array.from({ length: width * height * 3 }, (_, i) =>
    Math.floor(i / 3) % width < width / 2 ? 0 : 255,
  );
  for (const resolution of [40, 160]) {
    const image = { path: 'x', width, height, originalSize: [height, width], pixels } as const;
    const { data } = (await prepareImage(image, { size: squareOf(resolution) })).pixels;
    const row = data.subarray(resolution * 20, resolution * 21);
    near([row[0]!, row[resolution / 4]!, row[(3 * resolution) / 4]!], [-1, -1, 1], 0.01);
    assert.ok(row[resolution / 2 - 1]! < 0 && row[resolution / 2]! > 0);
  }
});
