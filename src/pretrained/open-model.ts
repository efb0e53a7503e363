import { stat } from 'node:fs/promises';
import { Config } from '../formats/json-config.js';
import type { PredictionType } from './architectures.js';
import { type ModelFolder, openModelFolder } from './model-folder.js';
import { openSingleFile } from './single-file.js';

/**
 * Opens a model in either layout: a diffusers folder, or a checkpoint in a single file.
 *
 * @param prediction what the denoiser predicts, in place of what the model says of itself.
 * @throws ModelError when the path is neither, or the model cannot be read.
 */
export async function openModel(path: string, prediction?: PredictionType): Promise<ModelFolder> {
  const found = await stat(path).catch(() => undefined);
  if (found?.isFile()) return openSingleFile(path, prediction);
  const folder = await openModelFolder(path);
  return prediction === undefined ? folder : predicting(folder, prediction);
}

function predicting(folder: ModelFolder, prediction: PredictionType): ModelFolder {
  const { scheduler } = folder.components;
  const { file } = scheduler.config;
  const values = { ...Object.fromEntries(scheduler.config.entries()), prediction_type: prediction };
  const changed = { ...scheduler, config: new Config(file, values) };
  return { ...folder, components: { ...folder.components, scheduler: changed } };
}
