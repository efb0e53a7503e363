import type { Graph } from '../onnx/graph.js';
import type { Tensor } from '../tensor/tensor.js';

export type NamedTensors = ReadonlyMap<string, Tensor>;

export interface CompileOptions {
  /**
   * Keep a copy of the constant weights in the layout that the kernels like best. Faster, at the price of the weights' size in memory; without it they stay
   * mapped from their file and are shared between programs. Default true.
   */
  readonly prepackWeights?: boolean;
  /** Write the engine's own profile (a JSON event for each operator that runs) into a file whose path begins with this. */
  readonly profilePrefix?: string;
}

/** Named tensors that live where programs run, so that weights and optimiser moments do not travel at each step. */
export interface State {
  /** Copies of these tensors, or of all. Throws an EngineError for a name that is not there. */
  read(names?: readonly string[]): Promise<Map<string, Tensor>>;
  /** Adds or replaces tensors. */
  write(tensors: NamedTensors): Promise<void>;
  /** Drops tensors; names that are not there are ignored. */
  remove(names: readonly string[]): Promise<void>;
  /** Frees the memory. */
  release(): Promise<void>;
}

/** A compiled graph. */
export interface Program {
  /**
   * Runs the graph once. Inputs that are not fed are taken from `state`; the graph's updates are written to it, all or, when the run fails, none. Names that the
   * graph does not read are ignored. Returns the named outputs.
   *
   * @throws EngineError when an input is missing or of another type or shape, when the graph updates a state and none is given, or when memory runs out.
   */
  run(feeds: Readonly<Record<string, Tensor>>, state?: State): Promise<Record<string, Tensor>>;
  /** Ends the profile, if one was asked for, and frees the program's memory. Resolves to the profile's path. It cannot be run any more. */
  release(): Promise<string | undefined>;
}

/** Compiles graphs and runs them, off the caller's event loop. One call runs at a time; later ones queue. */
export interface Engine {
  compile(graph: Graph, options?: CompileOptions): Promise<Program>;
  state(tensors: NamedTensors): Promise<State>;
  /** Waits for what was asked before, then frees everything. Later calls of the engine, its programs and its states are refused with an EngineError. */
  close(): Promise<void>;
}
