import { parentPort } from 'node:worker_threads';
import * as ort from 'onnxruntime-node';
import { EngineError } from '../errors.js';
import type { DType } from '../tensor/dtype.js';
import { type Tensor, tensor } from '../tensor/tensor.js';
import type { Reply, ReplyOf, Request } from './node-protocol.js';

type Compile = Extract<Request, { kind: 'compile' }>;
type Run = Extract<Request, { kind: 'run' }>;

interface Compiled {
  readonly session: ort.InferenceSession;
  readonly request: Compile;
}

const programs = new Map<number, Compiled>();
const states = new Map<number, Map<string, ort.Tensor>>();

const toRuntime = (t: Tensor): ort.Tensor =>
  new ort.Tensor(t.dtype as 'float32', t.data as Float32Array, t.shape);
const toHost = (t: ort.Tensor): Tensor => tensor(t.type as DType, t.dims, t.data as Float32Array);

async function compile(request: Compile): Promise<undefined> {
  const session: Record<string, unknown> = {};
  if (request.externalFolder) session.model_external_initializers_file_folder_path = request.externalFolder;
  if (!request.prepackWeights) session.disable_prepacking = '1';
  const options: ort.InferenceSession.SessionOptions = {
    executionProviders: ['cpu'],
    graphOptimizationLevel: 'all',
    intraOpNumThreads: request.threads,
    interOpNumThreads: 1,
    // The planned arena keeps every intermediate's place for the whole run: twice the peak on a training graph.
    enableMemPattern: false,
    // Warnings about constant folding and unused initializers are not the user's.
    logSeverityLevel: 3,
    extra: { session },
    ...(request.profilePrefix ? { enableProfiling: true, profileFilePrefix: request.profilePrefix } : {}),
  };
  programs.set(request.program, {
    session: await ort.InferenceSession.create(request.bytes, options),
    request,
  });
  return undefined;
}

async function run(request: Run): Promise<Record<string, Tensor>> {
  const program = programs.get(request.program);
  if (!program) throw new Error('internal: the program was released');
  const state = request.state === undefined ? undefined : states.get(request.state);
  const feeds: Record<string, ort.Tensor> = {};
  for (const name of program.request.inputs) {
    const fed = request.feeds[name];
    const value = fed ? toRuntime(fed) : state?.get(name);
    if (!value) throw new EngineError(`input "${name}" was neither fed nor found in the state`);
    feeds[name] = value;
  }
  const results = await program.session.run(feeds);
  for (const [name, encoded] of program.request.updates) {
    if (!state) throw new EngineError(`the program updates "${name}": run it with a state`);
    state.set(name, results[encoded]!);
  }
  return Object.fromEntries(
    [...program.request.outputs].map(([name, encoded]) => [name, toHost(results[encoded]!)]),
  );
}

async function release(id: number): Promise<string | undefined> {
  const program = programs.get(id);
  if (!program) return undefined;
  programs.delete(id);
  if (program.request.profilePrefix) program.session.endProfiling();
  await program.session.release();
  return program.request.profilePrefix;
}

function read(id: number, names: readonly string[] | undefined): Map<string, Tensor> {
  const state = states.get(id);
  if (!state) throw new Error('internal: the state was released');
  return new Map(
    (names ?? [...state.keys()]).map((name) => {
      const value = state.get(name);
      if (!value) throw new EngineError(`the state has no tensor "${name}"`);
      return [name, toHost(value)];
    }),
  );
}

function write(id: number, tensors: ReadonlyMap<string, Tensor>): undefined {
  let state = states.get(id);
  if (!state) {
    state = new Map();
    states.set(id, state);
  }
  for (const [name, t] of tensors) state.set(name, toRuntime(t));
  return undefined;
}

async function answer(request: Request): Promise<ReplyOf[Request['kind']]> {
  switch (request.kind) {
    case 'compile':
      return compile(request);
    case 'run':
      return run(request);
    case 'release':
      return release(request.program);
    case 'write':
      return write(request.state, request.tensors);
    case 'read':
      return read(request.state, request.names);
    case 'drop':
      states.delete(request.state);
      return undefined;
    case 'close':
      for (const id of [...programs.keys()]) await release(id);
      states.clear();
      return undefined;
  }
}

const port = parentPort;
let queue: Promise<void> = Promise.resolve();
port?.on('message', ({ id, request }: { id: number; request: Request }) => {
  queue = queue.then(async () => {
    let reply: Reply;
    try {
      reply = { id, ok: true, value: await answer(request) };
    } catch (error) {
      const message = error instanceof Error ? error.message : String(error);
      reply = { id, ok: false, message, expected: error instanceof EngineError };
    }
    // Run outputs are fresh copies, so their memory can move; state stays here and is cloned.
    const transfer =
      reply.ok && request.kind === 'run'
        ? Object.values(reply.value as Record<string, Tensor>).map((t) => t.data.buffer as ArrayBuffer)
        : [];
    port.postMessage(reply, [...new Set(transfer)]);
    if (request.kind === 'close') port.close();
  });
});
