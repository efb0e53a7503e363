import { encodeJpeg, encodePng } from '../data/image-grid.js';
import type { Engine } from '../engine/engine.js';
import type { Value } from '../onnx/graph.js';
import { openClip, openImageEncoder } from '../pretrained/image-encoder.js';
import { openOnnxModel } from '../pretrained/onnx-model.js';
import { endpointReward } from '../rewards/endpoint.js';
import { functionReward } from '../rewards/function-reward.js';
import { jpegSizeReward } from '../rewards/jpeg-size.js';
import { lookForwardReward } from '../rewards/look-forward.js';
import { pictureReward } from '../rewards/picture-reward.js';
import type { Reward, WeightedReward } from '../rewards/reward.js';
import { fixedTextReward, imageSimilarityReward, textAlignmentReward } from '../rewards/similarity.js';
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

async function openReward(spec: NamedReward, options: OpenRewardOptions): Promise<Reward> {
  const { name } = spec;
  const { engine, resolution, timeout, onWarning, stop } = options;
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
      if (spec.text !== undefined) {
        return fixedTextReward(name, embed, await clip.embedText(engine, spec.text));
      }
      const texts = [...new Set(options.texts)];
      const embeddings = await clip.embedTexts(engine, texts);
      return textAlignmentReward(name, embed, new Map(texts.map((text, i) => [text, embeddings[i]!])));
    }
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
    case 'onnx': {
      const model = await openOnnxModel(spec.file, { gives: 'number', resolution });
      return pictureReward(name, (pixels) => model.score(pixels));
    }
  }
}

const isOnnxFile = (path: string): boolean => /\.onnx$/i.test(path);
