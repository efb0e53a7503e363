import type { Tensor } from '../tensor/tensor.js';

/** What the engine asks of its worker thread, and what comes back. Every request gets one reply with the same id. */
export type Request =
  | {
      readonly kind: 'compile';
      readonly program: number;
      readonly bytes: Uint8Array;
      readonly inputs: readonly string[];
      readonly outputs: ReadonlyMap<string, string>;
      readonly updates: ReadonlyMap<string, string>;
      readonly externalFolder: string | undefined;
      readonly threads: number;
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
  | { readonly kind: 'write'; readonly state: number; readonly tensors: ReadonlyMap<string, Tensor> }
  | { readonly kind: 'read'; readonly state: number; readonly names: readonly string[] | undefined }
  | { readonly kind: 'drop'; readonly state: number }
  | { readonly kind: 'close' };

export interface ReplyOf {
  compile: undefined;
  run: Record<string, Tensor>;
  release: string | undefined;
  write: undefined;
  read: Map<string, Tensor>;
  drop: undefined;
  close: undefined;
}

export type Reply =
  | { readonly id: number; readonly ok: true; readonly value: ReplyOf[Request['kind']] }
  | { readonly id: number; readonly ok: false; readonly message: string; readonly expected: boolean };
