import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { readConfigFile } from '../src/formats/json-config-file.js';
import type { Component } from '../src/pretrained/model-folder.js';
import { shippedTokenizerPath } from '../src/pretrained/single-file.js';
import { type ClipTokenizer, openTokenizer } from '../src/pretrained/tokenizer.js';

/** A tokenizer's folder as a component of a model. */
export async function tokenizerComponent(folder: string): Promise<Component> {
  const config = await readConfigFile(join(folder, 'tokenizer_config.json'));
  return {
    name: 'tokenizer',
    className: 'CLIPTokenizer',
    folder,
    files: (await readdir(folder)).sort(),
    config,
  };
}

/** CLIP's own tokenizer, over the vocabulary that ships with the package. */
export async function shippedTokenizer(): Promise<ClipTokenizer> {
  return openTokenizer(await tokenizerComponent(shippedTokenizerPath()));
}
