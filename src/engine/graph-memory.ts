import type { Graph, Node, Value } from '../onnx/graph.js';
import type { Operator } from '../onnx/operators.js';
import { keepSharedWeights } from '../onnx/shared-weights.js';
import { stagesOf } from '../onnx/stages.js';
import { bytesPerElement } from '../tensor/dtype.js';
import { largeBlock } from './allocator.js';

/** What a compiled graph takes, in bytes. */
export interface GraphMemory {
  /** Weights in the layout that kernels like, and what is computed from weights alone and kept. */
  readonly weights: number;
  /** What is computed from weights alone and given back once it has been copied into the layout that kernels like: it is there beside `weights` while compiling. */
  readonly compiling: number;
  /** What intermediate values take in a run, with inputs and outputs. */
  readonly activations: number;
  /** State that the graph updates. */
  readonly state: number;
  /** The engine's own structures. */
  readonly engine: number;
}

/** Measured: what ONNX Runtime keeps for each node of a session, and for a session at all. */
const BYTES_A_NODE = 12 * 1024;
const BYTES_A_SESSION = 2 * 2 ** 20;

/** ONNX Runtime's kernels that may write their result over an operand that nobody else needs. */
const inPlace: ReadonlySet<Operator> = new Set([
  'Neg',
  'Abs',
  'Exp',
  'Log',
  'Sqrt',
  'Reciprocal',
  'Sigmoid',
  'Tanh',
  'Relu',
  'LeakyRelu',
  'Gelu',
  'QuickGelu',
  'Add',
  'Sub',
  'Mul',
  'Div',
]);

/** The processor computes halves in float32. */
const sizeOf = ({ size, dtype, producer }: Value): number =>
  size * bytesPerElement[dtype === 'float16' && producer ? 'float32' : dtype];

/**
 * Estimates what a graph takes when ONNX Runtime has compiled it for the processor and runs it, from the graph alone: nodes are walked in the order in which they
 * were added, each value lives from where it is computed to its last use, and what it leaves is kept for the next one of its shape, if there is one. `npm run bench:memory` compares it with what is measured.
 */
export function estimateGraphMemory(graph: Graph): GraphMemory {
  keepSharedWeights(graph);
  const nodes = graph.liveNodes();
  const folded = foldedValues(graph, nodes);
  const run = runNodes(nodes, folded);
  const { weights, compiling } = weightBytes(graph, run, folded);
  const whole = heldBytes(graph, run);
  const activations = isWorthStages(graph, whole) ? heldInStages(graph, nodes) : whole;
  const state = [...graph.updates.values()].reduce((sum, v) => sum + sizeOf(v), 0);
  const engine = BYTES_A_SESSION + nodes.length * BYTES_A_NODE;
  return { weights, compiling, activations, state, engine };
}

/** What follows from weights alone: initializers, and what the runtime computes from them once, when it compiles. */
function foldedValues(graph: Graph, nodes: readonly Node[]): Set<Value> {
  const folded = new Set<Value>();
  const isFixed = (v: Value | undefined): boolean => v === undefined || (!graph.stored.has(v) && isKnown(v));
  const isKnown = (v: Value): boolean =>
    v.origin.kind === 'constant' || v.origin.kind === 'external' || folded.has(v);
  for (const node of nodes) {
    for (const v of node.inputs) if (v && isFixed(v)) folded.add(v);
    if (node.inputs.every(isFixed)) for (const v of node.outputs) folded.add(v);
  }
  return folded;
}

/**
 * Matrix products and convolutions keep a packed copy of a weight each; what it was computed from, if it was, goes after that. Any other weight, and one that is kept as
 * stored, is there once.
 */
function weightBytes(
  graph: Graph,
  run: readonly Node[],
  folded: ReadonlySet<Value>,
): Pick<GraphMemory, 'weights' | 'compiling'> {
  const plain = new Set<Value>();
  const packed = new Set<Value>();
  let weights = graph
    .liveSources()
    .initializers.filter((v) => graph.stored.has(v))
    .reduce((sum, v) => sum + sizeOf(v), 0);
  for (const { operator, inputs } of run) {
    for (const [i, value] of inputs.entries()) {
      if (!value || !folded.has(value)) continue;
      const packs =
        operator === 'MatMul' || operator === 'Gemm' || operator === 'Conv' || operator === 'ConvTranspose';
      if (packs && i === 1) {
        // Convolutions share one kernel in blocked layout.
        if (operator !== 'Conv' || !packed.has(value)) weights += sizeOf(value);
        packed.add(value);
      } else plain.add(value);
    }
  }
  for (const value of plain) if (value.origin.kind !== 'external') weights += sizeOf(value);
  const compiling = [...packed].reduce(
    (sum, value) => sum + (value.producer && !plain.has(value) ? sizeOf(value) : 0),
    0,
  );
  return { weights, compiling };
}

/** Half a gigabyte of activations: what a training step of a large model holds. */
const LARGE_PLAN = 2 ** 29;

/** Whether a graph's memory is to be planned in stages: where it asks for it, and holds so much that they are worth what they cost. */
export function plansInStages(graph: Graph): boolean {
  if (!graph.staged) return false;
  const nodes = graph.liveNodes();
  return isWorthStages(graph, heldBytes(graph, runNodes(nodes, foldedValues(graph, nodes))));
}

/** @param whole what it holds when it is planned as a whole */
const isWorthStages = (graph: Graph, whole: number): boolean => graph.staged && whole >= LARGE_PLAN;

/** The nodes that are computed in each run. */
const runNodes = (nodes: readonly Node[], folded: ReadonlySet<Value>): Node[] =>
  nodes.filter((node) => !node.outputs.every((v) => folded.has(v)));

/** What intermediate values take in a run in stages: each is planned by itself, beside what earlier stages left to later ones. */
function heldInStages(graph: Graph, nodes: readonly Node[]): number {
  const { stages } = stagesOf(graph, nodes);
  const lastReader = new Map<Value, number>();
  stages.forEach(({ incoming }, i) => {
    for (const v of incoming) lastReader.set(v, i);
  });
  for (const v of results(graph)) lastReader.set(v, stages.length);
  let left: readonly Value[] = [];
  let most = 0;
  stages.forEach((stage, i) => {
    const beside = left.reduce((sum, v) => sum + sizeOf(v), 0);
    most = Math.max(most, beside + heldByShape(stage.nodes, new Set(stage.outgoing)));
    left = [...left, ...stage.outgoing].filter((v) => lastReader.get(v)! > i);
  });
  return fedBytes(graph) + most;
}

const results = (graph: Graph): Value[] => [...graph.outputs.values(), ...graph.updates.values()];

const fedBytes = (graph: Graph): number => graph.liveSources().inputs.reduce((sum, v) => sum + sizeOf(v), 0);

/** What intermediate values take in a run that is planned as a whole, with inputs and outputs. */
export const heldBytes = (graph: Graph, order: readonly Node[]): number =>
  fedBytes(graph) + heldByShape(order, new Set(results(graph)));

/**
 * The engine plans ahead that the place of a value that is no longer needed is taken by the next one of the same type and shape, and holds it until then, whether those of
 * other shapes are needed at that moment or not. A place that none will take is given back: a large one to the system, while smaller ones stay with the process, so that of each of
 * their shapes as many count as are ever alive at once.
 *
 * @param kept results that stay to the end
 */
function heldByShape(order: readonly Node[], kept: ReadonlySet<Value>): number {
  // Values that share one piece of memory, by the value that it was made for.
  const owner = new Map<Value, Value>();
  const ownerOf = (v: Value): Value => owner.get(v) ?? v;
  const uses = new Map<Value, number>();
  const use = (v: Value, n: number): number => {
    const left = (uses.get(ownerOf(v)) ?? 0) + n;
    uses.set(ownerOf(v), left);
    return left;
  };
  const remaining = new Map<Value, number>();
  for (const { inputs } of order)
    for (const v of inputs) if (v) remaining.set(v, (remaining.get(v) ?? 0) + 1);
  const own = new Set<Value>();
  const courses = new Map<string, Course>();
  let now = 0;
  const hold = (v: Value, sign: 1 | -1): void => {
    const shape = `${v.dtype} ${v.shape.join()}`;
    const course = courses.get(shape) ?? { place: sizeOf(v), times: [], live: [] };
    courses.set(shape, course);
    course.live.push((course.live.at(-1) ?? 0) + sign * course.place);
    course.times.push(now++);
  };
  for (const node of order) {
    const [first] = node.outputs;
    for (const output of node.outputs) {
      const base =
        output === first
          ? node.inputs.find((v, i) => {
              if (!v || !own.has(v) || kept.has(v)) return false;
              if (node.operator === 'Reshape') return i === 0;
              const alone = remaining.get(v) === 1 && uses.get(ownerOf(v)) === 1;
              return inPlace.has(node.operator) && alone && sizeOf(v) === sizeOf(output);
            })
          : undefined;
      own.add(output);
      if (base) owner.set(output, ownerOf(base));
      else hold(output, 1);
      use(output, (remaining.get(output) ?? 0) + (kept.has(output) ? 1 : 0));
    }
    for (const v of node.inputs) {
      if (!v || !own.has(v)) continue;
      remaining.set(v, remaining.get(v)! - 1);
      if (use(v, -1) === 0) hold(ownerOf(v), -1);
    }
    for (const output of node.outputs) {
      if (uses.get(ownerOf(output)) === 0) hold(ownerOf(output), -1);
    }
  }
  const all = [...courses.values()];
  const small = all.filter(({ place }) => place < largeBlock);
  const large = all.filter(({ place }) => place >= largeBlock);
  return small.reduce((sum, { live }) => sum + highest(live), 0) + heldTogether(large, now);
}

/** How much of one shape is alive, in the order of time. */
interface Course {
  /** Bytes of one value. */
  readonly place: number;
  /** When it changes. */
  readonly times: number[];
  /** Bytes from then on. */
  readonly live: number[];
}

const highest = (values: readonly number[]): number => values.reduce((most, v) => Math.max(most, v), 0);

/** The most that is held of all these shapes at any time before `end`: of each what is alive, and places that were taken before and will be again. */
function heldTogether(courses: readonly Course[], end: number): number {
  const changes = new Float64Array(end);
  for (const { times, live } of courses) {
    const past = runningMaximum(live);
    const future = runningMaximum([...live].reverse()).reverse();
    const held = live.map((bytes, i) => Math.max(bytes, Math.min(past[i]!, future[i]!)));
    held.forEach((bytes, i) => {
      changes[times[i]!] = bytes - (held[i - 1] ?? 0);
    });
  }
  let held = 0;
  return changes.reduce((most, change) => {
    held += change;
    return Math.max(most, held);
  }, 0);
}

function runningMaximum(values: readonly number[]): number[] {
  let most = 0;
  return values.map((v) => {
    most = Math.max(most, v);
    return most;
  });
}
