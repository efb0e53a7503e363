import { UsageError } from '../errors.js';
import type { Config } from '../formats/json-config.js';
import { readDdimSettings, sampleDdim } from './ddim.js';
import { readDdpmSettings, sampleDdpm } from './ddpm.js';
import { readDpmSolverSettings, sampleDpmSolverMultistep } from './dpm-solver-multistep.js';
import { readEulerSettings, sampleEuler } from './euler.js';
import { readEulerAncestralSettings, sampleEulerAncestral } from './euler-ancestral.js';
import {
  type BetaSchedule,
  betaSchedules,
  NoiseSchedule,
  rescaleToZeroTerminalSnr,
} from './noise-schedule.js';
import { readPndmSettings, samplePndm } from './pndm.js';
import type { Sampler, SamplingOptions } from './sampler.js';

/** Reads a sampler's settings from a scheduler's file. Absent keys take the defaults of diffusers' class of that name. */
type SamplerReader = (config: Config, schedule: NoiseSchedule) => Sampler;

function reader<S>(
  read: (config: Config) => S,
  sample: (schedule: NoiseSchedule, settings: S, options: SamplingOptions) => ReturnType<Sampler>,
): SamplerReader {
  return (config, schedule) => {
    const settings = read(config);
    return (options) => sample(schedule, settings, options);
  };
}

/** The samplers, by the short names that diffusers' conversion scripts use. */
const samplers = {
  ddim: { className: 'DDIMScheduler', read: reader(readDdimSettings, sampleDdim) },
  pndm: { className: 'PNDMScheduler', read: reader(readPndmSettings, samplePndm) },
  euler: { className: 'EulerDiscreteScheduler', read: reader(readEulerSettings, sampleEuler) },
  'euler-ancestral': {
    className: 'EulerAncestralDiscreteScheduler',
    read: reader(readEulerAncestralSettings, sampleEulerAncestral),
  },
  dpm: {
    className: 'DPMSolverMultistepScheduler',
    read: reader(readDpmSolverSettings, sampleDpmSolverMultistep),
  },
  ddpm: { className: 'DDPMScheduler', read: reader(readDdpmSettings, sampleDdpm) },
} as const satisfies Record<string, { className: string; read: SamplerReader }>;

type ShortName = keyof typeof samplers;

/** A sampler's name: short, or that of diffusers' class. */
export type SchedulerName = ShortName | (typeof samplers)[ShortName]['className'];

/** All names that a sampler can be asked for by, short ones first. */
export const schedulerNames: readonly SchedulerName[] = [
  ...(Object.keys(samplers) as ShortName[]),
  ...Object.values(samplers).map(({ className }) => className),
];

/** Samplers that know Karras sigmas. */
const withKarras: readonly string[] = [samplers.euler.className, samplers.dpm.className];

/** Classes that share this forward process but whose samplers are not here: such a model can be trained, and drawn from with another sampler. */
const OTHER_CLASSES = [
  'LMSDiscreteScheduler',
  'HeunDiscreteScheduler',
  'KDPM2DiscreteScheduler',
  'KDPM2AncestralDiscreteScheduler',
  'DPMSolverSinglestepScheduler',
  'DEISMultistepScheduler',
  'UniPCMultistepScheduler',
] as const;

/** Keys that only samplers look at, or that only count when `thresholding` is on. A sampler reads those that are its own when it is chosen. */
const SAMPLER_KEYS = [
  'algorithm_type',
  'clip_sample',
  'clip_sample_range',
  'disable_corrector',
  'dynamic_thresholding_ratio',
  'euler_at_final',
  'final_sigmas_type',
  'flow_shift',
  'interpolation_type',
  'lambda_min_clipped',
  'lower_order_final',
  'predict_x0',
  'sample_max_value',
  'set_alpha_to_one',
  'sigma_max',
  'sigma_min',
  'skip_prk_steps',
  'solver_order',
  'solver_p',
  'solver_type',
  'steps_offset',
  'time_shift_type',
  'timestep_spacing',
  'timestep_type',
  'use_beta_sigmas',
  'use_dynamic_shifting',
  'use_exponential_sigmas',
  'use_flow_sigmas',
  'use_karras_sigmas',
  'use_lu_lambdas',
];

const FIXED_VARIANCES = ['fixed_small', 'fixed_small_log', 'fixed_large', 'fixed_large_log'] as const;

/** Which sampler to take, where it is not the one that the model's file names. */
export interface SamplerChoice {
  readonly scheduler?: SchedulerName | undefined;
  /** Replaces the file's `use_karras_sigmas`. */
  readonly useKarrasSigmas?: boolean | undefined;
}

/** The forward process, and the samplers over it. */
export interface Scheduler {
  readonly schedule: NoiseSchedule;
  /**
   * A sampler with the file's settings; the file's own sampler by default. As with diffusers' `from_config`, keys that the file leaves out take the chosen class's defaults.
   *
   * @throws ModelError naming file, key, value and what is supported, for a setting of that sampler that is not supported, or a file whose own sampler is not.
   * @throws UsageError for a choice that makes no sense.
   */
  sampler(choice?: SamplerChoice): Sampler;
}

/**
 * Reads a diffusers `scheduler/scheduler_config.json`.
 *
 * @throws ModelError naming file, key and value for anything that is not supported.
 */
export function readScheduler(config: Config): Scheduler {
  const classNames = Object.values(samplers).map(({ className }) => className);
  const named = config.oneOf('_class_name', [...classNames, ...OTHER_CLASSES]);
  const steps = config.integer('num_train_timesteps', 1000, 2);
  const name = config.oneOf('beta_schedule', Object.keys(betaSchedules) as BetaSchedule[], 'linear');
  const start = config.number('beta_start', 0.0001);
  const end = config.number('beta_end', 0.02);
  const predictionType = config.oneOf('prediction_type', ['epsilon', 'v_prediction'], 'epsilon');
  const zeroTerminalSnr = config.boolean('rescale_betas_zero_snr', false);
  if (zeroTerminalSnr && predictionType === 'epsilon') {
    throw config.unsupported('rescale_betas_zero_snr', 'true only with "prediction_type": "v_prediction"');
  }
  config.must('thresholding', false, false);
  if (config.has('variance_type')) config.oneOf('variance_type', FIXED_VARIANCES);
  else config.ignore('variance_type');

  const betas = config.has('trained_betas')
    ? Float32Array.from(config.numbers('trained_betas', { length: steps }))
    : betaSchedules[name](start, end, steps);
  if (betas.some((beta) => !(beta > 0 && beta < 1))) {
    throw config.unsupported('beta_end', 'betas above 0 and below 1');
  }
  config.ignore('trained_betas', ...SAMPLER_KEYS).finish();
  const schedule = new NoiseSchedule(
    zeroTerminalSnr ? rescaleToZeroTerminalSnr(betas) : betas,
    predictionType,
  );
  return {
    schedule,
    sampler({ scheduler = named as SchedulerName, useKarrasSigmas } = {}) {
      const found = Object.entries(samplers).find(
        ([short, { className }]) => scheduler === short || scheduler === className,
      )?.[1];
      if (!found) {
        const known = schedulerNames.slice(0, Object.keys(samplers).length).join(', ');
        if (scheduler !== named) {
          throw new UsageError(`--scheduler ${scheduler}: expected one of ${schedulerNames.join(', ')}.`);
        }
        throw config.unsupported(
          '_class_name',
          `${classNames.map((n) => JSON.stringify(n)).join(', ')}. To draw with another sampler than the model's own, give --scheduler: ${known}`,
        );
      }
      if (useKarrasSigmas === undefined) return found.read(config, schedule);
      if (!withKarras.includes(found.className)) {
        throw new UsageError(
          `--use-karras-sigmas: the sampler ${found.className} knows no such sigmas; ${withKarras.join(' and ')} do.`,
        );
      }
      return found.read(config.with({ use_karras_sigmas: useKarrasSigmas }), schedule);
    },
  };
}
