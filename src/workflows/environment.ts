import { readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import sharp from 'sharp';
import type { Device } from '../engine/device.js';
import { onnxRuntimeVersion } from '../engine/version.js';

/** What a run was made by. Other settings make another run; another environment makes the same run with other roundings. */
export interface Environment {
  readonly portrayal: string;
  readonly onnxruntime: string;
  readonly sharp: string;
  readonly node: string;
  readonly platform: string;
  readonly device: string;
  /** 0 where the caller brought an engine of its own. */
  readonly threads: number;
}

export function packageVersion(): string {
  const text = readFileSync(new URL('../../../package.json', import.meta.url), 'utf8');
  return (JSON.parse(text) as { version: string }).version;
}

export function readEnvironment(options: {
  readonly device?: Device;
  readonly threads?: number;
  readonly engine?: unknown;
}): Environment {
  return {
    portrayal: packageVersion(),
    onnxruntime: onnxRuntimeVersion(),
    sharp: sharp.versions.sharp ?? 'unknown',
    node: process.versions.node,
    platform: `${process.platform}-${process.arch}`,
    device: options.device ?? 'cpu',
    threads: options.threads ?? (options.engine ? 0 : availableParallelism()),
  };
}
