import type { Random } from '../tensor/random.js';

/** Largest shift either way, as a share of the side. */
const SHIFT = 1 / 16;
const BRIGHTNESS = 0.12;
const CONTRAST = 0.12;
const TINT = 0.04;
/** Standard deviation of the strongest grain, of a range of 2. */
const GRAIN = 0.16;
const GRAINS = 1 << 16;

/**
 * Small random changes that do not change what a picture shows: a shift, a mirror image, another exposure, grain and softness. A classifier that has learnt to look past
 * them judges pictures out of a decoder, which are a little soft and uneven, as fairly as sharp drawings.
 */
export class Augmentation {
  readonly #side: number;
  /** Normal noise drawn once; drawing it anew for each pixel would cost more than the training. */
  readonly #grain: Float32Array;
  readonly #scratch: Float32Array;

  constructor(side: number, random: Random) {
    this.#side = side;
    this.#grain = random.normals([GRAINS]).data;
    this.#scratch = new Float32Array(side * side);
  }

  /** Changes a picture [3, side, side] in [-1, 1] in place. */
  apply(picture: Float32Array, random: Random): void {
    const plane = this.#side ** 2;
    const reach = Math.round(this.#side * SHIFT);
    const dx = random.int(2 * reach + 1) - reach;
    const dy = random.int(2 * reach + 1) - reach;
    const mirrored = random.uniform() < 0.5;
    const gain = 1 + CONTRAST * (2 * random.uniform() - 1);
    const offset = BRIGHTNESS * (2 * random.uniform() - 1);
    const grain = random.uniform() < 0.5 ? GRAIN * random.uniform() ** 2 : 0;
    // Of a pixel's value, how much comes from its neighbours: up to a full 1-2-1 kernel, twice.
    const blurs = random.int(3);
    const softness = random.uniform();
    for (let c = 0; c < 3; c++) {
      const channel = picture.subarray(c * plane, (c + 1) * plane);
      this.#move(channel, dx, dy, mirrored);
      const shift = offset + TINT * (2 * random.uniform() - 1);
      const from = random.int(GRAINS - plane);
      for (let i = 0; i < plane; i++) {
        channel[i] = channel[i]! * gain + shift + grain * this.#grain[from + i]!;
      }
      for (let i = 0; i < blurs; i++) this.#soften(channel, softness);
      for (let i = 0; i < plane; i++) channel[i] = Math.max(-1, Math.min(1, channel[i]!));
    }
  }

  /** Moves a channel, repeating its edge. */
  #move(channel: Float32Array, dx: number, dy: number, mirrored: boolean): void {
    const side = this.#side;
    const last = side - 1;
    this.#scratch.set(channel);
    for (let y = 0; y < side; y++) {
      const row = side * Math.max(0, Math.min(last, y - dy));
      for (let x = 0; x < side; x++) {
        const from = Math.max(0, Math.min(last, x - dx));
        channel[y * side + x] = this.#scratch[row + (mirrored ? last - from : from)]!;
      }
    }
  }

  /** Mixes a channel with its 1-2-1 blur in both directions. */
  #soften(channel: Float32Array, softness: number): void {
    const side = this.#side;
    const last = side - 1;
    const [own, next] = [1 - softness / 2, softness / 4];
    const rows = this.#scratch;
    for (let y = 0; y < side; y++) {
      const row = y * side;
      for (let x = 0; x < side; x++) {
        const left = channel[row + Math.max(0, x - 1)]!;
        const right = channel[row + Math.min(last, x + 1)]!;
        rows[row + x] = own * channel[row + x]! + next * (left + right);
      }
    }
    for (let y = 0; y < side; y++) {
      const above = side * Math.max(0, y - 1);
      const below = side * Math.min(last, y + 1);
      for (let x = 0; x < side; x++) {
        channel[y * side + x] = own * rows[y * side + x]! + next * (rows[above + x]! + rows[below + x]!);
      }
    }
  }
}
