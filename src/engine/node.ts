import { realpathSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import path from 'node:path';
import { isMainThread, Worker } from 'node:worker_threads';
import { EngineError } from '../errors.js';
import type { Graph } from '../onnx/graph.js';
import { encodeModel } from '../onnx/protobuf.js';
import { keepSharedWeights } from '../onnx/shared-weights.js';
import type { Tensor } from '../tensor/tensor.js';
import type { Device } from './device.js';
import type { CompileOptions, Engine, NamedTensors, Program, State } from './engine.js';
import { plansInStages } from './graph-memory.js';
import type { Reply, ReplyOf, Request } from './node-protocol.js';

export interface NodeEngineOptions {
  /** Threads per operator; all processors by default. The same number gives the same bytes. */
  readonly threads?: number;
  /** The processor by default. What the device cannot run, the processor does. */
  readonly device?: Device;
}

/** The deepest folder that holds all these files. */
function commonFolder(files: readonly string[]): string | undefined {
  const folders = files.map((f) => path.dirname(f).split(path.sep));
  const first = folders[0];
  if (!first) return undefined;
  let depth = 0;
  while (depth < first.length && folders.every((f) => f[depth] === first[depth])) depth++;
  return first.slice(0, depth).join(path.sep) || path.sep;
}

/** The file itself, behind all links: the runtime refuses links that lead out of the folder that it is given. */
function realPath(file: string): string {
  try {
    return realpathSync(file);
  } catch (error) {
    throw new EngineError(
      `The weights in ${file} cannot be read: ${error instanceof Error ? error.message : String(error)}`,
      { cause: error },
    );
  }
}

function bytesInWords(bytes: number): string {
  const power = Math.min(5, Math.floor(Math.log2(Math.max(1, bytes)) / 10));
  return `${(bytes / 1024 ** power).toFixed(power > 2 ? 1 : 0)} ${['bytes', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'][power]}`;
}

/** What the worker refused, as an error that says what to do; what nobody can act on is a bug of ours. */
function explain(message: string, expected: boolean): Error {
  if (expected) return new EngineError(message);
  if (/bad_alloc|failed to allocate|out of memory|allocation failed/i.test(message)) {
    const size = /requested buffer of size (\d+)/.exec(message)?.[1];
    const asked = size ? ` (one tensor needs ${bytesInWords(Number(size))})` : '';
    return new EngineError(
      `The machine ran out of memory${asked}. Use a smaller resolution or batch, turn on gradient checkpointing, or close other programs.`,
    );
  }
  return new Error(`internal: the engine refused: ${message}`);
}

/** The reason for which a worker thread ended by itself. */
function collapse(error: Error & { readonly code?: string }): EngineError {
  if (error.code === 'ERR_WORKER_OUT_OF_MEMORY') {
    return new EngineError(
      'The engine ran out of memory. Use a smaller resolution or batch, or close other programs.',
      { cause: error },
    );
  }
  return new EngineError(
    `The engine stopped: ${error.message}. If it never starts, ONNX Runtime has no build for ${process.platform}-${process.arch}, or its installation is damaged: run npm ci again.`,
    { cause: error },
  );
}

/** A view into a larger buffer would travel with all of that buffer, and shared memory is refused by the runtime: such a tensor is copied first. */
function compact(t: Tensor): Tensor {
  const { buffer, byteLength } = t.data;
  const whole = byteLength === buffer.byteLength && buffer instanceof ArrayBuffer;
  return whole ? t : { ...t, data: t.data.slice() as Float32Array };
}

const compactAll = (tensors: NamedTensors): NamedTensors =>
  new Map([...tensors].map(([k, t]) => [k, compact(t)]));

/** Telemetry is on by default in the native library, which reads this from the environment when the worker loads it. */
function silenceTelemetry(): void {
  // Here `process.env` may be the thread's own copy, which the native library does not see.
  if (!isMainThread && process.env[TELEMETRY_OFF] !== '1') {
    throw new EngineError(
      `In a worker thread the engine cannot switch off ONNX Runtime's telemetry. Set the environment variable ${TELEMETRY_OFF}=1 on the main thread before the worker is made, or make the engine there.`,
    );
  }
  process.env[TELEMETRY_OFF] = '1';
}

/**
 * What WebGPU wants written otherwise. It promises 8 storage buffers to a shader, the whole and seven pieces of it, and the runtime does not look at this limit when it
 * splits. The runtime's fused attention was wrong by some percent on the drivers that were tried, in 32-bit floats too, and never came to an end in halves.
 */
const WEBGPU_WAYS = { mostPieces: 7, plainAttention: true } as const;

const TELEMETRY_OFF = 'ORT_DISABLE_TELEMETRY';

/** Runs graphs with ONNX Runtime, in a worker thread of its own. */
class NodeEngine implements Engine {
  readonly #worker: Worker;
  readonly #threads: number;
  readonly #device: Device;
  readonly #waiting = new Map<number, { resolve: (value: never) => void; reject: (error: Error) => void }>();
  readonly #stateIds = new WeakMap<State, number>();
  #nextId = 0;
  #ended: Error | undefined;
  #closing: Promise<void> | undefined;

  constructor(threads: number, device: Device) {
    this.#threads = threads;
    this.#device = device;
    silenceTelemetry();
    this.#worker = new Worker(new URL('./node-worker.js', import.meta.url));
    this.#worker.on('message', (reply: Reply) => {
      const waiting = this.#waiting.get(reply.id);
      this.#forget(reply.id);
      if (reply.ok) waiting?.resolve(reply.value as never);
      else waiting?.reject(explain(reply.message, reply.expected));
    });
    this.#worker.on('messageerror', (error) => this.#end(collapse(error)));
    this.#worker.on('error', (error: Error) => this.#end(collapse(error)));
    this.#worker.on('exit', () => this.#end(new EngineError('The engine was closed.')));
    this.#worker.unref();
  }

  async compile(graph: Graph, options: CompileOptions = {}): Promise<Program> {
    const sources = graph.liveSources();
    const files = new Map<string, string>();
    for (const { origin } of sources.initializers) {
      if (origin.kind === 'external' && !files.has(origin.location.path)) {
        files.set(origin.location.path, realPath(origin.location.path));
      }
    }
    const folder = commonFolder([...files.values()]);
    keepSharedWeights(graph);
    const model = encodeModel(graph, {
      externalLocation: (p) => path.relative(folder ?? '/', files.get(p) ?? p),
      ...(this.#device === 'webgpu' ? WEBGPU_WAYS : {}),
      stages: this.#device === 'cpu' && plansInStages(graph),
    });
    const program = this.#nextId++;
    await this.#ask(
      {
        kind: 'compile',
        program,
        bytes: model.bytes,
        inputs: sources.inputs.map(({ name, dtype, shape }) => ({ name, dtype, shape })),
        outputs: model.outputs,
        updates: model.updates,
        externalFolder: folder,
        threads: this.#threads,
        device: this.#device,
        prepackWeights: options.prepackWeights ?? true,
        profilePrefix: options.profilePrefix && path.resolve(options.profilePrefix),
      },
      [model.bytes.buffer as ArrayBuffer],
    );
    return {
      run: async (feeds, state) =>
        this.#ask({
          kind: 'run',
          program,
          feeds: Object.fromEntries(Object.entries(feeds).map(([name, t]) => [name, compact(t)])),
          state: state && this.#idOf(state),
        }),
      release: () => this.#ask({ kind: 'release', program }),
    };
  }

  async state(tensors: NamedTensors): Promise<State> {
    const id = this.#nextId++;
    await this.#ask({ kind: 'state', state: id, tensors: compactAll(tensors) });
    const state: State = {
      read: (names) => this.#ask({ kind: 'read', state: id, names }),
      write: (more) => this.#ask({ kind: 'write', state: id, tensors: compactAll(more) }),
      remove: (names) => this.#ask({ kind: 'remove', state: id, names }),
      release: () => this.#ask({ kind: 'drop', state: id }),
    };
    this.#stateIds.set(state, id);
    return state;
  }

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    if (this.#ended) return;
    const exited = new Promise<void>((resolve) => {
      this.#worker.once('exit', () => resolve());
    });
    await this.#ask({ kind: 'close' });
    this.#ended = new EngineError('The engine was closed.');
    this.#worker.ref();
    await exited;
  }

  #idOf(state: State): number {
    const id = this.#stateIds.get(state);
    if (id === undefined)
      throw new EngineError('The state belongs to another engine; make it with this one.');
    return id;
  }

  /** Refuses what was asked and not answered, and all that will be. The first reason is kept. */
  #end(reason: Error): void {
    this.#ended ??= reason;
    for (const { reject } of this.#waiting.values()) reject(this.#ended);
    this.#waiting.clear();
  }

  #forget(id: number): void {
    this.#waiting.delete(id);
    // The process stays alive while the worker owes an answer, and no longer.
    if (this.#waiting.size === 0) this.#worker.unref();
  }

  #ask<R extends Request>(request: R, transfer: ArrayBuffer[] = []): Promise<ReplyOf[R['kind']]> {
    if (this.#ended) return Promise.reject(this.#ended);
    const id = this.#nextId++;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.#worker.ref();
      try {
        this.#worker.postMessage({ id, request }, transfer);
      } catch (error) {
        this.#forget(id);
        reject(error instanceof Error ? error : new Error(String(error)));
      }
    });
  }
}

/**
 * Starts an engine. Its worker thread does not keep the process alive when idle.
 *
 * @throws EngineError when `threads` is not a whole number of at least 1, or in a worker thread where telemetry is not off yet. A device that cannot be used shows itself when a graph is compiled.
 */
export function createNodeEngine(options: NodeEngineOptions = {}): Engine {
  const { threads = availableParallelism() } = options;
  if (!Number.isInteger(threads) || threads < 1) {
    throw new EngineError(`threads: expected a whole number of at least 1, got ${threads}.`);
  }
  return new NodeEngine(threads, options.device ?? 'cpu');
}
