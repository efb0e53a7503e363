import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { gradients } from '../../src/autodiff/gradient.js';
import { withGuidance } from '../../src/diffusion/guidance.js';
import { readScheduler } from '../../src/diffusion/scheduler-config.js';
import { createNodeEngine } from '../../src/engine/node.js';
import { decodeLatents, encodeLatents, readAutoencoderKLConfig } from '../../src/models/autoencoder-kl.js';
import { clipText, readClipTextConfig } from '../../src/models/clip-text.js';
import { readUNet2DConditionConfig, unet2DCondition } from '../../src/models/unet-2d-condition.js';
import { type ParameterSource, Scope } from '../../src/nn/parameters.js';
import { square } from '../../src/onnx/elementwise.js';
import { Graph, type Value } from '../../src/onnx/graph.js';
import { mean } from '../../src/onnx/reduction.js';
import { openModelFolder } from '../../src/pretrained/model-folder.js';
import { openWeights, weightSource } from '../../src/pretrained/weights.js';
import { int64, type Tensor } from '../../src/tensor/tensor.js';
import { goldenPath, goldenTensors, relativeError } from '../goldens.js';

const GRADIENT = 'unet.gradient.';
const engine = createNodeEngine({ threads: 2 });
after(() => engine.close());

/** Builds a component's graph over its checkpoint, runs it once, and checks that every tensor of the checkpoint was used. */
async function compute(
  model: string,
  component: 'unet' | 'vae' | 'text_encoder',
  feeds: Record<string, Tensor>,
  build: (scope: Scope, inputs: Record<string, Value>) => Record<string, Value>,
): Promise<Record<string, Tensor>> {
  const folder = await openModelFolder(fileURLToPath(goldenPath(`models/${model}`)));
  const graph = new Graph(component);
  const source = weightSource(graph, await openWeights(folder.components[component]));
  const inputs = Object.fromEntries(
    Object.entries(feeds).map(([name, t]) => [name, graph.input(name, t.dtype, t.shape)]),
  );
  for (const [name, value] of Object.entries(build(new Scope(source), inputs))) graph.output(name, value);
  assert.deepEqual(source.unused(), []);
  const program = await engine.compile(graph);
  const results = await program.run(feeds);
  await program.release();
  return results;
}

function assertClose(actual: Tensor | undefined, expected: Tensor | undefined, what: string): void {
  assert.ok(actual && expected, what);
  const error = relativeError(actual, expected);
  assert.ok(error < 1e-4, `${what}: relative error ${error}`);
}

for (const model of ['sd1-tiny', 'sd2-tiny-sharded', 'half-tiny']) {
  describe(model, async () => {
    const golden = goldenTensors(`models/${model}.safetensors`);
    const { components } = await openModelFolder(fileURLToPath(goldenPath(`models/${model}`)));
    const unetConfig = readUNet2DConditionConfig(components.unet.config);
    const vaeConfig = readAutoencoderKLConfig(components.vae.config);
    const textConfig = readClipTextConfig(components.text_encoder.config);
    const scheduler = readScheduler(components.scheduler.config);

    for (const kind of ['', 'short_']) {
      test(`${kind}text`, async () => {
        const tokens = golden.get(`text.${kind}tokens`)!;
        const { hidden } = await compute(model, 'text_encoder', { tokens }, (scope, inputs) => ({
          hidden: clipText(scope, textConfig, inputs.tokens!),
        }));
        assertClose(hidden, golden.get(`text.${kind}hidden`), 'last hidden state');
      });
    }

    for (const size of ['trained', 'odd']) {
      test(`UNet at its ${size} size`, async () => {
        const feeds = {
          sample: golden.get(`unet.${size}.sample`)!,
          timestep: golden.get(`unet.${size}.timestep`)!,
          encoderHiddenStates: golden.get('text.hidden')!,
        };
        const { prediction } = await compute(model, 'unet', feeds, (scope, inputs) => ({
          prediction: unet2DCondition(scope, unetConfig, {
            sample: inputs.sample!,
            timestep: inputs.timestep!,
            encoderHiddenStates: inputs.encoderHiddenStates!,
          }),
        }));
        assertClose(prediction, golden.get(`unet.${size}.prediction`), 'prediction');
      });
    }

    for (const gradientCheckpointing of [false, true]) {
      test(`UNet gradients${gradientCheckpointing ? ' with recomputed blocks' : ''}`, async () => {
        const trained = [...golden.keys()]
          .filter((key) => key.startsWith(GRADIENT))
          .map((key) => key.slice(GRADIENT.length));
        const feeds: Record<string, Tensor> = {
          sample: golden.get('unet.trained.sample')!,
          timestep: golden.get('unet.trained.timestep')!,
          encoder_hidden_states: golden.get('text.hidden')!,
        };
        const results = await compute(model, 'unet', feeds, (scope, inputs) => {
          const watched = new Map<string, Value>([['encoder_hidden_states', inputs.encoder_hidden_states!]]);
          const source: ParameterSource = {
            parameter(path, shape, init) {
              const value = scope.source.parameter(path, shape, init);
              if (trained.includes(path)) watched.set(path, value);
              return value;
            },
          };
          const prediction = unet2DCondition(
            new Scope(source),
            unetConfig,
            {
              sample: inputs.sample!,
              timestep: inputs.timestep!,
              encoderHiddenStates: inputs.encoder_hidden_states!,
            },
            { gradientCheckpointing },
          );
          const wanted = trained.map((name) => watched.get(name)!);
          const found = gradients(mean(square(prediction)), wanted);
          return Object.fromEntries(trained.map((name, i) => [name, found[i]!]));
        });
        assert.equal(trained.length, 9);
        for (const name of trained) assertClose(results[name], golden.get(GRADIENT + name), name);
      });
    }

    test('autoencoder', async () => {
      const feeds = { pixels: golden.get('vae.pixels')!, latents: golden.get('vae.latents')! };
      const results = await compute(model, 'vae', feeds, (scope, inputs) => ({
        ...encodeLatents(scope, vaeConfig, inputs.pixels!),
        decoded: decodeLatents(scope, vaeConfig, inputs.latents!),
      }));
      assertClose(results.mean, golden.get('vae.mean'), 'mean');
      assertClose(results.logVariance, golden.get('vae.log_variance'), 'log variance');
      assertClose(results.decoded, golden.get('vae.decoded'), 'decoded picture');
    });

    test('ten DDIM steps with guidance', async () => {
      const noise = golden.get('ddim.noise') as Tensor<'float32'>;
      const encoderHiddenStates = golden.get('text.hidden')!;
      const graph = new Graph('denoise');
      const source = weightSource(graph, await openWeights(components.unet));
      const prediction = unet2DCondition(new Scope(source), unetConfig, {
        sample: graph.input('sample', 'float32', [2, ...noise.shape.slice(1)]),
        timestep: graph.input('timestep', 'int64', [2]),
        encoderHiddenStates: graph.input('encoderHiddenStates', 'float32', encoderHiddenStates.shape),
      });
      graph.output('prediction', prediction);
      const program = await engine.compile(graph);
      const denoise = withGuidance(async (sample, t) => {
        const results = await program.run({ sample, timestep: int64([2], [t, t]), encoderHiddenStates });
        return results.prediction as Tensor<'float32'>;
      }, 7.5);
      let done = 0;
      const sample = await scheduler.sampler({ scheduler: 'ddim' })({
        steps: 10,
        denoise,
        noise,
        drawNoise: () => assert.fail('DDIM draws no noise'),
        onStep: (n) => {
          done = n;
        },
      });
      await program.release();
      assert.equal(done, 10);
      assertClose(sample, golden.get('ddim.sample'), 'sample');
    });

    test('noise schedule, to the bit', () => {
      assert.deepEqual(scheduler.schedule.alphasCumprod, golden.get('alphas_cumprod')!.data);
    });
  });
}
