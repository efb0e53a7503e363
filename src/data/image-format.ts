/** The picture formats that the image library decodes on every platform. */
export type ImageFormat = 'JPEG' | 'PNG' | 'WebP' | 'GIF' | 'TIFF' | 'AVIF';

/** What the first bytes of a file say it is: a format that can be read, or something else with the way to make a picture of it. */
export type Recognised =
  | { readonly readable: true; readonly format: ImageFormat }
  | { readonly readable: false; readonly what: string; readonly remedy: string };

const CONVERT = 'Save it as JPEG or PNG with any image program.';
const HEIC_REMEDY = 'Export it as JPEG (on an iPhone: Settings, Camera, Formats, Most Compatible).';
const RAW_REMEDY = "Develop it to JPEG or PNG with your camera's software.";

/** File name endings that are read. */
export const readableExtensions: ReadonlySet<string> = new Set(
  'jpg jpeg jpe jfif png webp gif tif tiff avif'.split(' '),
);

/** Pictures by their name that cannot be read, each with its remedy. */
export const unreadableExtensions: ReadonlyMap<string, string> = new Map([
  ...'heic heif hif'.split(' ').map((e) => [e, HEIC_REMEDY] as const),
  ...'dng cr2 cr3 nef arw orf rw2 raf raw'.split(' ').map((e) => [e, RAW_REMEDY] as const),
  ...'bmp jxl jp2 svg psd xcf ico tga exr hdr pdf'.split(' ').map((e) => [e, CONVERT] as const),
]);

function ascii(bytes: Uint8Array, start: number, end: number): string {
  return String.fromCharCode(...bytes.subarray(start, end));
}

/** The brands of an ISO base media file (ISO/IEC 14496-12, "ftyp" box), which tell AVIF from HEIC. */
function mediaBrands(bytes: Uint8Array): string[] {
  const boxSize = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength).getUint32(0);
  const end = Math.min(bytes.length, Math.max(boxSize, 12), 256);
  const brands = [];
  for (let at = 8; at + 4 <= end; at += 4) brands.push(ascii(bytes, at, at + 4));
  return brands;
}

const signatures: readonly { readonly starts: string; readonly at?: number; readonly is: Recognised }[] = [
  { starts: '\xff\xd8\xff', is: { readable: true, format: 'JPEG' } },
  { starts: '\x89PNG\r\n\x1a\n', is: { readable: true, format: 'PNG' } },
  { starts: 'GIF87a', is: { readable: true, format: 'GIF' } },
  { starts: 'GIF89a', is: { readable: true, format: 'GIF' } },
  { starts: 'WEBP', at: 8, is: { readable: true, format: 'WebP' } },
  { starts: 'II*\0', is: { readable: true, format: 'TIFF' } },
  { starts: 'MM\0*', is: { readable: true, format: 'TIFF' } },
  { starts: 'II+\0', is: { readable: true, format: 'TIFF' } },
  { starts: 'MM\0+', is: { readable: true, format: 'TIFF' } },
  { starts: 'BM', is: { readable: false, what: 'a BMP picture', remedy: CONVERT } },
  { starts: '8BPS', is: { readable: false, what: 'a Photoshop document', remedy: CONVERT } },
  { starts: '\xff\x0a', is: { readable: false, what: 'a JPEG XL picture', remedy: CONVERT } },
  { starts: '%PDF', is: { readable: false, what: 'a PDF document', remedy: CONVERT } },
  {
    starts: 'version https://git-lfs',
    is: {
      readable: false,
      what: 'a Git LFS pointer instead of the picture',
      remedy: 'Fetch the picture itself with "git lfs pull".',
    },
  },
];

/**
 * Recognises a picture by its first bytes, never by its name. Formats that would make the decoder run a document renderer (SVG, PDF) are told apart here,
 * so that they never reach it.
 */
export function recogniseImage(bytes: Uint8Array): Recognised {
  for (const { starts, at = 0, is } of signatures) {
    if (ascii(bytes, at, at + starts.length) === starts) return is;
  }
  if (ascii(bytes, 4, 8) === 'ftyp') {
    if (mediaBrands(bytes).some((brand) => brand === 'avif' || brand === 'avis')) {
      return { readable: true, format: 'AVIF' };
    }
    return { readable: false, what: 'an HEIC picture or a video', remedy: HEIC_REMEDY };
  }
  const head = ascii(bytes, 0, Math.min(bytes.length, 256))
    .replace(/^\xef\xbb\xbf/, '')
    .trimStart()
    .toLowerCase();
  if (/^<(\?xml|svg)/.test(head)) {
    return { readable: false, what: 'an SVG drawing or another XML document', remedy: CONVERT };
  }
  if (/^<(!doctype|html|head|body)/.test(head)) {
    return {
      readable: false,
      what: 'a web page',
      remedy: 'It was probably saved in place of the picture: download the picture itself.',
    };
  }
  return { readable: false, what: 'not a picture that is known here', remedy: CONVERT };
}
