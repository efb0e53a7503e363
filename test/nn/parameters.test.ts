import assert from 'node:assert/strict';
import { after, describe, test } from 'node:test';
import { createNodeEngine } from '../../src/engine/node.js';
import { parseConfig } from '../../src/formats/json-config.js';
import { decodeLatents, encodeLatents, readAutoencoderKLConfig } from '../../src/models/autoencoder-kl.js';
import { clipText, readClipTextConfig } from '../../src/models/clip-text.js';
import { resnetBlock } from '../../src/models/resnet-block.js';
import { readUNet2DConditionConfig, unet2DCondition } from '../../src/models/unet-2d-condition.js';
import { initialParameters, residualStart } from '../../src/nn/initialize.js';
import { linear } from '../../src/nn/linear.js';
import { LoraParameters } from '../../src/nn/lora.js';
import { InputParameters, type ParameterSource, type ParameterSpec, Scope } from '../../src/nn/parameters.js';
import { Graph } from '../../src/onnx/graph.js';
import { Random } from '../../src/tensor/random.js';
import { float32, type Tensor } from '../../src/tensor/tensor.js';
import { goldenJson, relativeError } from '../goldens.js';

const engine = createNodeEngine({ threads: 1 });
after(() => engine.close());

interface Statistics {
  readonly shape: number[];
  readonly mean: number;
  readonly std: number;
}

type Part = 'unet' | 'vae' | 'text_encoder';

const fresh =
  goldenJson<Record<Part, { config: object; parameters: Record<string, Statistics> }>>('models/initial.json');

const configOf = (part: Part) => parseConfig(JSON.stringify(fresh[part].config), `${part}/config.json`);

const builders: Record<Part, (graph: Graph, source: ParameterSource) => void> = {
  unet: (graph, source) => {
    unet2DCondition(new Scope(source), readUNet2DConditionConfig(configOf('unet')), {
      sample: graph.input('sample', 'float32', [1, 4, 8, 8]),
      timestep: graph.input('timestep', 'int64', [1]),
      encoderHiddenStates: graph.input('context', 'float32', [1, 5, 48]),
    });
  },
  vae: (graph, source) => {
    const config = readAutoencoderKLConfig(configOf('vae'));
    encodeLatents(new Scope(source), config, graph.input('pixels', 'float32', [1, 3, 8, 8]));
    decodeLatents(new Scope(source), config, graph.input('latents', 'float32', [1, 4, 4, 4]));
  },
  text_encoder: (graph, source) => {
    clipText(
      new Scope(source),
      readClipTextConfig(configOf('text_encoder')),
      graph.input('tokens', 'int64', [1, 7]),
    );
  },
};

function declared(part: Part): readonly ParameterSpec[] {
  const graph = new Graph();
  const source = new InputParameters(graph, `${part}.`);
  builders[part](graph, source);
  return source.specs;
}

for (const part of ['unet', 'vae', 'text_encoder'] as const) {
  describe(`a fresh ${part}`, () => {
    const specs = declared(part);
    const expected = fresh[part].parameters;
    // The library at hand leaves this part of the published names out.
    const nameOf = (path: string) => path.replace(/^text_model\./, '');

    test('has the parameters of the original', () => {
      const names = (entries: Iterable<[string, readonly number[]]>) =>
        [...entries].map(([name, shape]) => `${name} [${shape}]`).sort();
      assert.deepEqual(
        names(specs.map((s) => [nameOf(s.path), s.shape])),
        names(Object.entries(expected).map(([name, s]) => [name, s.shape])),
      );
      for (const { input, path } of specs) assert.equal(input, `${part}.${path}`);
    });

    test('starts as the original does', () => {
      const values = initialParameters(specs, new Random(11));
      for (const { input, path } of specs) {
        const { data } = values.get(input)!;
        const { mean, std } = expected[nameOf(path)]!;
        const ourMean = data.reduce((s, x) => s + x, 0) / data.length;
        const ourStd = Math.sqrt(data.reduce((s, x) => s + (x - ourMean) ** 2, 0) / data.length);
        if (std === 0) {
          assert.equal(ourStd, 0, path);
          assert.equal(ourMean, mean, path);
        } else {
          // Two samples' standard deviations; five deviations of their difference, widest for the normal distribution.
          const tolerance = 5 / Math.sqrt(Math.max(data.length, 2));
          assert.ok(Math.abs(ourStd / std - 1) < tolerance, `${path}: ${ourStd} instead of ${std}`);
        }
      }
    });
  });
}

test('fresh parameters do not depend on the order of asking', () => {
  const specs = declared('vae');
  const forwards = initialParameters(specs, new Random(3));
  const backwards = initialParameters([...specs].reverse(), new Random(3));
  for (const [name, value] of forwards) assert.deepEqual(backwards.get(name), value);
});

test('from a residual start a block is its straight path, which keeps the variance', async () => {
  const graph = new Graph();
  const source = new InputParameters(graph);
  const [batch, channels, out, side] = [4, 8, 16, 16];
  const x = graph.input('x', 'float32', [batch, channels, side, side]);
  const options = { out, groups: 4, eps: 1e-5 };
  const first = resnetBlock(new Scope(source, 'first'), x, options);
  const second = resnetBlock(new Scope(source, 'second'), first, options);
  graph.output('first', first);
  graph.output('second', second);
  const start = initialParameters(source.specs.map(residualStart), new Random(8));
  const state = await engine.state(start);
  const program = await engine.compile(graph);
  const run = await program.run({ x: new Random(9).normals(x.shape) }, state);
  await program.release();
  await state.release();

  const [before, after] = [run.first!.data as Float32Array, run.second!.data as Float32Array];
  const bias = start.get('second.conv2.bias')!.data;
  const plane = side * side;
  const straight = before.map((v, i) => v + bias[Math.floor(i / plane) % out]!);
  const worst = after.reduce((w, v, i) => Math.max(w, Math.abs(v - straight[i]!)), 0);
  assert.ok(worst < 1e-5, `the second block is off its straight path by ${worst}`);
  const variance = before.reduce((s, v) => s + v * v, 0) / before.length;
  assert.ok(variance > 0.6 && variance < 1.6, `the variance of standard normal input became ${variance}`);
});

test('a parameter that is asked for twice is one input', () => {
  const graph = new Graph();
  const source = new InputParameters(graph, 'm.');
  const scope = new Scope(source).at('block', 0);
  const first = scope.parameter('weight', [2], { kind: 'ones' });
  assert.equal(scope.parameter('weight', [2], { kind: 'ones' }), first);
  assert.deepEqual(
    graph.inputs.map((v) => v.name),
    ['m.block.0.weight'],
  );
  assert.throws(() => scope.parameter('weight', [3], { kind: 'ones' }), /block\.0\.weight is \[2\].*\[3\]/);
});

describe('low-rank updates', () => {
  test('give what the merged weight gives', async () => {
    const random = new Random(4);
    const [inFeatures, outFeatures, rank, alpha] = [6, 5, 2, 3];
    const x = random.normals([2, 3, inFeatures]);
    const weight = random.normals([outFeatures, inFeatures]);
    const down = random.normals([rank, inFeatures]);
    const up = random.normals([outFeatures, rank]);
    const merged = float32(
      weight.shape,
      weight.data.map((w, n) => {
        const [o, i] = [Math.floor(n / inFeatures), n % inFeatures];
        let update = 0;
        for (let r = 0; r < rank; r++) update += up.data[o * rank + r]! * down.data[r * inFeatures + i]!;
        return w + (alpha / rank) * update;
      }),
    );
    const graph = new Graph();
    const input = graph.input('x', 'float32', x.shape);
    const base = new InputParameters(graph, 'base.');
    const factors = new InputParameters(graph, 'unet.');
    const lora = new LoraParameters(base, factors, { rank, alpha, targets: (path) => path === 'to_q' });
    const options = { in: inFeatures, out: outFeatures, bias: false };
    graph.output('adapted', linear(new Scope(lora, 'to_q'), input, options));
    graph.output('untargeted', linear(new Scope(lora, 'to_k'), input, options));
    graph.output('merged', linear(new Scope(new InputParameters(graph, 'merged.'), 'to_q'), input, options));
    assert.deepEqual(
      factors.specs.map((s) => [s.input, s.shape, s.init.kind]),
      [
        ['unet.to_q.lora_A.weight', [rank, inFeatures], 'uniform'],
        ['unet.to_q.lora_B.weight', [outFeatures, rank], 'zeros'],
      ],
    );
    const program = await engine.compile(graph);
    const feeds: Record<string, Tensor> = {
      x,
      'base.to_q.weight': weight,
      'base.to_k.weight': merged,
      'merged.to_q.weight': merged,
      'unet.to_q.lora_A.weight': down,
      'unet.to_q.lora_B.weight': up,
    };
    const results = await program.run(feeds);
    assert.deepEqual(results.adapted!.shape, [2, 3, outFeatures]);
    assert.ok(relativeError(results.adapted!, results.merged!) < 1e-6);
    assert.ok(relativeError(results.untargeted!, results.merged!) < 1e-6);
  });

  test('on a text encoder keep the published prefix, whatever the file calls its tensors', () => {
    for (const stored of ['', 'text_model.']) {
      const graph = new Graph();
      const asked = new InputParameters(graph);
      const base: ParameterSource = {
        has: (path) => path === `${stored}embeddings.token_embedding.weight`,
        parameter: (path, shape, init) => asked.parameter(path, shape, init),
      };
      const factors = new InputParameters(graph);
      const lora = new LoraParameters(base, factors, {
        rank: 1,
        alpha: 1,
        targets: (path) => path.endsWith('q_proj'),
      });
      builders.text_encoder(graph, lora);
      assert.ok(asked.values.has(`${stored}encoder.layers.1.mlp.fc1.weight`));
      assert.deepEqual([...factors.values.keys()].slice(0, 2), [
        'text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight',
        'text_model.encoder.layers.0.self_attn.q_proj.lora_B.weight',
      ]);
    }
  });
});
