import { readdirSync } from 'node:fs';
import path from 'node:path';
import { parentPort } from 'node:worker_threads';
import * as ort from 'onnxruntime-node';
import { EngineError } from '../errors.js';
import type { DType } from '../tensor/dtype.js';
import { type Tensor, tensor } from '../tensor/tensor.js';
import { deviceFault, lacksHalves } from './device.js';
import type { InputSpec, Reply, ReplyOf, Request } from './node-protocol.js';

type Compile = Extract<Request, { kind: 'compile' }>;
type Run = Extract<Request, { kind: 'run' }>;
type StateValues = Map<string, ort.Tensor>;

interface Compiled {
  readonly session: ort.InferenceSession;
  readonly request: Compile;
}

const programs = new Map<number, Compiled>();
const states = new Map<number, StateValues>();

const toRuntime = (t: Tensor): ort.Tensor =>
  new ort.Tensor(t.dtype as 'float32', t.data as Float32Array, t.shape);
const toHost = (t: ort.Tensor): Tensor => tensor(t.type as DType, t.dims, t.data as Float32Array);

/** Only fatal messages are printed: everything else comes back as an error, or is about constant folding and unused initializers. */
const FATAL = 4;

async function compile(request: Compile): Promise<undefined> {
  const { device } = request;
  // A device that the package was not built with would be left out in silence.
  if (device !== 'cpu' && !ort.listSupportedBackends().some(({ name }) => name === device)) {
    throw new EngineError(deviceFault(device, 'ONNX Runtime for this platform does not have it'));
  }
  const session: Record<string, unknown> = {};
  if (request.externalFolder) session.model_external_initializers_file_folder_path = request.externalFolder;
  if (!request.prepackWeights) session.disable_prepacking = '1';
  const options: ort.InferenceSession.SessionOptions = {
    executionProviders: device === 'cpu' ? ['cpu'] : [device, 'cpu'],
    graphOptimizationLevel: 'all',
    intraOpNumThreads: request.threads,
    interOpNumThreads: 1,
    // The planned arena keeps every intermediate's place for the whole run: twice the peak on a training graph.
    enableMemPattern: false,
    // The arena's regions grow by doubling and are given back only with the session: a full-size step takes a gigabyte less without, and about the same time.
    enableCpuMemArena: false,
    logSeverityLevel: FATAL,
    extra: { session },
    ...(request.profilePrefix ? { enableProfiling: true, profileFilePrefix: request.profilePrefix } : {}),
  };
  // For what is logged before a session has its own level; read when the first is made.
  ort.env.logLevel = 'fatal';
  // A device that is not there throws, although the processor is listed after it.
  const created = ort.InferenceSession.create(request.bytes, options).catch((error: unknown) => {
    if (device === 'cpu') throw error;
    throw new EngineError(deviceFault(device, error instanceof Error ? error.message : String(error)));
  });
  programs.set(request.program, { session: await created, request });
  return undefined;
}

const described = (dtype: string, shape: readonly number[]): string => `${dtype} [${shape.join(', ')}]`;

/** The value of an input: what is fed goes before what the state holds. */
function inputValue(
  { name, dtype, shape }: InputSpec,
  fed: Tensor | undefined,
  state: StateValues | undefined,
): ort.Tensor {
  const value = fed ? { dtype: fed.dtype, shape: fed.shape } : undefined;
  const kept = fed ? undefined : state?.get(name);
  const found = value ?? (kept && { dtype: kept.type, shape: kept.dims });
  if (!found) {
    throw new EngineError(
      `The input "${name}" (${described(dtype, shape)}) is missing: it was not fed and ${state ? 'the state does not hold it' : 'no state was given'}.`,
    );
  }
  if (found.dtype !== dtype || found.shape.join() !== shape.join()) {
    throw new EngineError(
      `The input "${name}" takes ${described(dtype, shape)}, but ${fed ? 'what was fed' : 'what the state holds'} is ${described(found.dtype, found.shape)}. A program is compiled for one shape: compile the graph again for another.`,
    );
  }
  return kept ?? toRuntime(fed!);
}

async function run(request: Run): Promise<Record<string, Tensor>> {
  const program = programs.get(request.program);
  if (!program) throw new EngineError('The program was released; compile the graph again.');
  const { inputs, outputs, updates } = program.request;
  const state = request.state === undefined ? undefined : stateOf(request.state);
  if (updates.size > 0 && !state) {
    throw new EngineError(
      `The program updates ${[...updates.keys()].map((name) => `"${name}"`).join(', ')}: run it with a state.`,
    );
  }
  const feeds: Record<string, ort.Tensor> = {};
  for (const spec of inputs) feeds[spec.name] = inputValue(spec, request.feeds[spec.name], state);
  const results = await program.session.run(feeds).catch((error: unknown) => {
    const { device } = program.request;
    const reason = error instanceof Error ? error.message : String(error);
    throw device !== 'cpu' && lacksHalves(reason) ? new EngineError(deviceFault(device, reason)) : error;
  });
  for (const [name, encoded] of updates) state!.set(name, results[encoded]!);
  return Object.fromEntries([...outputs].map(([name, encoded]) => [name, toHost(results[encoded]!)]));
}

async function release(id: number): Promise<string | undefined> {
  const program = programs.get(id);
  if (!program) return undefined;
  programs.delete(id);
  const { profilePrefix } = program.request;
  if (profilePrefix) program.session.endProfiling();
  await program.session.release();
  return profilePrefix && profileFile(profilePrefix);
}

/** The runtime puts the time behind the prefix, so of several files the last one was written last. */
function profileFile(prefix: string): string | undefined {
  const [folder, start] = [path.dirname(prefix), path.basename(prefix)];
  const files = readdirSync(folder).filter((f) => f.startsWith(`${start}_`) && f.endsWith('.json'));
  const last = files.sort().at(-1);
  return last && path.join(folder, last);
}

function stateOf(id: number): StateValues {
  const state = states.get(id);
  if (!state) throw new EngineError('The state was released.');
  return state;
}

function read(id: number, names: readonly string[] | undefined): Map<string, Tensor> {
  const state = stateOf(id);
  return new Map(
    (names ?? [...state.keys()]).map((name) => {
      const value = state.get(name);
      if (!value) throw new EngineError(`The state has no tensor "${name}".`);
      return [name, toHost(value)];
    }),
  );
}

function write(id: number, tensors: ReadonlyMap<string, Tensor>): undefined {
  const state = stateOf(id);
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
    case 'state':
      states.set(request.state, new Map());
      return write(request.state, request.tensors);
    case 'write':
      return write(request.state, request.tensors);
    case 'read':
      return read(request.state, request.names);
    case 'remove': {
      const state = stateOf(request.state);
      for (const name of request.names) state.delete(name);
      return undefined;
    }
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
