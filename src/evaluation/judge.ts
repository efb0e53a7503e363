import type { RgbImage } from '../data/image-grid.js';
import type { Engine, Program } from '../engine/engine.js';
import { ModelError } from '../errors.js';
import { Graph } from '../onnx/graph.js';
import {
  type ClipEncoder,
  type ImageEncoder,
  openClip,
  openImageEncoder,
} from '../pretrained/image-encoder.js';
import { concatRows } from '../tensor/rows.js';
import type { Tensor } from '../tensor/tensor.js';
import {
  clipTransform,
  dinoTransform,
  type PictureTransform,
  transformPicture,
} from './picture-transform.js';
import { normalized, type UnitVector } from './similarity.js';

/** What an encoder judges: "dino" likeness by a ViT or DINOv2, "clip" likeness and text by a CLIP. */
export type JudgeRole = 'dino' | 'clip';

/** An encoder that scores pictures, with the benchmark's own transform in place of its folder's. */
export interface Judge {
  readonly role: JudgeRole;
  readonly encoder: ImageEncoder;
  readonly transform: PictureTransform;
  /** Of its weights. */
  readonly digest: string;
  /** What its user should know. */
  readonly warnings: readonly string[];
}

/** A judge that knows text. */
export interface TextJudge extends Judge {
  readonly encoder: ClipEncoder;
}

/**
 * Opens the encoder for DINO scores: a ViT (facebook/dino-vits16 is the published one) or a DINOv2 folder.
 *
 * @throws ModelError naming the file, when the folder is not one of these.
 */
export async function openDinoJudge(folder: string): Promise<Judge> {
  const encoder = await openImageEncoder(folder);
  if (encoder.kind === 'clip') {
    throw new ModelError(
      `${folder}: this is a CLIP; DINO scores need a ViT or a DINOv2 (such as facebook/dino-vits16). Give this folder with --clip.`,
    );
  }
  // DINOv2 was trained at 518 pixels and is used at the size that its preprocessing says.
  const side =
    encoder.kind === 'dinov2' ? (encoder.preprocessing.crop?.[0] ?? encoder.imageSize) : encoder.imageSize;
  return judgeOf('dino', encoder, dinoTransform(side));
}

/**
 * Opens the encoder for CLIP-I and CLIP-T: a CLIP folder with its tokenizer (openai/clip-vit-base-patch32 is the published one).
 *
 * @throws ModelError naming the file, when the folder is not one.
 */
export async function openClipJudge(folder: string): Promise<TextJudge> {
  const encoder = await openClip(folder);
  return { ...(await judgeOf('clip', encoder, clipTransform(encoder.imageSize))), encoder };
}

async function judgeOf(role: JudgeRole, encoder: ImageEncoder, transform: PictureTransform): Promise<Judge> {
  const { mean, std } = encoder.preprocessing;
  const same = (a: readonly number[], b: readonly number[]): boolean =>
    a.every((v, i) => Math.abs(v - b[i]!) < 1e-3);
  const warnings =
    same(mean, transform.mean) && same(std, transform.std)
      ? []
      : [
          `${encoder.folder}: its preprocessor_config.json normalises with mean ${mean.join(', ')} and deviation ${std.join(', ')}; scores use the benchmark's ${transform.mean.join(', ')} and ${transform.std.join(', ')}. For an encoder that was trained otherwise they are not what it can do.`,
        ];
  return { role, encoder, transform, digest: await encoder.digest(), warnings };
}

/** Pictures in one run of the encoder: enough to fill the processors, little memory. */
const BATCH = 8;

/** Embeds pictures with a judge. Its program is compiled at the first picture. */
export class PictureEmbedder {
  #program: Program | undefined;

  constructor(
    private readonly judge: Judge,
    private readonly engine: Engine,
  ) {}

  /** The embeddings of pictures, of length one, in their order. At most {@link PictureEmbedder.batch} at once. */
  async embed(pictures: readonly RgbImage[]): Promise<UnitVector[]> {
    const { transform } = this.judge;
    const rows = pictures.map((picture) => transformPicture(picture, transform));
    // A batch that is not full repeats its first picture; the program has one shape.
    const filled = Array.from({ length: BATCH }, (_, i) => rows[i] ?? rows[0]!);
    this.#program ??= await this.#compile();
    const { embedding } = await this.#program.run({ pictures: concatRows(filled) });
    const { data, shape } = embedding as Tensor<'float32'>;
    const width = shape[1]!;
    return pictures.map((_, i) => {
      const vector = data.subarray(i * width, (i + 1) * width);
      if (!vector.every(Number.isFinite)) {
        throw new ModelError(
          `${this.judge.encoder.folder}: the encoder gives values that are not numbers. Its weights are damaged; get another copy.`,
        );
      }
      return normalized(vector);
    });
  }

  get batch(): number {
    return BATCH;
  }

  async release(): Promise<void> {
    await this.#program?.release();
    this.#program = undefined;
  }

  #compile(): Promise<Program> {
    const { encoder, transform } = this.judge;
    const graph = new Graph('judge');
    const prepared = graph.input('pictures', 'float32', [BATCH, 3, transform.crop, transform.crop]);
    graph.output('embedding', encoder.embedPrepared(prepared));
    return this.engine.compile(graph);
  }
}
