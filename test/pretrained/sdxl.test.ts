import assert from 'node:assert/strict';
import { cp, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { after, before, suite, type TestContext, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { createNodeEngine } from '../../src/engine/node.js';
import { ModelError } from '../../src/errors.js';
import { clipTextProjection, readClipTextProjectionConfig } from '../../src/models/clip-text.js';
import { Scope } from '../../src/nn/parameters.js';
import { Graph } from '../../src/onnx/graph.js';
import { sgd } from '../../src/optim/sgd.js';
import { openModelFolder } from '../../src/pretrained/model-folder.js';
import type { TextEmbedding } from '../../src/pretrained/pipeline-kind.js';
import { StableDiffusion } from '../../src/pretrained/stable-diffusion.js';
import { TextToImage } from '../../src/pretrained/text-to-image.js';
import type { LoraSettings } from '../../src/pretrained/trainable.js';
import { openWeights, weightSource } from '../../src/pretrained/weights.js';
import { concatRows } from '../../src/tensor/rows.js';
import type { Tensor } from '../../src/tensor/tensor.js';
import { LossScaler } from '../../src/training/loss-scaler.js';
import {
  buildStep,
  criticOptimizer,
  type ObjectiveSettings,
} from '../../src/training/personalisation-step.js';
import { goldenJson, goldenPath, goldenTensors, relativeError } from '../goldens.js';
import { temporaryFolder } from '../temporary-folder.js';

interface Case {
  readonly name: string;
  readonly method: 'dreambooth' | 'dpg';
  readonly textEncoderLora: boolean;
  readonly loss: number;
}

/** What scripts/goldens/sdxl.py was given. */
interface Facts {
  readonly prompt: string;
  readonly negativePrompt: string;
  readonly seed: number;
  readonly steps: number;
  readonly guidance: number;
  readonly rank: number;
  readonly alpha: number;
  readonly priorWeight: number;
  readonly gamma: number;
  readonly cases: readonly Case[];
}

const facts = goldenJson<Facts>('models/sdxl-tiny.json');
const golden = goldenTensors('models/sdxl-tiny.safetensors');
const path = fileURLToPath(goldenPath('models/sdxl-tiny'));

const given = (name: string): Tensor => {
  const found = golden.get(name);
  assert.ok(found, name);
  return found;
};

function assertClose(actual: Tensor | undefined, name: string, tolerance = 1e-4): void {
  assert.ok(actual, name);
  const error = relativeError(actual, given(name));
  assert.ok(error < tolerance, `${name}: relative error ${error}`);
}

/** |a - b| / |b| in the Euclidean norm. */
function relativeL2(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let [difference, norm] = [0, 0];
  for (let i = 0; i < b.length; i++) {
    difference += (a[i]! - b[i]!) ** 2;
    norm += b[i]! ** 2;
  }
  return Math.sqrt(difference / norm);
}

suite('SDXL against diffusers', () => {
  const engine = createNodeEngine({ threads: 1 });
  let model: StableDiffusion;
  before(async () => {
    model = await StableDiffusion.open(path);
  });
  after(() => engine.close());

  async function run(graph: Graph, feeds: Record<string, Tensor>): Promise<Record<string, Tensor>> {
    const program = await engine.compile(graph);
    const results = await program.run(feeds);
    await program.release();
    return results;
  }

  async function embed(tokens: Record<string, Tensor>, rows: number): Promise<TextEmbedding<Tensor>> {
    const graph = new Graph('text');
    const { result } = model.textEncoder(graph, rows);
    for (const [name, value] of Object.entries(result)) graph.output(name, value);
    return (await run(graph, tokens)) as unknown as TextEmbedding<Tensor>;
  }

  test('both text encoders: penultimate states side by side, projected end token of the second', async () => {
    const tokens = { tokens: given('text.tokens'), tokens_2: given('text.tokens_2') };
    const { condition, pooled } = await embed(tokens, 2);
    assertClose(condition, 'text.condition');
    assertClose(pooled, 'text.pooled');
  });

  test('an end token that the configuration names counts where it comes first', async () => {
    const { text_encoder_2: component } = (await openModelFolder(path)).components;
    const tokens = given('text.repeated');
    const graph = new Graph('text');
    const config = { ...readClipTextProjectionConfig(component!.config), endToken: 77 };
    const scope = new Scope(weightSource(graph, await openWeights(component!)));
    const { projected } = clipTextProjection(scope, config, graph.input('tokens', 'int64', tokens.shape));
    graph.output('projected', projected);
    assertClose((await run(graph, { tokens })).projected, 'text.pooled_at_first');
  });

  for (const size of ['trained', 'odd']) {
    test(`denoiser at its ${size} size, with sizes and crop`, async () => {
      const [sample, timestep] = [given(`unet.${size}.sample`), given(`unet.${size}.timestep`)];
      const graph = new Graph('denoiser');
      const { result } = model.denoiser(graph, {
        sample: graph.input('sample', 'float32', sample.shape),
        timestep: graph.input('timestep', 'int64', [2]),
        condition: model.condition(graph, 2),
      });
      graph.output('prediction', result);
      const { prediction } = await run(graph, {
        sample,
        timestep,
        condition: given('text.condition'),
        pooled: given('text.pooled'),
        time_ids: given('unet.time_ids'),
      });
      assertClose(prediction, `unet.${size}.prediction`);
    });
  }

  test('autoencoder', async () => {
    const graph = new Graph('autoencoder');
    const { mean, logVariance } = model.encoder(graph, graph.input('pixels', 'float32', [2, 3, 16, 16]));
    graph.output('mean', mean);
    graph.output('logVariance', logVariance);
    graph.output('decoded', model.decoder(graph, graph.input('latents', 'float32', [2, 4, 8, 8])));
    const results = await run(graph, { pixels: given('vae.pixels'), latents: given('vae.latents') });
    assertClose(results.mean, 'vae.mean');
    assertClose(results.logVariance, 'vae.log_variance');
    assertClose(results.decoded, 'vae.decoded');
    assert.equal(model.vaeConfig.scalingFactor, 0.13025);
  });

  // Guidance leads away from zeros where no negative prompt is given, and from the empty prompt where an empty one is.
  const negatives = { plain: undefined, empty: '', negative: facts.negativePrompt };
  for (const [name, negative] of Object.entries(negatives)) {
    test(`the picture of a prompt and a seed is that of the pipeline: ${name}`, async () => {
      const drawer = await TextToImage.create(model, engine, { batchSize: 1 });
      const wanted = await drawer.embed(facts.prompt);
      const unwanted = await drawer.embedUnwanted(negative);
      const condition = concatRows([unwanted.condition, wanted.condition]);
      assertClose(condition, `picture.${name}.condition`);
      assertClose(concatRows([unwanted.pooled!, wanted.pooled!]), `picture.${name}.pooled`);
      const [drawn] = await drawer.draw([{ prompt: facts.prompt, seed: facts.seed }], {
        steps: facts.steps,
        guidanceScale: facts.guidance,
        ...(negative === undefined ? {} : { negativePrompt: negative }),
      });
      await drawer.release();
      const expected = given(`picture.${name}.pixels`);
      assert.deepEqual([drawn!.height, drawn!.width, 3], expected.shape);
      const squares = (expected.data as Uint8Array).reduce(
        (sum, v, i) => sum + (v - drawn!.pixels[i]!) ** 2,
        0,
      );
      const psnr = 10 * Math.log10((255 ** 2 * drawn!.pixels.length) / squares);
      assert.ok(psnr >= 50, `PSNR ${psnr}`);
    });
  }

  test('noise schedule, to the bit', () => {
    assert.deepEqual(model.scheduler.schedule.alphasCumprod, given('alphas_cumprod').data);
  });

  for (const c of facts.cases) {
    for (const gradientCheckpointing of [false, true]) {
      const title = `${c.name}${gradientCheckpointing ? ', recomputed' : ''}`;
      test(`loss and LoRA gradients of a training step: ${title}`, () =>
        checkStep(model, c, gradientCheckpointing, { loss: 1e-5, gradient: 1e-4 }));
      test(`the same in half precision: ${title}`, async () => {
        const half = await StableDiffusion.open(path, { computeType: 'float16' });
        await checkStep(half, c, gradientCheckpointing, { loss: 1e-2, gradient: 1e-2 });
      });
    }
  }

  /** A step of plain descent at rate 1 moves each factor by its gradient. */
  async function checkStep(
    model: StableDiffusion,
    c: Case,
    gradientCheckpointing: boolean,
    tolerance: { readonly loss: number; readonly gradient: number },
  ): Promise<void> {
    const lora: LoraSettings = { rank: facts.rank, alpha: facts.alpha, textEncoder: c.textEncoderLora };
    const optimizer = sgd();
    const objective: ObjectiveSettings =
      c.method === 'dpg'
        ? { method: 'dpg look-forward', gamma: facts.gamma, criticLearningRate: 0 }
        : { method: 'dreambooth' };
    const { micro } = buildStep(model, {
      objective,
      priorLossWeight: facts.priorWeight,
      trainable: { lora },
      instances: 2,
      priors: 2,
      resolution: model.resolution,
      gradientAccumulationSteps: 1,
      gradientCheckpointing,
      maxGradNorm: 1e9,
      ema: false,
      optimizer,
    });
    const factors = model
      .variables({ lora })
      .map(({ input }) => input)
      .sort();
    const starts = [...golden.keys()]
      .filter((key) => key.startsWith(c.textEncoderLora ? 'train.start.' : 'train.start.unet.'))
      .map((key) => key.slice('train.start.'.length));
    assert.deepEqual(factors, starts.sort());
    const start = new Map(factors.map((name) => [name, given(`train.start.${name}`)]));
    const critic = [...golden].filter(([key]) => key.startsWith('train.critic.'));
    const state = await engine.state(
      new Map([...start, ...critic.map(([key, t]) => [key.slice('train.'.length), t] as const)]),
    );
    const program = await engine.compile(micro);
    const { loss } = await program.run(
      {
        'latents.mean': given('train.mean'),
        'latents.logvar': given('train.logvar'),
        'latents.noise': given('train.drawn'),
        noise: given('train.noise'),
        timesteps: given('train.timesteps'),
        time_ids: given('train.time_ids'),
        ...(c.textEncoderLora
          ? { tokens: given('train.tokens'), tokens_2: given('train.tokens_2') }
          : { condition: given('train.condition'), pooled: given('train.pooled') }),
        ...optimizer.feeds(1, 1),
        ...LossScaler.start().feeds(),
        ...(c.method === 'dpg' ? criticOptimizer.feeds(1, 0) : {}),
      },
      state,
    );
    const found = Number(loss!.data[0]);
    assert.ok(
      Math.abs(found - c.loss) / Math.abs(c.loss) < tolerance.loss,
      `loss ${found}, expected ${c.loss}`,
    );
    const end = await state.read(factors);
    const moved = factors.flatMap((name) => {
      const after = end.get(name)!.data as Float32Array;
      return [...(start.get(name)!.data as Float32Array)].map((before, i) => before - after[i]!);
    });
    const gradient = given(`${c.name}.gradient`).data as Float32Array;
    assert.equal(moved.length, gradient.length);
    const error = relativeL2(moved, gradient);
    assert.ok(error < tolerance.gradient, `relative L2 error of the gradient ${error}`);
    await state.release();
    await program.release();
  }

  test('prompts are tokenized twice, with the padding of each tokenizer', () => {
    const { tokens } = model.tokenize('ab');
    const ids = (name: string) => [...(tokens[name]!.data as BigInt64Array)].map(Number);
    assert.deepEqual(Object.keys(tokens), ['tokens', 'tokens_2']);
    assert.deepEqual(ids('tokens').slice(0, 3), ids('tokens_2').slice(0, 3));
    assert.equal(new Set(ids('tokens').slice(4)).size, 1);
    assert.deepEqual(ids('tokens').at(-1), 513);
    assert.deepEqual(ids('tokens_2').at(-1), 0);
  });
});

/** A copy of the folder with some settings of one of its files changed; the model cannot be opened. */
async function broken(t: TestContext, file: string, settings: Record<string, unknown>): Promise<string> {
  const folder = join(await temporaryFolder(t), 'model');
  await cp(path, folder, { recursive: true });
  const at = join(folder, file);
  await writeFile(at, JSON.stringify({ ...JSON.parse(await readFile(at, 'utf8')), ...settings }));
  return folder;
}

const refused: readonly { file: string; settings: Record<string, unknown>; message: RegExp }[] = [
  {
    file: 'unet/config.json',
    settings: {
      addition_embed_type: null,
      addition_time_embed_dim: null,
      projection_class_embeddings_input_dim: null,
    },
    message:
      /unet.config\.json: .*"addition_embed_type" is null.*supported: "text_time" in a StableDiffusionXLPipeline/,
  },
  {
    file: 'unet/config.json',
    settings: { projection_class_embeddings_input_dim: 64 },
    message: /"projection_class_embeddings_input_dim" is 64.*supported: 56,/,
  },
  {
    file: 'unet/config.json',
    settings: { addition_time_embed_dim: null },
    message: /"addition_time_embed_dim" is null.*supported: a whole number/,
  },
  {
    file: 'unet/config.json',
    settings: { transformer_layers_per_block: [[1], [1], [2]] },
    message: /"transformer_layers_per_block" is \[\[1\],\[1\],\[2\]\].*supported/,
  },
  {
    file: 'unet/config.json',
    settings: { cross_attention_dim: 48 },
    message: /the text encoders give 16 \+ 24 channels .*takes 48/,
  },
  {
    file: 'text_encoder_2/config.json',
    settings: { architectures: ['CLIPTextModel'] },
    message: /text_encoder_2.config\.json: .*"architectures".*supported: \["CLIPTextModelWithProjection"\]/,
  },
  {
    file: 'text_encoder_2/config.json',
    settings: { projection_dim: 32 },
    message:
      /text_projection\.weight" is \[20, 24\]; expected \[32, 24\]|"projection_class_embeddings_input_dim"/,
  },
  {
    file: 'tokenizer_2/tokenizer_config.json',
    settings: { model_max_length: 60 },
    message: /the tokenizers take 77 and 60 tokens/,
  },
  {
    file: 'model_index.json',
    settings: { text_encoder_2: [null, null] },
    message: /model_index\.json: .*"text_encoder_2".*supported: a list of library and class/,
  },
  {
    file: 'model_index.json',
    settings: { _class_name: 'StableDiffusionXLImg2ImgPipeline' },
    message: /"_class_name" is "StableDiffusionXLImg2ImgPipeline".*supported: .*"StableDiffusionXLPipeline"/,
  },
  {
    file: 'model_index.json',
    settings: { _class_name: 'StableDiffusionPipeline' },
    message: /give.* 16 channels|"addition_embed_type" is "text_time".*supported: null/,
  },
  {
    file: 'vae/config.json',
    settings: { latents_mean: [0.1, 0.2, 0.3, 0.4] },
    message: /vae.config\.json: .*"latents_mean".*supported: null/,
  },
];

for (const { file, settings, message } of refused) {
  test(`refused: ${file} with ${JSON.stringify(settings)}`, async (t) => {
    const folder = await broken(t, file, settings);
    await assert.rejects(StableDiffusion.open(folder), (error) => {
      assert.ok(error instanceof ModelError, String(error));
      assert.match(error.message, message);
      return true;
    });
  });
}
