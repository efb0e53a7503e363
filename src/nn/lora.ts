import type { Graph, Value } from '../onnx/graph.js';
import { gemm } from '../onnx/linalg.js';
import type { Shape } from '../tensor/tensor.js';
import {
  type Initializer,
  InputParameters,
  type LoraFactors,
  type ParameterSource,
  type ParameterSpec,
} from './parameters.js';

/** y + scale * up(down(x)) for rows x [N, in] and y [N, out] (Hu et al., "LoRA", arXiv 2106.09685, eq. 3). */
export function addLora(y: Value, x: Value, { down, up, scale }: LoraFactors): Value {
  const narrow = gemm(x, down, { transB: true }); // [N, rank]
  return gemm(narrow, up, { transB: true, alpha: scale, c: y }); // [N, out]
}

export interface LoraOptions {
  readonly rank: number;
  /** The update is scaled by alpha / rank. */
  readonly alpha: number;
  /** Which linear layers, by module path, get an update. */
  readonly targets: (modulePath: string) => boolean;
  /** Put before the names of the graph inputs, for example `unet.`. */
  readonly prefix?: string;
  /** Factors that are inputs of the graph already, by input name. */
  readonly factors?: ReadonlyMap<string, Value>;
}

/**
 * Adds trainable low-rank updates to the parameters of another source. The factors are inputs of the graph, named `<prefix><module>.lora_A.weight` [rank, in] and
 * `<prefix><module>.lora_B.weight` [out, rank]; A starts as a linear layer does, B at zero, so the first output is the base model's.
 */
export class LoraParameters implements ParameterSource {
  readonly #base: ParameterSource;
  readonly #options: LoraOptions;
  readonly #factors: InputParameters;

  constructor(base: ParameterSource, graph: Graph, options: LoraOptions) {
    this.#base = base;
    this.#options = options;
    this.#factors = new InputParameters(graph, options.prefix ?? '', options.factors);
  }

  /** The factors asked for so far. */
  get specs(): readonly ParameterSpec[] {
    return this.#factors.specs;
  }

  /** The factors' graph inputs by path. */
  get values(): ReadonlyMap<string, Value> {
    return this.#factors.values;
  }

  parameter(path: string, shape: Shape, init: Initializer): Value {
    return this.#base.parameter(path, shape, init);
  }

  has(path: string): boolean {
    return this.#base.has?.(path) ?? false;
  }

  lora(path: string, inFeatures: number, outFeatures: number): LoraFactors | undefined {
    const { rank, alpha, targets } = this.#options;
    if (!targets(path)) return this.#base.lora?.(path, inFeatures, outFeatures);
    return {
      down: this.#factors.parameter(`${path}.lora_A.weight`, [rank, inFeatures], {
        kind: 'uniform',
        bound: 1 / Math.sqrt(inFeatures),
      }),
      up: this.#factors.parameter(`${path}.lora_B.weight`, [outFeatures, rank], { kind: 'zeros' }),
      scale: alpha / rank,
    };
  }
}
