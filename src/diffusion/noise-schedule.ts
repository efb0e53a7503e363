import type { Tensor } from '../tensor/tensor.js';
import { float32 } from '../tensor/tensor.js';

/** What the denoiser predicts: the noise, or the velocity sqrt(abar) eps - sqrt(1 - abar) x_0 (Salimans and Ho, arXiv 2202.00512, appendix D). */
export type PredictionType = 'epsilon' | 'v_prediction';

/** Variances beta_t of the forward process, one a timestep, as float32. */
export type Betas = (start: number, end: number, count: number) => Float32Array;

/** Beta schedules by the name that `scheduler_config.json` gives them. */
export const betaSchedules = {
  /** Evenly spaced (Ho et al., arXiv 2006.11239, section 4). */
  linear: evenlySpaced,
  /** Evenly spaced square roots: the schedule of latent diffusion. */
  scaled_linear: (start, end, count) =>
    evenlySpaced(Math.sqrt(start), Math.sqrt(end), count).map((root) => root * root),
  /** From a squared cosine abar, each capped at 0.999 (Nichol and Dhariwal, arXiv 2102.09672, eq. 17); does not look at start and end. */
  squaredcos_cap_v2: (_start, _end, count) => {
    const abar = (t: number) => Math.cos((((t + 0.008) / 1.008) * Math.PI) / 2) ** 2;
    return Float32Array.from({ length: count }, (_, i) =>
      Math.min(1 - abar((i + 1) / count) / abar(i / count), 0.999),
    );
  },
} as const satisfies Record<string, Betas>;

export type BetaSchedule = keyof typeof betaSchedules;

/** Counted from the nearer end, each with a single rounding to float32, as PyTorch does. */
function evenlySpaced(start: number, end: number, count: number): Float32Array {
  const from = Math.fround(start);
  const to = Math.fround(end);
  const step = Math.fround(Math.fround(to - from) / (count - 1));
  return Float32Array.from({ length: count }, (_, i) =>
    i < Math.floor(count / 2) ? from + step * i : to - step * (count - 1 - i),
  );
}

/** The forward process x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps for t = 0 … steps - 1 (Ho et al., arXiv 2006.11239, eq. 4). */
export class NoiseSchedule {
  /** abar_t, the product of 1 - beta up to and with t. */
  readonly alphasCumprod: Float32Array;

  /** @param betas one a timestep; their products are accumulated in double precision and rounded once each, as PyTorch does. */
  constructor(
    readonly betas: Float32Array,
    readonly predictionType: PredictionType,
  ) {
    this.alphasCumprod = cumulativeAlphas(betas);
  }

  /** Number of timesteps. */
  get steps(): number {
    return this.alphasCumprod.length;
  }

  /** sqrt(abar_t), what is left of the clean sample. */
  signal(t: number): number {
    return Math.fround(Math.sqrt(this.#alphaBar(t)));
  }

  /** sqrt(1 - abar_t), the standard deviation of the noise. */
  noise(t: number): number {
    return Math.fround(Math.sqrt(Math.fround(1 - this.#alphaBar(t))));
  }

  /** Signal-to-noise ratio abar_t / (1 - abar_t). */
  snr(t: number): number {
    const alphaBar = this.#alphaBar(t);
    return alphaBar / (1 - alphaBar);
  }

  /** x_t from x_0 and noise of the same shape. */
  addNoise(clean: Tensor<'float32'>, noise: Tensor<'float32'>, t: number): Tensor<'float32'> {
    const [a, b] = [this.signal(t), this.noise(t)];
    return float32(
      clean.shape,
      clean.data.map((x, i) => a * x + b * noise.data[i]!),
    );
  }

  #alphaBar(t: number): number {
    const value = this.alphasCumprod[t];
    if (value === undefined) throw new RangeError(`internal: timestep ${t} of ${this.steps}`);
    return value;
  }
}

function cumulativeAlphas(betas: Float32Array): Float32Array {
  let product = 1;
  return betas.map((beta) => {
    product *= Math.fround(1 - beta);
    return product;
  });
}

/** Betas shifted and scaled so that the last timestep is pure noise (Lin et al., arXiv 2305.08891, algorithm 1). */
export function rescaleToZeroTerminalSnr(betas: Float32Array): Float32Array {
  const roots = cumulativeAlphas(betas).map(Math.sqrt);
  const first = roots[0]!;
  const last = roots.at(-1)!;
  const scale = Math.fround(first / Math.fround(first - last));
  const alphaBars = roots
    .map((root) => Math.fround(Math.fround(root - last) * scale))
    .map((root) => root * root);
  return alphaBars.map((alphaBar, i) => 1 - (i === 0 ? alphaBar : Math.fround(alphaBar / alphaBars[i - 1]!)));
}

/** abar where a sampler's step goes: below the first timestep it is 1, or abar_0. */
export function alphaBarAfter(
  { alphasCumprod }: NoiseSchedule,
  timestep: number,
  setAlphaToOne: boolean,
): number {
  return alphasCumprod[timestep] ?? (setAlphaToOne ? 1 : alphasCumprod[0]!);
}
