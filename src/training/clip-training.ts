import { contrastiveLoss } from '../algorithms/contrastive.js';
import { Augmentation } from '../data/augmentation.js';
import { channelsFirst } from '../data/channels-first.js';
import { describe } from '../data/world/example.js';
import { renderExamples } from '../data/world/render.js';
import { type Json, parseConfig } from '../formats/json-config.js';
import { clipTextProjection } from '../models/clip-text.js';
import { clipImageEmbedding, readClipConfig } from '../models/clip-vision.js';
import { initialParameters } from '../nn/initialize.js';
import { InputParameters, Scope } from '../nn/parameters.js';
import { Graph } from '../onnx/graph.js';
import { Random } from '../tensor/random.js';
import { float32, int64 } from '../tensor/tensor.js';
import { ENCODER_RESOLUTION, encoderPreprocessing, preparedPictures, writeEncoder } from './encoder-files.js';
import { type SmallModelTraining, smallModelSettings, trainFully } from './full-training.js';
import { writeWorldTokenizer } from './world-tokenizer.js';

export interface ClipTraining extends SmallModelTraining {
  /** How many captioned pictures to draw. */
  readonly examples: number;
}

/** How the encoders that ship were trained, but for the seed. */
export const clipDefaults = {
  examples: 24_000,
  steps: 1500,
  batchSize: 64,
  checkpointingSteps: 250,
} as const satisfies Partial<ClipTraining>;

const PROMPT_LENGTH = 32;
/** Radford et al., section 2.5. */
const FIRST_TEMPERATURE = 0.07;
const LAYER = {
  attention_dropout: 0,
  hidden_act: 'quick_gelu',
  hidden_size: 128,
  intermediate_size: 384,
  layer_norm_eps: 1e-5,
  num_attention_heads: 4,
};

function clipConfig(vocabularySize: number): Json {
  const [startToken, endToken] = [vocabularySize - 2, vocabularySize - 1];
  return {
    architectures: ['CLIPModel'],
    model_type: 'clip',
    projection_dim: 64,
    text_config: {
      ...LAYER,
      bos_token_id: startToken,
      eos_token_id: endToken,
      max_position_embeddings: PROMPT_LENGTH,
      model_type: 'clip_text_model',
      num_hidden_layers: 2,
      pad_token_id: endToken,
      vocab_size: vocabularySize,
    },
    vision_config: {
      ...LAYER,
      image_size: ENCODER_RESOLUTION,
      model_type: 'clip_vision_model',
      num_channels: 3,
      num_hidden_layers: 4,
      patch_size: 8,
    },
  };
}

/**
 * Trains a small CLIP on captioned pictures of the synthetic world (Radford et al., arXiv 2103.00020) and writes it in the layout of transformers' CLIPModel, with its
 * tokenizer and half-precision weights. Half of the captions name all that is to be seen, half are those of the denoiser's pretraining without rare words.
 * Everything follows from the seed; stopped at any moment, the same call goes on.
 *
 * @throws CancelledError when the signal is raised, with the state saved. DivergedError when the training leaves the finite numbers.
 */
export async function trainClip(options: ClipTraining): Promise<void> {
  const { output, seed, examples: count, batchSize: b, onEvent } = options;
  const tokenizer = await writeWorldTokenizer(output, PROMPT_LENGTH);
  const json = clipConfig(tokenizer.vocabularySize);
  const config = readClipConfig(parseConfig(JSON.stringify(json), 'config.json'));
  onEvent?.({ kind: 'stage', name: 'drawing the world', done: 0, total: count });
  const examples = await renderExamples(seed, 0, count, ENCODER_RESOLUTION, { rareTokens: 0 });
  onEvent?.({ kind: 'stage', name: 'drawing the world', done: count, total: count });
  const everything = { colour: true, secondColour: true, pattern: true, motif: true };
  const captions = examples.map(({ example }) =>
    [example.caption, describe(example, everything)].map((caption) => tokenizer.encode(caption).ids),
  );

  const preprocessing = encoderPreprocessing('clip');
  const graph = new Graph('clip');
  const parameters = new InputParameters(graph);
  const scope = new Scope(parameters);
  const shape = [b, 3, ENCODER_RESOLUTION, ENCODER_RESOLUTION];
  const pictures = preparedPictures(preprocessing, graph.input('pixels', 'float32', shape));
  const images = clipImageEmbedding(scope, config, pictures);
  const tokens = graph.input('tokens', 'int64', [b, PROMPT_LENGTH]);
  const { projected } = clipTextProjection(scope, config.text, tokens);
  const logScale = scope.parameter('logit_scale', [], { kind: 'ones' });
  const augmentation = new Augmentation(ENCODER_RESOLUTION, new Random(seed, 'grain'));
  const settings = await smallModelSettings(options);
  const initial = initialParameters(parameters.specs, settings.random);
  initial.set('logit_scale', float32([], [Math.log(1 / FIRST_TEMPERATURE)]));
  const trained = await trainFully(
    {
      name: 'clip',
      graph,
      loss: contrastiveLoss(images, projected, logScale),
      parameters: [parameters],
      initial,
      batch: (step) => {
        const random = new Random(seed, 'clip', step);
        const pixels = new Float32Array(b * 3 * ENCODER_RESOLUTION ** 2);
        const size = pixels.length / b;
        const ids: number[] = [];
        for (let i = 0; i < b; i++) {
          const index = random.int(count);
          const into = pixels.subarray(i * size, (i + 1) * size);
          channelsFirst(examples[index]!.pixels, into);
          augmentation.apply(into, random);
          ids.push(...captions[index]![random.int(2)]!);
        }
        return { pixels: float32(shape, pixels), tokens: int64([b, PROMPT_LENGTH], ids) };
      },
      steps: options.steps,
      learningRate: 1e-3,
      warmupSteps: 200,
      maxEmaDecay: 0.998,
    },
    settings,
  );
  await writeEncoder(output, { 'config.json': json, 'preprocessor_config.json': preprocessing }, trained);
}
