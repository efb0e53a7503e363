import { createHash } from 'node:crypto';
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { shippedWorldClassifier } from '../../src/evaluation/world-classifier.js';
import { shippedModelPath } from '../../src/workflows/shipped.js';
import { ENCODERS } from './plan.js';

/** Digests of the files that results follow from, beside the settings: with others, they are other results. */
export interface Material {
  /** The base model and the encoders that reward. */
  readonly drawing: string;
  /** The encoders that judge, and the world's classifier. */
  readonly marking: string;
}

export async function readMaterial(): Promise<Material> {
  const { rewards, judges } = ENCODERS;
  return {
    drawing: await digest([shippedModelPath(), rewards.dino, rewards.clip]),
    marking: await digest([judges.dino, judges.clip, shippedWorldClassifier()]),
  };
}

async function digest(folders: readonly string[]): Promise<string> {
  const hash = createHash('sha256');
  for (const folder of folders) {
    const names = (await readdir(folder, { recursive: true })).filter((name) =>
      /\.(json|safetensors|txt)$/.test(name),
    );
    for (const name of names.sort()) hash.update(name).update(await readFile(join(folder, name)));
  }
  return hash.digest('hex').slice(0, 20);
}
