import { type Graph, GraphError, type Value } from '../graph.js';
import { graphTensor, type HostTensor } from './host-tensor.js';
import type { FileNode } from './model.js';

/** What a name of the file stands for: something known already, or a value of the graph. */
export type Known = { readonly host: HostTensor } | { readonly value: Value };

/** Why a node of a file cannot be taken over, in words that follow its name. */
export class ImportFault extends Error {}

/** A node of a file while it is taken over, with its inputs looked up and its attributes at hand. */
export class NodeContext {
  constructor(
    readonly graph: Graph,
    readonly node: FileNode,
    readonly opset: number,
    private readonly inputs: readonly (Known | undefined)[],
  ) {}

  get count(): number {
    return this.inputs.length;
  }

  has(i: number): boolean {
    return this.inputs[i] !== undefined;
  }

  /** Input i as a value of the graph. */
  value(i: number): Value {
    const known = this.inputs[i];
    if (!known) throw new ImportFault(`its input ${i} is missing`);
    return 'value' in known ? known.value : this.graph.constant(graphTensor(known.host), 'constant');
  }

  values(): Value[] {
    return this.inputs.map((_, i) => this.value(i));
  }

  /** Input i where it is known already. */
  host(i: number): HostTensor | undefined {
    const known = this.inputs[i];
    return known && 'host' in known ? known.host : undefined;
  }

  shape(i: number): readonly number[] {
    const known = this.inputs[i];
    if (!known) throw new ImportFault(`its input ${i} is missing`);
    return 'host' in known ? known.host.shape : known.value.shape;
  }

  /** Input i as numbers that have to be known. */
  numbers(i: number, what: string): number[] {
    const known = this.host(i);
    if (known) return Array.from(known.data);
    throw new ImportFault(`${what} is worked out from the picture; it has to be constant`);
  }

  int(name: string, fallback: number): number {
    return this.node.attributes.get(name)?.int ?? fallback;
  }

  float(name: string, fallback: number): number {
    return this.node.attributes.get(name)?.float ?? fallback;
  }

  string(name: string, fallback: string): string {
    return this.node.attributes.get(name)?.string ?? fallback;
  }

  ints(name: string): readonly number[] | undefined {
    return this.node.attributes.get(name)?.ints;
  }

  /** Refuses an attribute that has another value than the one that can be done. */
  must(name: string, found: string | number, ...supported: readonly (string | number)[]): void {
    if (!supported.includes(found)) {
      throw new ImportFault(`${name} is ${JSON.stringify(found)}; supported: ${supported.join(', ')}`);
    }
  }

  /** The axes that attribute or input `axes` names, counted from the front; undefined where none are given. */
  axes(rank: number, input = 1): number[] | undefined {
    const given = this.ints('axes') ?? (this.has(input) ? this.numbers(input, 'its axes') : undefined);
    return given?.map((a) => {
      const axis = a < 0 ? a + rank : a;
      if (axis < 0 || axis >= rank) throw new GraphError(`axis ${a} of rank ${rank}`);
      return axis;
    });
  }
}
