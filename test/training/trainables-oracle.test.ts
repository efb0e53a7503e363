import assert from 'node:assert/strict';
import { mkdir, readdir, readFile } from 'node:fs/promises';
import path from 'node:path';
import { after, before, suite, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import type { Engine } from '../../src/engine/engine.js';
import { createNodeEngine } from '../../src/engine/node.js';
import { InputError } from '../../src/errors.js';
import { openSafetensors, readSafetensorsFile, readTensor } from '../../src/formats/safetensors-file.js';
import { Graph } from '../../src/onnx/graph.js';
import { adamw } from '../../src/optim/adamw.js';
import {
  customDiffusionFileName,
  openCustomDiffusionFile,
  writeCustomDiffusionFile,
} from '../../src/pretrained/custom-diffusion-file.js';
import type { NewWord } from '../../src/pretrained/new-words.js';
import { StableDiffusion } from '../../src/pretrained/stable-diffusion.js';
import { allWeights, crossAttentionKeysAndValues, type Trainable } from '../../src/pretrained/trainable.js';
import { writeTrainedFolder } from '../../src/pretrained/trained-folder.js';
import { readWeightTensor } from '../../src/pretrained/weight.js';
import { learnedEmbeds, readWordFiles, wordFile, writeWordFiles } from '../../src/pretrained/word-files.js';
import { float32, int64, type Tensor } from '../../src/tensor/tensor.js';
import {
  accumulatorState,
  buildStep,
  criticOptimizer,
  type StepSettings,
} from '../../src/training/personalisation-step.js';
import { PiecewiseUpdate } from '../../src/training/piecewise-update.js';
import { goldenJson, goldenPath, goldenTensors, relativeError } from '../goldens.js';
import { temporaryFolder } from '../temporary-folder.js';

interface Case {
  kind: 'full' | 'custom-diffusion' | 'textual-inversion';
  method: 'dreambooth' | 'dpg';
  words: NewWord[];
  prompts: string[];
  /** Of each prompt, as transformers' tokenizer and diffusers' loader give them. */
  ids: number[][];
  losses: number[];
}

const { tokens, ...cases } = goldenJson<Record<string, Case> & { tokens: never }>(
  'trainables.json',
) as unknown as Record<string, Case> & { tokens: Record<string, number[]> };
const golden = goldenTensors('trainables.safetensors');
const inputs = goldenTensors('training.safetensors');
const { timesteps } = goldenJson<{ worlds: Record<string, { timesteps: number[][] }> }>('training.json')
  .worlds.sd1!;
const folder = fileURLToPath(goldenPath('models/sd1-tiny'));
const [RATE, PRIOR, GAMMA] = [1e-3, 0.7, 0.9986];

const trainables: Readonly<Record<Case['kind'], Trainable>> = {
  full: allWeights(true),
  'custom-diffusion': crossAttentionKeysAndValues,
  'textual-inversion': {},
};

/** Golden tensors whose names begin with a prefix, without it; the rows of new words under our name. */
function named(prefix: string, model: StableDiffusion): Map<string, Tensor<'float32'>> {
  const rows = model.variables({})[0]?.input;
  const found = [...golden].filter(([key]) => key.startsWith(prefix));
  return new Map(
    found.map(([key, t]) => {
      const name = key.slice(prefix.length);
      return [name === 'rows' ? rows! : name, t as Tensor<'float32'>];
    }),
  );
}

function picked(t: Tensor, rows: readonly number[]): Tensor<'float32'> {
  const size = t.data.length / t.shape[0]!;
  const data = t.data as Float32Array;
  return float32(
    [rows.length, ...t.shape.slice(1)],
    rows.flatMap((r) => [...data.subarray(r * size, (r + 1) * size)]),
  );
}

/** Entry i of the first axis, which is dropped. */
const entry = (t: Tensor, i: number): Tensor<'float32'> => {
  const [, ...shape] = t.shape;
  return float32(shape, picked(t, [i]).data);
};

/** Adding the same to all keys of a query changes no softmax, so these have no gradient but rounding. */
const withoutGradient = (name: string): boolean => name.endsWith('.k_proj.bias');

suite('what is trained, against PyTorch and diffusers', () => {
  let engine: Engine;
  let base: StableDiffusion;
  before(async () => {
    engine = createNodeEngine({ threads: 1 });
    base = await StableDiffusion.open(folder);
  });
  after(() => engine.close());

  const settingsOf = (c: Case, parts: number): StepSettings => ({
    objective:
      c.method === 'dpg'
        ? { method: 'dpg look-forward', gamma: GAMMA, criticLearningRate: 0 }
        : { method: 'dreambooth' },
    priorLossWeight: PRIOR,
    trainable: trainables[c.kind],
    instances: 2,
    priors: 2,
    resolution: base.resolution,
    gradientAccumulationSteps: parts,
    gradientCheckpointing: false,
    maxGradNorm: 1,
    ema: false,
    optimizer: adamw(),
  });

  const batch = (c: Case, i: number): Record<string, Tensor> => {
    const pictures = [i % 3, (i + 1) % 3, 3 + (i % 2), 3 + ((i + 1) % 2)];
    const given = (name: string): Tensor => inputs.get(`sd1/${name}`)!;
    return {
      'latents.mean': picked(given('mean'), pictures),
      'latents.logvar': picked(given('logvar'), pictures),
      'latents.noise': entry(given('noise'), i + 1),
      noise: entry(given('noise'), i),
      timesteps: int64([4], timesteps[i]!),
      tokens: int64(
        [4, 77],
        [0, 0, 1, 1].flatMap((p) => c.ids[p]!),
      ),
      ...(c.method === 'dpg' ? criticOptimizer.feeds(i + 1, 0) : {}),
    };
  };

  const startOf = async (c: Case, model: StableDiffusion): Promise<Map<string, Tensor>> => {
    const start = new Map<string, Tensor>();
    for (const { input, stored } of model.variables(trainables[c.kind])) start.set(input, await stored!());
    return start;
  };

  for (const [name, c] of Object.entries(cases)) {
    const criticOf = (model: StableDiffusion): [string, Tensor][] =>
      [...named(`${name}/critic/`, model)].map(([key, t]) => [`critic.${key}`, t]);

    test(`gradients: ${name}`, async () => {
      const model = base.withWords(c.words);
      const start = await startOf(c, model);
      const parameters = [...start].map(([key, { shape }]) => ({ name: key, shape }));
      // Of two micro steps the first leaves half of its gradients in the state.
      const { micro } = buildStep(model, settingsOf(c, 2));
      const program = await engine.compile(micro);
      const state = await engine.state(
        new Map([...start, ...criticOf(model), ...accumulatorState(parameters, 2)]),
      );
      await program.run(batch(c, 0), state);
      const sums = await state.read();
      const expected = named(`${name}/gradient/`, model);
      assert.deepEqual([...start.keys()].sort(), [...expected.keys()].sort());
      const norm = Math.hypot(...[...expected.values()].flatMap(({ data }) => [...data]));
      for (const [key, gradient] of expected) {
        const { shape, data } = sums.get(`accumulated.${key}`)!;
        const found = float32(
          shape,
          (data as Float32Array).map((v) => 2 * v),
        );
        if (withoutGradient(key)) assert.ok(Math.hypot(...found.data) < 1e-6 * norm, key);
        else assert.ok(relativeError(found, gradient) <= 1e-4, `${key}: ${relativeError(found, gradient)}`);
      }
      await state.release();
      await program.release();
    });

    const takeSteps = async (inPieces: boolean): Promise<void> => {
      const model = base.withWords(c.words);
      const settings = { ...settingsOf(c, 1), inPieces };
      const start = await startOf(c, model);
      const parameters = [...start].map(([key, { shape }]) => ({ name: key, shape }));
      const { micro, pieces } = buildStep(model, settings);
      const program = await engine.compile(micro);
      const update = pieces && (await PiecewiseUpdate.compile(engine, pieces));
      assert.equal(update !== undefined, inPieces);
      const state = await engine.state(
        new Map([...start, ...criticOf(model), ...settings.optimizer.init(parameters)]),
      );
      for (const [i, loss] of c.losses.entries()) {
        const feeds = { ...batch(c, i), ...settings.optimizer.feeds(i + 1, RATE) };
        const found = (await program.run(feeds, state)).loss!.data[0] as number;
        await update?.run(feeds, state);
        assert.ok(
          Math.abs(found - loss) <= 1e-5 * Math.abs(loss),
          `loss of step ${i + 1}: ${found}, ${loss}`,
        );
      }
      const end = await state.read();
      for (const [key, expected] of named(`${name}/end/`, model)) {
        if (withoutGradient(key)) continue;
        const error = relativeError(end.get(key)!, expected);
        assert.ok(error <= 1e-4, `${key}: ${error}`);
      }
      for (const held of [state, program, update]) await held?.release();
    };

    test(`steps of AdamW: ${name}`, () => takeSteps(false));
    test(`steps of AdamW, the update piece by piece: ${name}`, () => takeSteps(true));

    test(`token ids: ${name}`, () => {
      const model = base.withWords(c.words);
      for (const [i, prompt] of c.prompts.entries()) {
        const { tokens: found } = model.tokenize(prompt);
        assert.deepEqual([...found.tokens!.data].map(Number), c.ids[i], prompt);
      }
    });
  }

  test('new words are found in prompts as transformers and diffusers find them', () => {
    const words = [...cases['custom-diffusion']!.words, ...cases['textual-inversion']!.words];
    const model = base.withWords(words);
    for (const [prompt, ids] of Object.entries(tokens)) {
      assert.deepEqual([...model.tokenize(prompt).tokens.tokens!.data].map(Number), ids, prompt);
    }
  });

  test('new rows start as their initializer, and nothing else of the table moves', async () => {
    const { words } = cases['textual-inversion']!;
    const model = base.withWords(words);
    const [rows, ...others] = model.variables({});
    assert.equal(others.length, 0);
    const table = base.weightSets.find(({ component }) => component === 'text_encoder')!;
    const weight = [...table.weights].find(([key]) => key.endsWith('token_embedding.weight'))![1];
    const { data } = (await readWeightTensor(weight)) as Tensor<'float32'>;
    const id = Number(base.tokenize('a').tokens.tokens!.data[1]);
    const row = data.slice(16 * id, 16 * (id + 1));
    assert.deepEqual([...(await rows!.stored!()).data], [...row, ...row]);
  });

  /** What a model says of a prompt, and of noise at a timestep. */
  async function outputs(model: StableDiffusion, prompt: string, learnt: ReadonlyMap<string, Tensor>) {
    const graph = new Graph();
    const { result: text } = model.textEncoder(graph, 1);
    const sample = graph.input('sample', 'float32', [1, ...model.latentShape(model.resolution)]);
    const timestep = graph.input('timestep', 'int64', [1]);
    const condition = model.condition(graph, 1, text);
    graph.output('states', text.condition);
    graph.output('prediction', model.denoiser(graph, { sample, timestep, condition }).result);
    const program = await engine.compile(graph);
    const state = await engine.state(learnt);
    const noise = picked(entry(inputs.get('sd1/noise')!, 0), [0]);
    const found = await program.run(
      { ...model.tokenize(prompt).tokens, sample: noise, timestep: int64([1], [321]) },
      state,
    );
    await state.release();
    await program.release();
    return found;
  }

  test('Custom Diffusion is written as diffusers reads it, and read back to what diffusers computes', async (t) => {
    const at = await temporaryFolder(t);
    const name = 'custom-diffusion';
    const { words, prompts } = cases[name]!;
    const withWords = base.withWords(words);
    const learnt = named(`${name}/end/`, withWords);
    await writeCustomDiffusionFile(at, learnt);
    await writeWordFiles(at, words, learnt, wordFile);
    assert.deepEqual((await readdir(at)).sort(), [
      '<new1>.safetensors',
      '<new2>.safetensors',
      customDiffusionFileName,
    ]);
    const { tensors } = await readSafetensorsFile(path.join(at, customDiffusionFileName));
    assert.deepEqual([...tensors].sort(), [...named(`${name}/file/`, withWords)].sort());
    const rows = withWords.variables({})[0]!.input;
    const model = base.withWeights(await openCustomDiffusionFile(at)).withWords(words);
    const read = await readWordFiles(at, words, rows, wordFile);
    assert.deepEqual(read, learnt.get(rows));
    const found = await outputs(model, prompts[0]!, new Map([[rows, read]]));
    for (const output of ['states', 'prediction']) {
      const error = relativeError(found[output]!, golden.get(`${name}/${output}`)!);
      assert.ok(error <= 1e-5, `${output}: ${error}`);
    }
  });

  test('textual inversion is written as diffusers reads it, and read back to what diffusers computes', async (t) => {
    const at = await temporaryFolder(t);
    const name = 'textual-inversion';
    const { words, prompts } = cases[name]!;
    const model = base.withWords(words);
    const learnt = named(`${name}/end/`, model);
    const [file] = await writeWordFiles(at, words, learnt, learnedEmbeds);
    assert.equal(file, path.join(at, 'learned_embeds.safetensors'));
    const rows = model.variables({})[0]!.input;
    const stored = await openSafetensors(file!);
    assert.deepEqual([...stored.entries.keys()], ['<toy>']);
    assert.deepEqual(await readTensor(stored, '<toy>'), learnt.get(rows));
    const found = await outputs(
      model,
      prompts[0]!,
      new Map([[rows, await readWordFiles(at, words, rows, learnedEmbeds)]]),
    );
    for (const output of ['states', 'prediction']) {
      const error = relativeError(found[output]!, golden.get(`${name}/${output}`)!);
      assert.ok(error <= 1e-5, `${output}: ${error}`);
    }
  });

  test('a fully trained model is a folder that opens as any other, with the new weights in the old names', async (t) => {
    const at = path.join(await temporaryFolder(t), 'model');
    await mkdir(at);
    const learnt = named('full/end/', base);
    await writeTrainedFolder(at, base, {
      names: [...learnt.keys()],
      read: async (key) => learnt.get(key)!,
    });
    const opened = await StableDiffusion.open(at);
    let trained = 0;
    for (const [s, set] of opened.weightSets.entries()) {
      const before = base.weightSets[s]!;
      assert.deepEqual([...set.weights.keys()].sort(), [...before.weights.keys()].sort());
      for (const [key, weight] of set.weights) {
        const expected = learnt.get(`${set.component}.${key}`);
        trained += Number(expected !== undefined);
        const kept = expected ?? (await readWeightTensor(before.weights.get(key)!));
        assert.deepEqual(await readWeightTensor(weight), kept, `${set.component}.${key}`);
      }
    }
    assert.equal(trained, learnt.size);
    for (const file of ['model_index.json', 'unet/config.json', 'tokenizer/tokenizer.json']) {
      assert.deepEqual(await readFile(path.join(at, file)), await readFile(path.join(folder, file)), file);
    }
  });

  test('words that cannot be learnt are told with the reason', () => {
    const word = (change: Partial<NewWord>): NewWord[] => [
      { word: '<new1>', vectors: 1, initializer: 'a', ...change },
    ];
    const refused: [NewWord[], RegExp][] = [
      [word({ word: 'a' }), /"a" is in the model's vocabulary already.*such as "<a>"/],
      [word({ word: 'two words' }), /without spaces and slashes/],
      [word({ word: '../x' }), /without spaces and slashes/],
      [
        word({ initializer: 'quite long' }),
        /cannot start as "quite long": expected a word that is one token.*this is [2-9]/,
      ],
      [word({ initializer: '' }), /this is 0/],
      [[...word({}), ...word({ word: '<NEW1>' })], /given twice/],
    ];
    for (const [words, message] of refused) {
      assert.throws(
        () => base.withWords(words),
        (error) => error instanceof InputError && message.test(error.message),
        String(message),
      );
    }
  });
});
