import { realpathSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import path from 'node:path';
import { Worker } from 'node:worker_threads';
import { EngineError } from '../errors.js';
import type { Graph } from '../onnx/graph.js';
import { encodeModel } from '../onnx/protobuf.js';
import type { Tensor } from '../tensor/tensor.js';
import type { CompileOptions, Engine, NamedTensors, Program, State } from './engine.js';
import type { Reply, ReplyOf, Request } from './node-protocol.js';

export interface NodeEngineOptions {
  /** Threads per operator; all processors by default. The same number gives the same bytes. */
  readonly threads?: number;
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

function explain(message: string, expected: boolean): Error {
  if (expected) return new EngineError(message);
  if (/bad_alloc|failed to allocate|out of memory|allocation failed/i.test(message)) {
    return new EngineError(
      `The machine ran out of memory (${message.slice(0, 200)}). Use a smaller resolution or batch, turn on gradient checkpointing, or close other programs.`,
    );
  }
  return new Error(`internal: the engine refused: ${message}`);
}

/** A view into a larger buffer would travel with all of that buffer: such a tensor is copied first. */
function compact(t: Tensor): Tensor {
  return t.data.byteLength === t.data.buffer.byteLength ? t : { ...t, data: t.data.slice() as Float32Array };
}

const compactAll = (tensors: NamedTensors): NamedTensors =>
  new Map([...tensors].map(([k, t]) => [k, compact(t)]));

/** Runs graphs on the processor with ONNX Runtime, in a worker thread of its own. */
class NodeEngine implements Engine {
  readonly #worker: Worker;
  readonly #threads: number;
  readonly #waiting = new Map<number, { resolve: (value: never) => void; reject: (error: Error) => void }>();
  readonly #stateIds = new WeakMap<State, number>();
  #nextId = 0;
  #ended: Error | undefined;

  constructor(threads: number) {
    this.#threads = threads;
    // Read by the native library when it is loaded, which happens in the worker: telemetry is on by default there.
    process.env.ORT_DISABLE_TELEMETRY = '1';
    this.#worker = new Worker(new URL('./node-worker.js', import.meta.url));
    this.#worker.on('message', (reply: Reply) => {
      const waiting = this.#waiting.get(reply.id);
      this.#waiting.delete(reply.id);
      if (this.#waiting.size === 0) this.#worker.unref();
      if (reply.ok) waiting?.resolve(reply.value as never);
      else waiting?.reject(explain(reply.message, reply.expected));
    });
    const fail = (error: Error): void => {
      this.#ended = error;
      for (const { reject } of this.#waiting.values()) reject(error);
      this.#waiting.clear();
    };
    this.#worker.on('error', fail);
    this.#worker.on('exit', () => fail(new EngineError('The engine was closed.')));
    this.#worker.unref();
  }

  async compile(graph: Graph, options: CompileOptions = {}): Promise<Program> {
    const files = new Map<string, string>();
    for (const { origin } of graph.liveSources().initializers) {
      if (origin.kind === 'external' && !files.has(origin.location.path)) {
        files.set(origin.location.path, realpathSync(origin.location.path));
      }
    }
    const folder = commonFolder([...files.values()]);
    const model = encodeModel(graph, {
      externalLocation: (p) => path.relative(folder ?? '/', files.get(p) ?? p),
    });
    const program = this.#nextId++;
    await this.#ask(
      {
        kind: 'compile',
        program,
        ...model,
        externalFolder: folder,
        threads: this.#threads,
        prepackWeights: options.prepackWeights ?? true,
        profilePrefix: options.profilePrefix,
      },
      [model.bytes.buffer as ArrayBuffer],
    );
    return {
      run: (feeds, state) =>
        this.#ask({
          kind: 'run',
          program,
          feeds: Object.fromEntries(Object.entries(feeds).map(([name, t]) => [name, compact(t)])),
          state: state && this.#stateIds.get(state),
        }),
      release: () => this.#ask({ kind: 'release', program }),
    };
  }

  async state(tensors: NamedTensors): Promise<State> {
    const id = this.#nextId++;
    await this.#ask({ kind: 'write', state: id, tensors: compactAll(tensors) });
    const state: State = {
      read: (names) => this.#ask({ kind: 'read', state: id, names }),
      write: (more) => this.#ask({ kind: 'write', state: id, tensors: compactAll(more) }),
      release: () => this.#ask({ kind: 'drop', state: id }),
    };
    this.#stateIds.set(state, id);
    return state;
  }

  async close(): Promise<void> {
    if (this.#ended) return;
    await this.#ask({ kind: 'close' });
    await new Promise<void>((resolve) => {
      if (this.#ended) resolve();
      else this.#worker.once('exit', () => resolve());
      this.#worker.ref();
    });
  }

  #ask<R extends Request>(request: R, transfer: ArrayBuffer[] = []): Promise<ReplyOf[R['kind']]> {
    if (this.#ended) return Promise.reject(this.#ended);
    const id = this.#nextId++;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      // The process stays alive while the worker owes an answer, and no longer.
      this.#worker.ref();
      this.#worker.postMessage({ id, request }, transfer);
    });
  }
}

/** Starts an engine on the processor. Its worker thread does not keep the process alive when idle. */
export function createNodeEngine(options: NodeEngineOptions = {}): Engine {
  return new NodeEngine(options.threads ?? availableParallelism());
}
