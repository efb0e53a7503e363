import { readdir } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import type { Engine } from '../engine/engine.js';
import { ModelError } from '../errors.js';
import { readConfigFile } from '../formats/json-config-file.js';
import { clipTextProjection } from '../models/clip-text.js';
import { clipImageEmbedding, readClipConfig } from '../models/clip-vision.js';
import { dinov2, readDinov2Config } from '../models/dinov2.js';
import {
  type ImagePreprocessing,
  preprocess,
  readImagePreprocessing,
} from '../models/image-preprocessing.js';
import { readViTConfig, vit } from '../models/vit.js';
import { Scope } from '../nn/parameters.js';
import { Graph, type Value } from '../onnx/graph.js';
import { int64, type Tensor } from '../tensor/tensor.js';
import { openTokenizer } from './tokenizer.js';
import { assertFiniteWeights, openWeights, type WeightSet, weightSource } from './weights.js';
import { digestWeights } from './weights-digest.js';

/** An image encoder in a Hugging Face folder, opened: its configuration read, its weights checked and ready to be referred to from graphs. */
export interface ImageEncoder {
  /** Absolute path. */
  readonly folder: string;
  readonly kind: 'vit' | 'dinov2' | 'clip';
  /** Pictures [B, 3, H, W] in [-1, 1] to embeddings [B, D], not normalised; the folder's own preprocessing is done inside the graph. */
  embed(pixels: Value): Value;
  /** The folder's own preprocessing. */
  readonly preprocessing: ImagePreprocessing;
  /** Side in pixels of the pictures that the network was trained on. */
  readonly imageSize: number;
  /** The network alone: pictures [B, 3, S, S] that were prepared otherwise to embeddings [B, D], not normalised. */
  embedPrepared(prepared: Value): Value;
  /** Tells its weights from those of other encoders; see {@link digestWeights}. */
  digest(): Promise<string>;
}

/** CLIP, whose text half embeds prompts into the space of its pictures. */
export interface ClipEncoder extends ImageEncoder {
  readonly kind: 'clip';
  /** The embedding [1, D] of a text, not normalised. Runs the text half once. */
  embedText(engine: Engine, text: string): Promise<Tensor<'float32'>>;
  /** The embeddings [1, D] of texts, in their order. Compiles the text half once. */
  embedTexts(engine: Engine, texts: readonly string[]): Promise<Tensor<'float32'>[]>;
}

const CONFIG = 'config.json';
const PREPROCESSOR = 'preprocessor_config.json';

/** Published files of these models may put all names below this one. */
const prefixes = { vit: 'vit', dinov2: 'dinov2', clip: '' } as const;

/**
 * Opens an image encoder: the class token of a ViT (google/vit-*, facebook/dino-vit*) or a DINOv2, or the projected image embedding of a CLIP.
 *
 * @throws ModelError naming the file, when the folder is none of these, or has settings or weights that cannot be used.
 */
export async function openImageEncoder(path: string): Promise<ImageEncoder> {
  const { folder, files, config } = await openFolder(path);
  const kind = config.oneOf('model_type', ['vit', 'dinov2', 'clip']);
  const preprocessing = readImagePreprocessing(await readConfigFile(preprocessorFile(folder, files)));
  const weights = await openWeights({ name: 'image_encoder', folder, files });
  await assertFiniteWeights(weights);
  const { imageSize, network } = {
    vit: () => {
      const read = readViTConfig(config);
      return {
        imageSize: read.imageSize,
        network: (scope: Scope, pixels: Value) => vit(scope, read, pixels),
      };
    },
    dinov2: () => {
      const read = readDinov2Config(config);
      return {
        imageSize: read.imageSize,
        network: (scope: Scope, pixels: Value) => dinov2(scope, read, pixels),
      };
    },
    clip: () => {
      const read = readClipConfig(config);
      return {
        imageSize: read.vision.imageSize,
        network: (scope: Scope, pixels: Value) => clipImageEmbedding(scope, read, pixels),
      };
    },
  }[kind]();
  const embedPrepared = (prepared: Value): Value =>
    network(placed(prepared.graph, weights, prefixes[kind]), prepared);
  const encoder: ImageEncoder = {
    folder,
    kind,
    embed: (pixels) => embedPrepared(preprocess(preprocessing, pixels)),
    preprocessing,
    imageSize,
    embedPrepared,
    digest: () => digestWeights(weights),
  };
  // A tensor that is missing or of another shape is found now, and not when a step is built.
  const check = new Graph('check');
  encoder.embed(check.input('pixels', 'float32', [1, 3, 64, 64]));
  return encoder;
}

/**
 * Opens a whole CLIP: image and text half.
 *
 * @throws ModelError naming the file, when the folder is no CLIPModel with its tokenizer.
 */
export async function openClip(path: string): Promise<ClipEncoder> {
  const encoder = await openImageEncoder(path);
  if (encoder.kind !== 'clip') {
    throw new ModelError(
      `${join(path, CONFIG)}: the setting "model_type" is ${JSON.stringify(encoder.kind)}, which knows no text; supported: "clip".`,
    );
  }
  const { folder, files, config } = await openFolder(path);
  const read = readClipConfig(config);
  if (!files.includes('tokenizer_config.json')) {
    throw new ModelError(
      `${folder} has no tokenizer_config.json, which says how a text is cut into tokens. Get the tokenizer's files of the same model too.`,
    );
  }
  const tokenizer = await openTokenizer(
    {
      name: 'tokenizer',
      className: 'CLIPTokenizer',
      folder,
      files,
      config: await readConfigFile(join(folder, 'tokenizer_config.json')),
    },
    read.text.maxPositions,
  );
  if (tokenizer.vocabularySize > read.text.vocabSize) {
    throw new ModelError(
      `${folder}: the tokenizer has ${tokenizer.vocabularySize} tokens, but the text encoder has ${read.text.vocabSize} embeddings ("vocab_size"). They are not parts of one model.`,
    );
  }
  const weights = await openWeights({ name: 'image_encoder', folder, files });
  const embedTexts = async (engine: Engine, texts: readonly string[]): Promise<Tensor<'float32'>[]> => {
    const graph = new Graph('text_embedding');
    const tokens = graph.input('tokens', 'int64', [1, tokenizer.maxLength]);
    graph.output('embedding', clipTextProjection(placed(graph, weights, ''), read.text, tokens).projected);
    const program = await engine.compile(graph);
    try {
      const embeddings: Tensor<'float32'>[] = [];
      for (const text of texts) {
        const { ids } = tokenizer.encode(text);
        const { embedding } = await program.run({ tokens: int64([1, ids.length], ids) });
        embeddings.push(embedding as Tensor<'float32'>);
      }
      return embeddings;
    } finally {
      await program.release();
    }
  };
  return {
    ...encoder,
    kind: 'clip',
    embedTexts,
    embedText: async (engine, text) => (await embedTexts(engine, [text]))[0]!,
  };
}

/** Where the parameters begin: at the root, or below the model's name in a file that was saved with a head on it. */
function placed(graph: Graph, weights: WeightSet, prefix: string): Scope {
  const nested = prefix !== '' && [...weights.weights.keys()].some((name) => name.startsWith(`${prefix}.`));
  return new Scope(weightSource(graph, weights), nested ? prefix : '');
}

async function openFolder(path: string) {
  const folder = resolve(path);
  const files = await readdir(folder).catch((error: unknown) => {
    throw new ModelError(
      `${path}: expected the folder of an image encoder (${CONFIG}, ${PREPROCESSOR}, model.safetensors), but there is no such folder.`,
      { cause: error },
    );
  });
  files.sort();
  if (files.includes('model_index.json')) {
    throw new ModelError(
      `${path}: this is a whole pipeline. Expected the folder of one image encoder: ViT, DINOv2 or CLIP.`,
    );
  }
  if (!files.includes(CONFIG)) {
    throw new ModelError(
      `${path} is not an image encoder: it has no ${CONFIG}. Expected the folder of a ViT, DINOv2 or CLIP as transformers saves it.`,
    );
  }
  return { folder, files, config: await readConfigFile(join(folder, CONFIG)) };
}

function preprocessorFile(folder: string, files: readonly string[]): string {
  if (files.includes(PREPROCESSOR)) return join(folder, PREPROCESSOR);
  throw new ModelError(
    `${folder} has no ${PREPROCESSOR}, which says how pictures are scaled and normalised. Get that file of the same model too.`,
  );
}
