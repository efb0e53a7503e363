import type { SamplingOptions } from '../../src/diffusion/sampler.js';
import { readScheduler, type Scheduler, type SchedulerName } from '../../src/diffusion/scheduler-config.js';
import { parseConfig, parseJson } from '../../src/formats/json-config.js';
import { concatRows } from '../../src/tensor/rows.js';
import { float32, type Tensor } from '../../src/tensor/tensor.js';
import { TorchRandom } from '../../src/tensor/torch-random.js';

/** One use of a sampler, as scripts/goldens/samplers.py writes it. */
export interface SamplerCase {
  readonly config: Record<string, unknown>;
  readonly scheduler: SchedulerName | null;
  readonly karras: boolean | null;
  readonly steps: number;
  readonly timesteps: number[];
}

export interface SamplerCases {
  readonly shape: number[];
  readonly seeds: number[];
  readonly cases: Record<string, SamplerCase>;
}

/** Diffusers writes minus infinity into its configurations, so the file is read as theirs are. */
export function readSamplerCases(text: string): SamplerCases {
  return parseJson(text, 'samplers.json') as unknown as SamplerCases;
}

/** A scheduler from a configuration as diffusers writes it. */
export function schedulerOf(config: Record<string, unknown>): Scheduler {
  const text = JSON.stringify(config, (_, v) => (v === Number.NEGATIVE_INFINITY ? '<-inf>' : v));
  return readScheduler(parseConfig(text.replaceAll('"<-inf>"', '-Infinity'), 'scheduler_config.json'));
}

export interface Visits {
  readonly options: SamplingOptions;
  /** Filled while sampling. */
  readonly timesteps: number[];
  readonly done: number[];
}

/** What the cases sample with: noise from one generator a sample, and the formula that stands for a denoiser. */
export function visits({ seeds, shape }: Pick<SamplerCases, 'seeds' | 'shape'>, steps: number): Visits {
  const timesteps: number[] = [];
  const done: number[] = [];
  const randoms = seeds.map((seed) => new TorchRandom(seed));
  const drawNoise = () => concatRows(randoms.map((random) => random.normals([1, ...shape.slice(1)])));
  const options: SamplingOptions = {
    steps,
    noise: drawNoise(),
    drawNoise,
    denoise: async (x, t) => {
      timesteps.push(t);
      return float32(
        x.shape,
        x.data.map((v) => Math.sin(2 * v + t / 100)),
      );
    },
    onStep: (n) => {
      done.push(n);
    },
  };
  return { options, timesteps, done };
}

/** The sample that a case ends in. */
export async function sampleCase(
  cases: SamplerCases,
  { config, scheduler, karras, steps }: SamplerCase,
): Promise<Visits & { readonly sample: Tensor<'float32'> }> {
  const sampler = schedulerOf(config).sampler({
    ...(scheduler === null ? {} : { scheduler }),
    ...(karras === null ? {} : { useKarrasSigmas: karras }),
  });
  const visited = visits(cases, steps);
  return { ...visited, sample: await sampler(visited.options) };
}
