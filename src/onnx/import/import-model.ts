import { ModelError } from '../../errors.js';
import { cast } from '../elementwise.js';
import { type ExternalData, type Graph, GraphError, type Value } from '../graph.js';
import { folds } from './folds.js';
import { hostTensor } from './host-tensor.js';
import type { FileModel, FileNode, FileTensor } from './model.js';
import { ImportFault, type Known, NodeContext } from './node-context.js';
import { builders, shapeReaders } from './operators.js';

/** Larger tensors than this are not worked out beforehand. */
const MOST_FOLDED = 1 << 16;

export interface ImportOptions {
  /** How errors name the file. */
  readonly file: string;
  /** The file and place of a tensor whose bytes lie outside the model. */
  readonly locate: (tensor: FileTensor) => ExternalData;
}

/**
 * Adds an ONNX model to a graph, in operators of ours, with all shapes worked out from those of the inputs. What depends on shapes and constants alone is worked out
 * on the way.
 *
 * @param inputs what the model's inputs stand for
 * @returns the model's outputs, by name
 * @throws ModelError naming at once every operator and attribute that cannot be taken over
 */
export function importModel(
  graph: Graph,
  model: FileModel,
  inputs: ReadonlyMap<string, Value>,
  options: ImportOptions,
): Map<string, Value> {
  const known = new Map<string, Known | 'faulty'>([...inputs].map(([name, value]) => [name, { value }]));
  for (const [name, tensor] of model.initializers) known.set(name, initializer(graph, tensor, options));
  const faults = new Faults();
  for (const node of model.nodes) {
    const results = takeOver(graph, node, model.opset, known, faults);
    node.outputs.forEach((name, i) => {
      if (name !== '') known.set(name, results?.[i] ?? 'faulty');
    });
  }
  if (faults.any) throw faults.error(options.file);
  return new Map(
    model.outputs.map(({ name }) => {
      const found = known.get(name);
      if (!found || found === 'faulty') {
        throw new ModelError(
          `${options.file}: nothing in the graph gives its output ${JSON.stringify(name)}.`,
        );
      }
      if ('value' in found) return [name, found.value];
      throw new ModelError(
        `${options.file}: the output ${JSON.stringify(name)} does not depend on the picture, so it is no reward.`,
      );
    }),
  );
}

function takeOver(
  graph: Graph,
  node: FileNode,
  opset: number,
  known: ReadonlyMap<string, Known | 'faulty'>,
  faults: Faults,
): readonly Known[] | undefined {
  const operator = node.domain === '' ? node.operator : `${node.domain}.${node.operator}`;
  const [build, fold, readShape] = [builders[operator], folds[operator], shapeReaders[operator]];
  if (!build && !fold && !readShape) {
    faults.unsupported(operator);
    return undefined;
  }
  const found = node.inputs.map((name) => (name === '' ? undefined : known.get(name)));
  const missing = node.inputs.find((name, i) => name !== '' && found[i] === undefined);
  if (missing !== undefined) {
    faults.add(operator, node, `its input ${JSON.stringify(missing)} is not made before it`);
    return undefined;
  }
  // What cannot be taken over has been named; what follows from it is not its own fault.
  if (found.includes('faulty')) return undefined;
  const operands = found as (Known | undefined)[];
  const c = new NodeContext(graph, node, opset, operands);
  try {
    if (readShape) return [{ host: readShape(c) }];
    const small = operands.every((o) => !o || ('host' in o && o.host.data.length <= MOST_FOLDED));
    if (fold && small) return [fold(c)].flat().map((host) => ({ host }));
    if (!build)
      throw new ImportFault('it has no gradient, so it is only supported where its inputs are constant');
    return [build(c)].flat().map((value) => ({ value }));
  } catch (error) {
    if (!(error instanceof ImportFault || error instanceof GraphError)) throw error;
    faults.add(operator, node, error.message);
    return undefined;
  }
}

function initializer(graph: Graph, file: FileTensor, { locate }: ImportOptions): Known {
  const { bytes } = file;
  if (bytes instanceof Uint8Array) return { host: hostTensor({ ...file, bytes }) };
  const { type, shape, name } = file;
  if (type === 'double' || type === 'uint8' || type === 'int32') {
    throw new ModelError(
      `the tensor ${JSON.stringify(name)} is ${type} outside the file; supported: float32, float16, int64`,
    );
  }
  const value = graph.external(`onnx.${name}`, type, shape, locate(file));
  return { value: type === 'float16' || type === 'bfloat16' ? cast(value, 'float32') : value };
}

/** What cannot be taken over, gathered so that it is said at once. */
class Faults {
  readonly #unsupported = new Map<string, number>();
  readonly #others: string[] = [];

  get any(): boolean {
    return this.#unsupported.size > 0 || this.#others.length > 0;
  }

  unsupported(operator: string): void {
    this.#unsupported.set(operator, (this.#unsupported.get(operator) ?? 0) + 1);
  }

  add(operator: string, node: FileNode, reason: string): void {
    this.#others.push(`${operator}${node.name === '' ? '' : ` (${node.name})`}: ${reason}`);
  }

  error(file: string): ModelError {
    const operators = [...this.#unsupported].map(([name, n]) => (n > 1 ? `${name} (${n} times)` : name));
    const parts = [
      ...(operators.length > 0 ? [`operators that are not supported: ${operators.join(', ')}`] : []),
      ...this.#others,
    ];
    return new ModelError(
      `${file} cannot be used as a differentiable model:\n  ${parts.join('\n  ')}\nExport it without these, or give it as a black box, for example behind an HTTP endpoint.`,
    );
  }
}
