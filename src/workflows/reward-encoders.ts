import { resolve } from 'node:path';
import { PortrayalError } from '../errors.js';
import { isObject, type Json } from '../formats/json-config.js';
import { openImageEncoder } from '../pretrained/image-encoder.js';
import type { RunConfig } from '../training/run-folder.js';

/** What a run was rewarded for, as its settings say it. */
export interface RunRewards {
  /** "none (dreambooth)", "look-forward", "dino:encoders/dino" */
  readonly description: string;
  /** Paths of the encoders that rewarded it. */
  readonly encoders: readonly string[];
}

/** Reads what a run was rewarded for from its `config.json`, which keeps rewards in full but for the released one, which stands as its name. */
export function rewardsOf({ settings }: RunConfig): RunRewards {
  if (!isObject(settings)) return { description: 'not known', encoders: [] };
  const { method, reward } = settings;
  if (method !== 'dpg') return { description: `none (${String(method)})`, encoders: [] };
  const rewards = (Array.isArray(reward) ? reward : [reward]) as (Json | undefined)[];
  return {
    description: rewards.map(nameOf).join(' + ') || 'not known',
    encoders: rewards.flatMap(encoderOf).map((path) => resolve(path)),
  };
}

function nameOf(reward: Json | undefined): string {
  if (typeof reward === 'string') return reward;
  if (!isObject(reward)) return 'not known';
  const source = ['encoder', 'file', 'path', 'url']
    .map((key) => reward[key])
    .find((v) => typeof v === 'string');
  return [reward.name ?? reward.kind, source].filter((part) => typeof part === 'string').join(':');
}

function encoderOf(reward: Json | undefined): string[] {
  return isObject(reward) && typeof reward.encoder === 'string' ? [reward.encoder] : [];
}

/** The digest of an encoder's weights; undefined when there is none at that path any more. */
export async function encoderDigest(path: string): Promise<string | undefined> {
  try {
    return await (await openImageEncoder(path)).digest();
  } catch (error) {
    if (error instanceof PortrayalError) return undefined;
    throw error;
  }
}
