import type { Device } from '../engine/device.js';
import type { PredictionType } from '../pretrained/architectures.js';
import { type LocatedModel, locateModel } from '../pretrained/model-reference.js';
import { StableDiffusion } from '../pretrained/stable-diffusion.js';
import type { Variant } from '../pretrained/weights.js';
import type { TrainingListener } from '../training/events.js';
import { computeTypeOf, type MixedPrecision } from './mixed-precision.js';
import { shippedModelPath } from './shipped.js';

/** Which model is meant, and how to come by it. */
export interface BaseModelOptions {
  /**
   * A diffusers model folder, a single-file checkpoint, or a model of the Hugging Face hub: "organisation/name" or "organisation/name@revision". The shipped
   * base by default.
   */
  readonly model?: string | undefined;
  /** What the denoiser predicts, where the model does not say it, or says it wrongly. */
  readonly predictionType?: PredictionType | undefined;
  /** The weights to take where a model has both: "fp16" is half the download. Default "full". */
  readonly variant?: Variant | undefined;
  /** What the denoiser and the text encoders compute in. Default "no": float32. */
  readonly mixedPrecision?: MixedPrecision;
  /** Where it will run, which decides how it is written. Default "cpu". */
  readonly device?: Device | undefined;
  /** Opens no connection: a model of the hub has to be in its cache. */
  readonly offline?: boolean | undefined;
  readonly onEvent?: TrainingListener | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** Finds the model that the options name, downloading it if need be. */
export function locateBaseModel({
  model = shippedModelPath(),
  variant,
  offline,
  onEvent,
  signal,
}: BaseModelOptions): Promise<LocatedModel> {
  return locateModel(model, {
    variant,
    offline,
    signal,
    onProgress: (progress) => onEvent?.({ kind: 'download', ...progress }),
    onWarning: (message) => onEvent?.({ kind: 'warning', message }),
  });
}

/** Finds the model that the options name, and opens it. */
export async function openBaseModel(
  options: BaseModelOptions,
): Promise<{ model: StableDiffusion; located: LocatedModel }> {
  const { variant, predictionType, mixedPrecision = 'no', device, onEvent } = options;
  const computeType = computeTypeOf(mixedPrecision);
  const located = await locateBaseModel(options);
  const model = await StableDiffusion.open(located.path, {
    variant,
    predictionType,
    computeType,
    device,
  });
  for (const message of model.warnings) onEvent?.({ kind: 'warning', message });
  return { model, located };
}
