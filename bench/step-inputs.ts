import { Critic } from '../src/algorithms/critic.js';
import { initialParameters } from '../src/nn/initialize.js';
import type { StableDiffusion } from '../src/pretrained/stable-diffusion.js';
import type { LoraSettings } from '../src/pretrained/trainable.js';
import { Random } from '../src/tensor/random.js';
import { full, int64, type Tensor } from '../src/tensor/tensor.js';

export type Method = 'dpg' | 'dreambooth';

/** What is timed: a batch of subject and class rows, and the shape of the low-rank update. */
export interface Workload {
  readonly method: Method;
  readonly instances: number;
  readonly priors: number;
  readonly resolution: number;
  readonly lora: LoraSettings;
}

/** Small, so that a model with random weights stays finite: the time does not depend on them. */
export const learningRates = { policy: 1e-5, critic: 1e-6 } as const;

/** The tensors that both sides start from, so that their first losses can be compared: a batch, the low-rank factors and the critic. */
export interface StepInputs {
  /** What is fed at a step, by input name. */
  readonly batch: ReadonlyMap<string, Tensor>;
  readonly factors: ReadonlyMap<string, Tensor<'float32'>>;
  readonly critic: ReadonlyMap<string, Tensor>;
}

const SEED = 23;

export function stepInputs(model: StableDiffusion, workload: Workload): StepInputs {
  const random = new Random(SEED, 'bench');
  const rows = workload.instances + workload.priors;
  const latents = [rows, ...model.latentShape(workload.resolution)];
  const { scheduler, promptLength, unetConfig } = model;
  const timesteps = Array.from({ length: rows }, (_, i) =>
    Math.floor(((i + 0.5) * scheduler.schedule.steps) / rows),
  );
  const specs = model.variables({ lora: workload.lora });
  const factors = initialParameters(specs, random.derive('lora'));
  // The second factors start at zero in a run; here they are small, so that every gradient is at work from the first step.
  for (const [name, t] of factors) {
    if (name.endsWith('lora_B.weight')) t.data.set(random.derive(name).uniforms(t.shape, -0.02, 0.02).data);
  }
  // Scaled, as a denoiser takes them, the latents have variance 1 whatever the autoencoder's weights are.
  const { scalingFactor } = model.vaeConfig;
  const mean = random.derive('mean').normals(latents);
  mean.data.forEach((v, i) => {
    mean.data[i] = v / scalingFactor;
  });
  const logvar = -6 - 2 * Math.log(scalingFactor);
  return {
    batch: new Map<string, Tensor>([
      ['latents.mean', mean],
      ['latents.logvar', full(latents, logvar)],
      ['latents.noise', random.derive('posterior').normals(latents)],
      ['noise', random.derive('noise').normals(latents)],
      ['timesteps', int64([rows], timesteps)],
      ['condition', random.derive('text').normals([rows, promptLength, unetConfig.crossAttentionDim])],
    ]),
    factors,
    critic: Critic.initial(latents, random.derive('critic')),
  };
}
