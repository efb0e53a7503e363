import type { DType } from '../tensor/dtype.js';
import type { Shape, Tensor } from '../tensor/tensor.js';
import type { Device } from './device.js';

/** What a program reads: what is fed or found in the state has to be of this type and shape. */
export interface InputSpec {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: Shape;
}

/** What the engine asks of its worker thread, and what comes back. Every request gets one reply with the same id. */
export type Request =
  | {
      readonly kind: 'compile';
      readonly program: number;
      readonly bytes: Uint8Array;
      readonly inputs: readonly InputSpec[];
      readonly outputs: ReadonlyMap<string, string>;
      readonly updates: ReadonlyMap<string, string>;
      readonly externalFolder: string | undefined;
      readonly threads: number;
      readonly device: Device;
      readonly prepackWeights: boolean;
      readonly profilePrefix: string | undefined;
    }
  | {
      readonly kind: 'run';
      readonly program: number;
      readonly feeds: Readonly<Record<string, Tensor>>;
      readonly state: number | undefined;
    }
  | { readonly kind: 'release'; readonly program: number }
  | { readonly kind: 'state'; readonly state: number; readonly tensors: ReadonlyMap<string, Tensor> }
  | { readonly kind: 'write'; readonly state: number; readonly tensors: ReadonlyMap<string, Tensor> }
  | { readonly kind: 'read'; readonly state: number; readonly names: readonly string[] | undefined }
  | { readonly kind: 'remove'; readonly state: number; readonly names: readonly string[] }
  | { readonly kind: 'drop'; readonly state: number }
  | { readonly kind: 'close' };

export interface ReplyOf {
  compile: undefined;
  run: Record<string, Tensor>;
  release: string | undefined;
  state: undefined;
  write: undefined;
  read: Map<string, Tensor>;
  remove: undefined;
  drop: undefined;
  close: undefined;
}

export type Reply =
  | { readonly id: number; readonly ok: true; readonly value: ReplyOf[Request['kind']] }
  | { readonly id: number; readonly ok: false; readonly message: string; readonly expected: boolean };
