import type { Config } from '../formats/json-config.js';
import type { DdimSettings } from './ddim.js';
import {
  type BetaSchedule,
  betaSchedules,
  NoiseSchedule,
  rescaleToZeroTerminalSnr,
} from './noise-schedule.js';

/** Schedulers that share this forward process; they differ in how they sample, which the caller chooses. */
const SCHEDULERS = [
  'DDIMScheduler',
  'DDPMScheduler',
  'PNDMScheduler',
  'LMSDiscreteScheduler',
  'EulerDiscreteScheduler',
  'EulerAncestralDiscreteScheduler',
  'HeunDiscreteScheduler',
  'KDPM2DiscreteScheduler',
  'KDPM2AncestralDiscreteScheduler',
  'DPMSolverMultistepScheduler',
  'DPMSolverSinglestepScheduler',
  'DEISMultistepScheduler',
  'UniPCMultistepScheduler',
] as const;

/** Schedulers whose own default is to clip the predicted clean sample. The others know no such setting. */
const CLIPPING = ['DDIMScheduler', 'DDPMScheduler'];

/** Keys that only samplers other than DDIM look at, or that only count when `thresholding` is on. */
const OTHER_SAMPLERS = [
  'algorithm_type',
  'disable_corrector',
  'dynamic_thresholding_ratio',
  'euler_at_final',
  'final_sigmas_type',
  'interpolation_type',
  'lambda_min_clipped',
  'lower_order_final',
  'predict_x0',
  'sample_max_value',
  'sigma_max',
  'sigma_min',
  'skip_prk_steps',
  'solver_order',
  'solver_p',
  'solver_type',
  'timestep_type',
  'use_beta_sigmas',
  'use_exponential_sigmas',
  'use_karras_sigmas',
  'use_lu_lambdas',
];

const FIXED_VARIANCES = ['fixed_small', 'fixed_small_log', 'fixed_large', 'fixed_large_log'] as const;

/** The forward process, and what a DDIM sampler over it needs to know. */
export interface Scheduler {
  readonly schedule: NoiseSchedule;
  readonly ddim: DdimSettings;
}

/**
 * Reads a diffusers `scheduler/scheduler_config.json`. Absent keys take the defaults of the scheduler class that the file names.
 *
 * @throws ModelError naming file, key and value for anything that is not supported.
 */
export function readScheduler(config: Config): Scheduler {
  const className = config.oneOf('_class_name', SCHEDULERS);
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
  const scheduler: Scheduler = {
    schedule: new NoiseSchedule(zeroTerminalSnr ? rescaleToZeroTerminalSnr(betas) : betas, predictionType),
    ddim: {
      timestepSpacing: config.oneOf('timestep_spacing', ['leading', 'trailing', 'linspace'], 'leading'),
      stepsOffset: config.integer('steps_offset', 0, 0),
      setAlphaToOne: config.boolean('set_alpha_to_one', className !== 'PNDMScheduler'),
      ...readClipping(config, className),
    },
  };
  config.ignore('trained_betas', ...OTHER_SAMPLERS).finish();
  return scheduler;
}

function readClipping(config: Config, className: string): { clipRange?: number } {
  const range = config.number('clip_sample_range', 1);
  return config.boolean('clip_sample', CLIPPING.includes(className)) ? { clipRange: range } : {};
}
