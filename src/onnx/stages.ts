import type { Graph, Node, Value } from './graph.js';

/** A run of nodes whose memory the engine plans apart from the rest. */
export interface Stage {
  readonly nodes: readonly Node[];
  /** Views of what earlier stages made, written once more in each stage that reads them: handed on as a result a view would be copied. */
  readonly views: readonly Node[];
  /** What its nodes and views read of earlier stages. */
  readonly incoming: readonly Value[];
  /** What later stages read of its nodes, or the graph returns. */
  readonly outgoing: readonly Value[];
}

export interface Stages {
  /** What follows from initializers alone: it belongs to no stage, so that all share what the engine computes of it once. */
  readonly frozen: readonly Node[];
  readonly stages: readonly Stage[];
}

/** Nodes of a stage. On a step at the size of Stable Diffusion 1.5 stages of 100 to 400 hold as much, and those of 1500 a quarter more. */
const STAGE = 400;

/**
 * Cuts a graph into stages. ONNX Runtime plans once for a whole graph which values take the place of which earlier ones, by their shapes, and holds a place until its last
 * value is done: of each shape as much as is ever alive of it, whether those of other shapes are needed at that moment or not. It plans a stage by itself, and gives back what
 * it took at its end.
 *
 * @param nodes in an order in which they can run
 */
export function stagesOf(graph: Graph, nodes: readonly Node[]): Stages {
  const isFrozen = ({ outputs }: Node): boolean => graph.isFrozen(outputs[0]!);
  const frozen = nodes.filter(isFrozen);
  const moving = nodes.filter((node) => !isFrozen(node));
  const stageOf = new Map(moving.map((node, i) => [node, Math.floor(i / STAGE)]));
  const parts = Array.from({ length: Math.ceil(moving.length / STAGE) }, (_, i) => {
    const own = moving.slice(i * STAGE, (i + 1) * STAGE);
    return { own, ...sourcesOf(own, (producer) => (stageOf.get(producer) ?? i) < i) };
  });
  const handedOn = new Set<Value>([...graph.outputs.values(), ...graph.updates.values()]);
  for (const { incoming } of parts) for (const v of incoming) handedOn.add(v);
  const stages = parts.map(({ own, views, incoming }) => ({
    nodes: own,
    views,
    incoming,
    outgoing: own.flatMap(({ outputs }) => outputs).filter((v) => handedOn.has(v)),
  }));
  return { frozen, stages };
}

/** What nodes read of earlier ones, and the views between. */
function sourcesOf(
  nodes: readonly Node[],
  isEarlier: (producer: Node) => boolean,
): Pick<Stage, 'views' | 'incoming'> {
  const views = new Set<Node>();
  const incoming = new Set<Value>();
  const read = (v: Value): void => {
    const { producer } = v;
    if (!producer || !isEarlier(producer)) return;
    if (producer.operator !== 'Reshape') incoming.add(v);
    else if (!views.has(producer)) {
      // What it is a view of comes first.
      read(producer.inputs[0]!);
      views.add(producer);
    }
  };
  for (const { inputs } of nodes) for (const v of inputs) if (v) read(v);
  return { views: [...views], incoming: [...incoming] };
}
