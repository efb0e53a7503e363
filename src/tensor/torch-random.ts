import { elementCount, float32, type Shape, type Tensor } from './tensor.js';

const STATE = 624;
const MIDDLE = 397;

/**
 * PyTorch's random numbers on a processor: `new TorchRandom(seed).normals(shape)` is `torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))`
 * in float32, to the bit of PyTorch 2.13 on x86-64 with AVX2 (elsewhere PyTorch itself differs by up to 2e-6).
 *
 * For pictures that shall be those of diffusers. Everything else draws from `Random`, whose streams need no saved state.
 */
export class TorchRandom {
  readonly #state: Uint32Array;
  #next = STATE;
  #spare: number | undefined;

  /** @param seed a whole number of at least 0. As in PyTorch, only its lower 32 bits count. */
  constructor(seed: number) {
    this.#state = seededState(seed % 2 ** 32);
  }

  /** Standard normal, float32. Fewer than 16 elements are drawn one by one, others 16 at a time, as PyTorch does. */
  normals(shape: Shape): Tensor<'float32'> {
    const data = new Float32Array(elementCount(shape));
    if (data.length < BLOCK)
      return float32(
        shape,
        data.map(() => this.#normal()),
      );
    for (let i = 0; i < data.length; i++) data[i] = this.#uniform24();
    for (let i = 0; i + BLOCK <= data.length; i += BLOCK) boxMuller(data.subarray(i, i + BLOCK));
    if (data.length % BLOCK !== 0) {
      // The last block overlaps the one before and is drawn anew.
      const last = data.subarray(data.length - BLOCK);
      for (let i = 0; i < BLOCK; i++) last[i] = this.#uniform24();
      boxMuller(last);
    }
    return float32(shape, data);
  }

  /** One standard normal in double precision; they come in pairs. */
  #normal(): number {
    if (this.#spare !== undefined) {
      const value = this.#spare;
      this.#spare = undefined;
      return value;
    }
    const angle = 2 * Math.PI * this.#uniform53();
    const radius = Math.sqrt(-2 * Math.log1p(-this.#uniform53()));
    this.#spare = radius * Math.sin(angle);
    return radius * Math.cos(angle);
  }

  /** Uniform in [0, 1) with 24 bits. */
  #uniform24(): number {
    return (this.#bits() & 0xffffff) * 2 ** -24;
  }

  /** Uniform in [0, 1) with 53 bits. */
  #uniform53(): number {
    const high = this.#bits() & 0x1fffff;
    return (high * 2 ** 32 + this.#bits()) * 2 ** -53;
  }

  /** 32 random bits of the Mersenne twister MT19937 (Matsumoto and Nishimura, ACM TOMACS 8, 1998). */
  #bits(): number {
    if (this.#next === STATE) {
      twist(this.#state);
      this.#next = 0;
    }
    let y = this.#state[this.#next++]!;
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }
}

function seededState(seed: number): Uint32Array {
  const state = new Uint32Array(STATE);
  state[0] = seed;
  for (let i = 1; i < STATE; i++) {
    const before = state[i - 1]! ^ (state[i - 1]! >>> 30);
    state[i] = Math.imul(1812433253, before) + i;
  }
  return state;
}

function twist(state: Uint32Array): void {
  for (let i = 0; i < STATE; i++) {
    const y = (state[i]! & 0x80000000) | (state[(i + 1) % STATE]! & 0x7fffffff);
    state[i] = state[(i + MIDDLE) % STATE]! ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
  }
}

const BLOCK = 16;
const { fround } = Math;
const TWO_PI = fround(2 * Math.PI);

/** Box and Muller's transform of 16 uniform numbers in place: radii from the first eight, angles from the rest. */
function boxMuller(block: Float32Array): void {
  for (let i = 0; i < BLOCK / 2; i++) {
    const radius = fround(Math.sqrt(fround(-2 * logarithm(fround(1 - block[i]!)))));
    const { sine, cosine } = sineAndCosine(fround(TWO_PI * block[i + BLOCK / 2]!));
    // Plus a mean of zero, which turns -0 into 0.
    block[i] = radius * cosine + 0;
    block[i + BLOCK / 2] = radius * sine + 0;
  }
}

/*
 * Logarithm, sine and cosine in single precision, by the polynomials of the Cephes library, with the operations in the order in which PyTorch's vector code does them and
 * fused where its compiler fuses. A fused multiply-add is one rounding of a double: the product of two floats is exact in it.
 */
const fused = (a: number, b: number, c: number): number => fround(a * b + c);

/** The polynomial with these coefficients, highest power first. */
function polynomial(x: number, coefficients: readonly number[]): number {
  return coefficients.reduce((sum, c) => fused(sum, x, c));
}

const floats = (...values: number[]): number[] => values.map(fround);

const LOG = floats(
  7.0376836292e-2,
  -1.151461031e-1,
  1.167699874e-1,
  -1.2420140846e-1,
  1.4249322787e-1,
  -1.6668057665e-1,
  2.0000714765e-1,
  -2.4999993993e-1,
  3.3333331174e-1,
);
/** log 2 in two parts; the first has few enough bits that its product with an exponent is exact. */
const [LOG2_LOW, LOG2_HIGH] = floats(-2.1219444e-4, 0.693359375) as [number, number];
const SQRT_HALF = fround(Math.SQRT1_2);

const float = new Float32Array(1);
const floatBits = new Int32Array(float.buffer);

/** Of a normal number in (0, 1]. */
function logarithm(value: number): number {
  float[0] = value;
  let exponent = (floatBits[0]! >>> 23) - 126;
  floatBits[0] = (floatBits[0]! & 0x807fffff) | 0x3f000000;
  let x = float[0]; // in [0.5, 1)
  if (x < SQRT_HALF) {
    exponent -= 1;
    x = fround(fround(x - 1) + x);
  } else {
    x = fround(x - 1);
  }
  const square = fround(x * x);
  let y = fround(polynomial(x, LOG) * x);
  y = fused(y, square, fround(exponent * LOG2_LOW));
  y = fused(square, -0.5, y);
  return fused(exponent, LOG2_HIGH, fround(x + y));
}

const FOUR_OVER_PI = fround(4 / Math.PI);
/** Minus pi / 4 in three parts. */
const MINUS_QUARTER_PI = floats(-0.78515625, -2.4187564849853516e-4, -3.774894977445941e-8);
const SINE = floats(-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1);
const COSINE = floats(2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2);

/** Of an angle of at least 0. */
function sineAndCosine(angle: number): { sine: number; cosine: number } {
  const octant = (Math.trunc(fround(angle * FOUR_OVER_PI)) + 1) & ~1;
  const x = MINUS_QUARTER_PI.reduce((rest, part) => fused(octant, part, rest), angle);
  const square = fround(x * x);
  const even = fround(fused(fround(polynomial(square, COSINE) * square), square, -fround(0.5 * square)) + 1);
  const odd = fused(fround(polynomial(square, SINE) * square), x, x);
  const [sine, cosine] = (octant & 2) === 0 ? [odd, even] : [even, odd];
  return {
    sine: octant & 4 ? -sine : sine,
    cosine: (octant - 2) & 4 ? cosine : -cosine,
  };
}
