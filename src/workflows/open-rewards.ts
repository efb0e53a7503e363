import { encodeJpeg, encodePng } from '../data/image-grid.js';
import type { Engine } from '../engine/engine.js';
import { Graph, type Value } from '../onnx/graph.js';
import { type ClipEncoder, openClip, openImageEncoder } from '../pretrained/image-encoder.js';
import { openOnnxModel } from '../pretrained/onnx-model.js';
import { endpointReward } from '../rewards/endpoint.js';
import { functionReward } from '../rewards/function-reward.js';
import { jpegSizeReward } from '../rewards/jpeg-size.js';
import { lookForwardReward } from '../rewards/look-forward.js';
import { pictureReward } from '../rewards/picture-reward.js';
import type { GraphReward, Reward, WeightedReward } from '../rewards/reward.js';
import { fixedTextReward, imageSimilarityReward, textAlignmentReward } from '../rewards/similarity.js';
import { type Tensor, zeros } from '../tensor/tensor.js';
import type { Cleanup } from './cleanup.js';
import { openModuleReward } from './module-reward.js';
import type { NamedReward } from './reward-spec.js';

export interface OpenRewardOptions {
  readonly engine: Engine;
  /** Side of the pictures in pixels. */
  readonly resolution: number;
  /** Discount per timestep of rewards that have none of their own. */
  readonly gamma: number;
  /** How long a black box may take for an answer, and an endpoint for each request, in seconds. */
  readonly timeout: number;
  /** All that pictures of the run are to show, without the rare token. */
  readonly texts: readonly string[];
  readonly onWarning: (message: string) => void;
  /** The run is to stop: endpoints that fail are not asked again. */
  readonly stop?: AbortSignal;
}

/** JPEG quality of the reference reward: high enough for the size to follow what is in the picture. */
const JPEG_QUALITY = 90;

/**
 * Opens rewards: reads encoders and modules, so that what cannot be used is found before any work is done.
 *
 * @throws ModelError, UsageError or RewardError naming what cannot be used
 */
export async function openRewards(
  specs: readonly NamedReward[],
  options: OpenRewardOptions,
  cleanup: Cleanup,
): Promise<WeightedReward[]> {
  const opened: WeightedReward[] = [];
  for (const spec of specs) {
    const reward = await openReward(spec, options);
    if (reward.kind === 'black box') cleanup.defer(async () => reward.close?.());
    opened.push({ reward, weight: spec.weight, gamma: spec.gamma ?? options.gamma });
  }
  return opened;
}

/**
 * Rewards as an estimate of memory needs them: those of the graph with their networks, from the headers of their files and their checks. Nothing is computed; black boxes
 * are there by name and cannot be asked.
 *
 * @throws ModelError naming what cannot be used
 */
export async function outlineRewards(
  specs: readonly NamedReward[],
  { resolution, gamma }: Pick<OpenRewardOptions, 'resolution' | 'gamma'>,
): Promise<WeightedReward[]> {
  const outlined: WeightedReward[] = [];
  for (const spec of specs) {
    const reward = await openGraphReward(spec, { resolution, texts: [''] }, async (clip, texts) => {
      const pixels = new Graph('width').input('pixels', 'float32', [1, 3, clip.imageSize, clip.imageSize]);
      const width = clip.embed(pixels).shape[1]!;
      return texts.map(() => zeros([1, width]));
    });
    outlined.push({
      reward: reward ?? {
        kind: 'black box',
        name: spec.name,
        timeout: undefined,
        score: () => Promise.reject(new Error(`internal: ${spec.name} is an outline`)),
      },
      weight: spec.weight,
      gamma: spec.gamma ?? gamma,
    });
  }
  return outlined;
}

async function openReward(spec: NamedReward, options: OpenRewardOptions): Promise<Reward> {
  const { name } = spec;
  const { engine, timeout, onWarning, stop } = options;
  const inGraph = await openGraphReward(spec, options, (clip, texts) => clip.embedTexts(engine, texts));
  if (inGraph !== undefined) return inGraph;
  switch (spec.kind) {
    case 'jpeg-size':
      return jpegSizeReward(name, (picture) => encodeJpeg(picture, JPEG_QUALITY));
    case 'module':
      return openModuleReward(name, spec.path, timeout);
    case 'function':
      return functionReward(name, spec.score, timeout);
    case 'endpoint':
      return endpointReward(name, {
        url: spec.url,
        batchSize: spec.batchSize ?? 8,
        retries: spec.retries ?? 4,
        backOff: spec.backOff ?? 1,
        timeout,
        encode: encodePng,
        onRetry: onWarning,
        ...(stop ? { stop } : {}),
      });
    default:
      throw new Error(`internal: the reward ${spec.kind} is in the graph`);
  }
}

/** The rewards that are part of the training graph; undefined for the others. @param embedTexts gives texts in the eyes of CLIP, [1, D] each */
async function openGraphReward(
  spec: NamedReward,
  { resolution, texts: shown }: Pick<OpenRewardOptions, 'resolution' | 'texts'>,
  embedTexts: (clip: ClipEncoder, texts: readonly string[]) => Promise<Tensor<'float32'>[]>,
): Promise<GraphReward | undefined> {
  const { name } = spec;
  switch (spec.kind) {
    case 'look-forward':
      return { ...lookForwardReward, name };
    case 'image-similarity': {
      if (!isOnnxFile(spec.encoder)) {
        const encoder = await openImageEncoder(spec.encoder);
        return imageSimilarityReward(name, (pixels) => encoder.embed(pixels));
      }
      const model = await openOnnxModel(spec.encoder, { gives: 'embedding', resolution });
      return imageSimilarityReward(name, (pixels) => model.embed(pixels));
    }
    case 'text-alignment': {
      const clip = await openClip(spec.encoder);
      const embed = (pixels: Value): Value => clip.embed(pixels);
      const texts = spec.text === undefined ? [...new Set(shown)] : [spec.text];
      const embeddings = await embedTexts(clip, texts);
      if (spec.text !== undefined) return fixedTextReward(name, embed, embeddings[0]!);
      return textAlignmentReward(name, embed, new Map(texts.map((text, i) => [text, embeddings[i]!])));
    }
    case 'onnx': {
      const model = await openOnnxModel(spec.file, { gives: 'number', resolution });
      return pictureReward(name, (pixels) => model.score(pixels));
    }
    default:
      return undefined;
  }
}

const isOnnxFile = (path: string): boolean => /\.onnx$/i.test(path);
