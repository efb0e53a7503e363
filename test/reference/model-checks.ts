import { join } from 'node:path';
import type { Engine, NamedTensors, Program } from '../../src/engine/engine.js';
import { StableDiffusion, TextToImage } from '../../src/index.js';
import { Graph } from '../../src/onnx/graph.js';
import { adamw } from '../../src/optim/adamw.js';
import { batchRows } from '../../src/tensor/rows.js';
import { type Tensor, toFloat32 } from '../../src/tensor/tensor.js';
import { accumulatorState, buildStep } from '../../src/training/personalisation-step.js';
import { relativeError, withoutPrefix } from '../goldens.js';
import { peakSignalToNoise } from '../picture-error.js';
import type { Checks } from './checks.js';

/** What models.py draws with; the same here. */
const drawing = {
  prompt: 'a photo of sks backpack on the beach',
  seed: 11,
  steps: 10,
  guidanceScale: 7.5,
} as const;
const prompts = [drawing.prompt, 'a photo of backpack'];
const LORA = { rank: 4, alpha: 4 };

const OUTPUT_LIMIT = 1e-4;
const LOSS_LIMIT = 1e-5;
const GRADIENT_LIMIT = 1e-4;
const PICTURE_LIMIT = 50;

/** Which model is checked, and how its step is built. */
export interface ModelCase {
  readonly name: string;
  /** Its name in models.py. */
  readonly oracle: string;
  /** Recomputes in the backward pass, for which large weights stay in their files. */
  readonly gradientCheckpointing: boolean;
}

/** Compares each network of a model folder, its pictures and its training with what models.py wrote beside it. */
export async function checkModel(
  { name, gradientCheckpointing }: ModelCase,
  folder: string,
  expected: NamedTensors,
  engine: Engine,
  checks: Checks,
): Promise<void> {
  const model = await StableDiffusion.open(join(folder, 'model'));
  const of = (key: string): Tensor => {
    const found = expected.get(key);
    if (!found) throw new Error(`models.py wrote no ${key}`);
    return found;
  };
  const output = (what: string, found: Tensor | undefined, key: string): void =>
    checks.within(`${name}: ${what}`, found ? relativeError(found, of(key)) : Number.NaN, OUTPUT_LIMIT);

  const tokens = batchRows(prompts.map((prompt) => model.tokenize(prompt).tokens));
  const text = new Graph('text_encoder');
  const embedding = model.textEncoder(text, prompts.length).result;
  for (const [key, value] of Object.entries(embedding)) text.output(key, value);
  const embedded = await once(engine, text, tokens);
  for (const key of Object.keys(embedding)) output(`text encoder, ${key}`, embedded[key], `text.${key}`);
  // From here on with their embedding, so that each network is judged by itself.
  const conditions = Object.fromEntries(Object.keys(embedding).map((key) => [key, of(`text.${key}`)]));
  const sizes = expected.has('time_ids') ? { time_ids: of('time_ids') } : {};

  const denoise = new Graph('denoiser');
  const shape = of('unet.sample').shape;
  const [rows, , height, width] = shape as [number, number, number, number];
  const inputs = {
    sample: denoise.input('sample', 'float32', shape),
    timestep: denoise.input('timestep', 'int64', [rows]),
    condition: model.condition(denoise, rows),
  };
  denoise.output('prediction', model.denoiser(denoise, inputs).result);
  const { prediction } = await once(engine, denoise, {
    sample: of('unet.sample'),
    timestep: of('unet.timesteps'),
    ...conditions,
    ...sizes,
  });
  output('denoiser', prediction, 'unet.prediction');

  const vae = new Graph('autoencoder');
  const moments = model.encoder(vae, vae.input('pixels', 'float32', of('vae.pixels').shape));
  vae.output('mean', moments.mean);
  vae.output('logVariance', moments.logVariance);
  vae.output('decoded', model.decoder(vae, vae.input('latents', 'float32', of('vae.latents').shape)));
  const coded = await once(engine, vae, { pixels: of('vae.pixels'), latents: of('vae.latents') });
  output('autoencoder, mean of the latents', coded.mean, 'vae.mean');
  output('autoencoder, logarithm of their variance', coded.logVariance, 'vae.logvar');
  output('autoencoder, decoded picture', coded.decoded, 'vae.decoded');

  const resolution = height * model.downscale;
  const drawer = await TextToImage.create(model, engine, { resolution, batchSize: 1 });
  const [picture] = await drawer.draw([drawing], drawing);
  await drawer.release();
  const theirs = of('picture').data as Uint8Array;
  checks.decibels(
    `${name}: picture from seed ${drawing.seed}`,
    peakSignalToNoise(picture!.pixels, theirs),
    PICTURE_LIMIT,
  );

  for (const textEncoder of [false, true]) {
    const trained = textEncoder ? 'denoiser and text encoder' : 'denoiser';
    const named = (part: string): Map<string, Tensor> => withoutPrefix(expected, `train.${trained}.${part}.`);
    const lora = { ...LORA, textEncoder };
    const optimizer = adamw();
    // With two micro steps, the first one leaves half of its gradients in the state.
    const parts = 2;
    const { micro } = buildStep(model, {
      objective: { method: 'dreambooth' },
      priorLossWeight: 1,
      trainable: { lora },
      instances: 1,
      priors: 1,
      resolution: width * model.downscale,
      gradientAccumulationSteps: parts,
      gradientCheckpointing,
      maxGradNorm: 1,
      ema: false,
      optimizer,
    });
    const start = named('start');
    const specs = model.variables({ lora }).map(({ input }) => input);
    checks.all(
      `${name}: factors of the ${trained}`,
      specs.filter((key) => start.has(key)).length,
      Math.max(specs.length, start.size),
    );
    const sums = accumulatorState(
      [...start].map(([key, { shape }]) => ({ name: key, shape })),
      parts,
    );
    const state = await engine.state(new Map([...start, ...sums]));
    const program = await engine.compile(micro);
    const { loss } = await program.run(
      {
        'latents.mean': of('train.mean'),
        'latents.logvar': of('train.logvar'),
        'latents.noise': of('train.drawn'),
        noise: of('train.noise'),
        timesteps: of('train.timesteps'),
        ...(textEncoder ? tokens : conditions),
        ...sizes,
      },
      state,
    );
    await program.release();
    checks.within(
      `${name}: loss of the ${trained}`,
      relativeError1(loss, of(`train.${trained}.loss`)),
      LOSS_LIMIT,
    );
    const halves = await state.read([...sums.keys()]);
    await state.release();
    const found = [...start.keys()].map((key, i) => ({
      key,
      ours: toFloat32(halves.get([...sums.keys()][i]!)!).data.map((v) => v * parts),
    }));
    const gradients = named('gradient');
    for (const component of new Set(found.map(({ key }) => key.split('.')[0]!))) {
      const pairs = found
        .filter(({ key }) => key.startsWith(`${component}.`))
        .map(({ key, ours }) => ({ ours, theirs: toFloat32(gradients.get(key)!).data }));
      checks.within(
        `${name}: gradients of the ${trained}, those of ${component}`,
        relativeDistance(pairs),
        GRADIENT_LIMIT,
      );
    }
  }
}

/** Compiles a graph, runs it once and frees it: only one network's weights are in memory at a time. */
async function once(
  engine: Engine,
  graph: Graph,
  feeds: Readonly<Record<string, Tensor>>,
): Promise<Record<string, Tensor>> {
  const program: Program = await engine.compile(graph);
  try {
    return await program.run(feeds);
  } finally {
    await program.release();
  }
}

/** Of one number, whatever its shape. */
function relativeError1(a: Tensor | undefined, b: Tensor): number {
  return Math.abs(Number(a?.data[0]) - Number(b.data[0])) / Math.abs(Number(b.data[0]));
}

/** |a - b| / |b| in the Euclidean norm, over all pairs as one vector. */
function relativeDistance(pairs: readonly { ours: Float32Array; theirs: Float32Array }[]): number {
  let [difference, size] = [0, 0];
  for (const { ours, theirs } of pairs) {
    if (ours.length !== theirs.length) return Number.POSITIVE_INFINITY;
    for (let i = 0; i < theirs.length; i++) {
      difference += (ours[i]! - theirs[i]!) ** 2;
      size += theirs[i]! ** 2;
    }
  }
  return Math.sqrt(difference / size);
}
