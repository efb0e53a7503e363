import { UsageError } from '../errors.js';
import type { Lora, WeightedLora } from '../pretrained/lora.js';
import { readLoraFile } from '../pretrained/lora-file.js';

/** A LoRA file, and how much of it to take. */
export interface LoraChoice {
  readonly file: string;
  /** 1, the default, is the whole update; 0 none of it; below 0 its opposite. */
  readonly weight?: number;
}

/**
 * Reads the files that were chosen, each in the shapes of the model that `fit` knows.
 *
 * @throws UsageError for a weight that is not a number; ModelError for a file that is no LoRA, or one for another model.
 */
export async function readLoras(
  choices: readonly LoraChoice[],
  fit: (lora: Lora, file: string) => Lora,
): Promise<WeightedLora[]> {
  const read: WeightedLora[] = [];
  for (const { file, weight = 1 } of choices) {
    if (!Number.isFinite(weight))
      throw new UsageError(`--lora ${file}: the weight is ${weight}; expected a number.`);
    read.push({ lora: fit(await readLoraFile(file), file), weight });
  }
  return read;
}
