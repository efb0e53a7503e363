import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { convolutionLora, sampleLora, xlLora } from '../../scripts/goldens/lora.js';
import { createNodeEngine } from '../../src/engine/node.js';
import { ModelError } from '../../src/errors.js';
import { Graph } from '../../src/onnx/graph.js';
import { appliedLora, combineLoras, type Lora, loraFamily } from '../../src/pretrained/lora.js';
import { readLoraFile } from '../../src/pretrained/lora-file.js';
import { StableDiffusion } from '../../src/pretrained/stable-diffusion.js';
import { float32, int64, type Tensor } from '../../src/tensor/tensor.js';
import { goldenPath, goldenTensors, relativeError } from '../goldens.js';
import { temporaryFolder } from '../temporary-folder.js';
import { writeSmallCheckpoint } from './small-checkpoints.js';

const engine = createNodeEngine({ threads: 2 });
after(() => engine.close());

const golden = (name: string): string => fileURLToPath(goldenPath(`lora/${name}`));
const sd1 = (): Promise<StableDiffusion> =>
  StableDiffusion.open(fileURLToPath(goldenPath('models/sd1-tiny')));

test('two LoRAs with weights, on attention, convolutions and text: what diffusers computes with both as adapters', async () => {
  const model = await sd1();
  const parts = [
    { file: golden('pytorch_lora_weights.safetensors'), weight: 0.7 },
    { file: golden('convolutions.safetensors'), weight: -0.5 },
  ];
  const loras = [];
  for (const { file, weight } of parts)
    loras.push({ lora: model.fitLora(await readLoraFile(file), file), weight });
  const applied = appliedLora(loras);
  const expected = goldenTensors('lora/applied.safetensors');

  const graph = new Graph('adapted');
  const [sample, timestep] = [
    graph.input('sample', 'float32', [2, 4, 8, 8]),
    graph.input('timestep', 'int64', [2]),
  ];
  const encoderHiddenStates = graph.input('context', 'float32', [2, 7, 16]);
  graph.output(
    'unet',
    model.denoiser(graph, { sample, timestep, condition: { encoderHiddenStates } }, { adaptation: applied })
      .result,
  );
  graph.output('text_encoder', model.textEncoder(graph, 1, applied).result.condition);
  const program = await engine.compile(graph);
  const state = await engine.state(applied.state);
  const tokens = int64([1, 77], [0, 5, 9, 17, 1, 1, 1, ...new Array<number>(70).fill(1)]);
  const found = await program.run(
    {
      sample: expected.get('input.sample')!,
      timestep: int64([2], [3, 500]),
      context: expected.get('input.context')!,
      tokens,
    },
    state,
  );
  assert.ok(relativeError(found.unet!, expected.get('output.unet')!) < 1e-4);
  // The golden prompt has seven tokens; what is after them is not seen by them.
  const text = found.text_encoder as Tensor<'float32'>;
  const firstSeven = float32([1, 7, 16], text.data.slice(0, 7 * 16));
  assert.ok(relativeError(firstSeven, expected.get('output.text_encoder')!) < 1e-4);
  await program.release();
  await state.release();
});

test('LoRAs add up: ranks side by side, scales and weights in the up factor', () => {
  const one: Lora = new Map([
    ['unet.a', { down: float32([1, 2], [1, 2]), up: float32([2, 1], [3, 4]), alpha: 2 }],
  ]);
  const two: Lora = new Map([
    ['unet.a', { down: float32([2, 2], [5, 6, 7, 8]), up: float32([2, 2], [1, 0, 0, 1]), alpha: 2 }],
    ['unet.b', { down: float32([1, 1], [1]), up: float32([1, 1], [1]), alpha: 1 }],
  ]);
  const both = combineLoras([
    { lora: one, weight: 0.5 },
    { lora: two, weight: -1 },
  ]);
  assert.deepEqual(both.get('unet.a'), {
    down: float32([3, 2], [1, 2, 5, 6, 7, 8]),
    up: float32([2, 3], [3, -1, -0, 4, -0, -1]),
    alpha: 3,
  });
  assert.deepEqual(both.get('unet.b')!.up.data, Float32Array.of(-1));
});

test('a LoRA for another base is refused, and says which it is for', async (t) => {
  const folder = await temporaryFolder(t);
  const xl = await StableDiffusion.open(await writeSmallCheckpoint(folder, 'sdxl-small'));
  assert.equal(xl.fitLora(xlLora(), 'xl').size, xlLora().size);
  const model = await sd1();
  const refused = (lora: Lora, message: RegExp): void => {
    assert.throws(
      () => model.fitLora(lora, 'x.safetensors'),
      (error) => {
        assert.ok(error instanceof ModelError, String(error));
        assert.match(error.message, message);
        return true;
      },
    );
  };
  refused(
    xlLora(),
    /x\.safetensors is a LoRA for Stable Diffusion XL, but the model is of Stable Diffusion 1/,
  );
  const attention = 'unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k';
  const wide = (width: number): Lora =>
    new Map([
      [
        attention,
        {
          down: float32([1, width], new Float32Array(width)),
          up: float32([640, 1], new Float32Array(640)),
          alpha: 1,
        },
      ],
    ]);
  refused(wide(1024), /is a LoRA for Stable Diffusion 2, but/);
  refused(wide(2048), /is a LoRA for Stable Diffusion XL, but/);
  refused(
    wide(768),
    /LoRA for another model: it changes unet\.down_blocks\.1\.attentions\.0.*has no such layer/,
  );
  const [name, module] = [...sampleLora()][0]!;
  refused(
    new Map([[name, { ...module, down: float32([2, 9], new Float32Array(18)) }]]),
    /its factors for unet\.down_blocks.* are \[2, 9\] and \[8, 2\], which do not fit the layer's weight \[8, 8\]/,
  );
  assert.equal(loraFamily(convolutionLora()), undefined);
});

test('linear layers and 1x1 convolutions are written the one for the other', async () => {
  const model = await sd1();
  const projection = 'unet.down_blocks.0.attentions.0.proj_in';
  const flat: Lora = new Map([
    [
      projection,
      { down: float32([1, 8], new Float32Array(8)), up: float32([8, 1], new Float32Array(8)), alpha: 1 },
    ],
  ]);
  const fitted = model.fitLora(flat, 'x').get(projection)!;
  assert.deepEqual(
    [fitted.down.shape, fitted.up.shape],
    [
      [1, 8, 1, 1],
      [8, 1, 1, 1],
    ],
  );
  await assert.rejects(readLoraFile(join('x', 'lora.bin')), /is a pickle file/);
});
