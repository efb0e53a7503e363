import { elementCount, float32, type Shape, type Tensor } from './tensor.js';

const ROUNDS = 10;
const MULTIPLIER_0 = 0xd2511f53;
const MULTIPLIER_1 = 0xcd9e8d57;
const WEYL_0 = 0x9e3779b9;
const WEYL_1 = 0xbb67ae85;

/** High and low 32 bits of a 32 by 32 bit product, through 16-bit halves, as numbers hold only 53 bits exactly. */
function highProduct(a: number, b: number): number {
  const al = a & 0xffff;
  const ah = a >>> 16;
  const bl = b & 0xffff;
  const bh = b >>> 16;
  const mid = ah * bl + ((al * bl) >>> 16);
  const mid2 = al * bh + (mid & 0xffff);
  return (ah * bh + Math.floor(mid / 65536) + Math.floor(mid2 / 65536)) >>> 0;
}

/** FNV-1a over the UTF-16 code units, to name streams by words. */
function hashText(text: string, state: number): number {
  let h = state;
  for (let i = 0; i < text.length; i++) {
    h = Math.imul(h ^ text.charCodeAt(i), 0x01000193) >>> 0;
  }
  return h;
}

/**
 * Seeded random numbers from the counter-based generator Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
 *
 * A stream is named by a seed and any words or integers, for example `new Random(7, 'noise', step)`: it needs no saved state, so a resumed run draws what the
 * uninterrupted one would have drawn. The same on every platform.
 */
export class Random {
  readonly #seed: number;
  readonly #stream: readonly (string | number)[];
  readonly #key0: number;
  readonly #key1: number;
  readonly #block = new Uint32Array(4);
  #counter = 0;
  #used = 4;
  #spare: number | undefined;

  constructor(seed: number, ...stream: readonly (string | number)[]) {
    if (stream.some((s) => typeof s === 'string' && /[|#]/.test(s))) {
      throw new RangeError(
        `internal: the stream name ${stream.join(', ')} holds | or #, which set names apart`,
      );
    }
    this.#seed = seed;
    this.#stream = stream;
    const label = `${seed}|${stream.map((s) => (typeof s === 'number' ? `#${s}` : s)).join('|')}`;
    this.#key0 = hashText(label, 0x811c9dc5);
    this.#key1 = hashText(label, this.#key0 ^ 0x5bd1e995);
  }

  /** A stream of its own below this one; does not advance this one. */
  derive(...stream: readonly (string | number)[]): Random {
    return new Random(this.#seed, ...this.#stream, ...stream);
  }

  /** 32 random bits. */
  bits(): number {
    if (this.#used === 4) this.#refill();
    return this.#block[this.#used++]!;
  }

  /** Uniform in [0, 1) with 32 bits. */
  uniform(): number {
    return this.bits() / 4294967296;
  }

  /** Uniform integer in [0, n). */
  int(n: number): number {
    return Math.floor(this.uniform() * n);
  }

  pick<T>(items: readonly T[]): T {
    if (items.length === 0) throw new RangeError('internal: pick from an empty list');
    return items[this.int(items.length)]!;
  }

  /** Standard normal, by Box and Muller. */
  normal(): number {
    if (this.#spare !== undefined) {
      const value = this.#spare;
      this.#spare = undefined;
      return value;
    }
    const radius = Math.sqrt(-2 * Math.log(1 - this.uniform()));
    const angle = 2 * Math.PI * this.uniform();
    this.#spare = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  }

  /** A random order of 0 … n-1 (Fisher and Yates). */
  permutation(n: number): number[] {
    const order = Array.from({ length: n }, (_, i) => i);
    for (let i = n - 1; i > 0; i--) {
      const j = this.int(i + 1);
      [order[i], order[j]] = [order[j]!, order[i]!];
    }
    return order;
  }

  normals(shape: Shape): Tensor<'float32'> {
    const data = new Float32Array(elementCount(shape));
    for (let i = 0; i < data.length; i++) data[i] = this.normal();
    return float32(shape, data);
  }

  uniforms(shape: Shape, low: number, high: number): Tensor<'float32'> {
    const data = new Float32Array(elementCount(shape));
    for (let i = 0; i < data.length; i++) data[i] = low + (high - low) * this.uniform();
    return float32(shape, data);
  }

  #refill(): void {
    let c0 = this.#counter >>> 0;
    let c1 = Math.floor(this.#counter / 4294967296) >>> 0;
    let c2 = 0;
    let c3 = 0;
    let k0 = this.#key0;
    let k1 = this.#key1;
    for (let round = 0; round < ROUNDS; round++) {
      const high0 = highProduct(MULTIPLIER_0, c0);
      const low0 = Math.imul(MULTIPLIER_0, c0) >>> 0;
      const high1 = highProduct(MULTIPLIER_1, c2);
      const low1 = Math.imul(MULTIPLIER_1, c2) >>> 0;
      c0 = (high1 ^ c1 ^ k0) >>> 0;
      c1 = low1;
      c2 = (high0 ^ c3 ^ k1) >>> 0;
      c3 = low0;
      k0 = (k0 + WEYL_0) >>> 0;
      k1 = (k1 + WEYL_1) >>> 0;
    }
    this.#block.set([c0, c1, c2, c3]);
    this.#counter++;
    this.#used = 0;
  }
}
