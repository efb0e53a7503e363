import { type ConvOptions, conv2d } from '../onnx/conv.js';
import { add, cast, mul } from '../onnx/elementwise.js';
import type { Graph, Value } from '../onnx/graph.js';
import { gemm } from '../onnx/linalg.js';
import type { Shape } from '../tensor/tensor.js';
import {
  DerivedParameters,
  type InputParameters,
  type LoraFactors,
  type ParameterSource,
} from './parameters.js';

/** y + scale * up(down(x)) for rows x [N, in] and y [N, out] (Hu et al., "LoRA", arXiv 2106.09685, eq. 3), in the type of x. */
export function addLora(y: Value, x: Value, factors: LoraFactors): Value {
  const { down, up, scale } = inTypeOf(x, factors);
  const narrow = gemm(x, down, { transB: true }); // [N, rank]
  return gemm(narrow, up, { transB: true, alpha: scale, c: y }); // [N, out]
}

/** y + scale * up(down(x)) for a convolution: `down` has its kernel, stride and padding, `up` is 1x1. */
export function addConvLora(y: Value, x: Value, factors: LoraFactors, options: ConvOptions): Value {
  const { down, up, scale } = inTypeOf(x, factors);
  const update = conv2d(conv2d(x, down, undefined, options), up); // [B, rank, H', W'] -> [B, out, H', W']
  return add(y, scale === 1 ? update : mul(update, scale));
}

const inTypeOf = (x: Value, { down, up, scale }: LoraFactors): LoraFactors => ({
  down: cast(down, x.dtype),
  up: cast(up, x.dtype),
  scale,
});

export interface LoraOptions {
  readonly rank: number;
  /** The update is scaled by alpha / rank. */
  readonly alpha: number;
  /** Which linear layers, by module path, get an update. */
  readonly targets: (modulePath: string) => boolean;
}

/**
 * Adds trainable low-rank updates to the parameters of another source. The factors are variables, `<module>.lora_A.weight` [rank, in] and
 * `<module>.lora_B.weight` [out, rank]; A starts as a linear layer does, B at zero, so the first output is the base model's.
 */
export class LoraParameters extends DerivedParameters {
  constructor(
    base: ParameterSource,
    private readonly factors: InputParameters,
    private readonly options: LoraOptions,
  ) {
    super(base);
  }

  override lora(path: string, weight: Shape): LoraFactors | undefined {
    const { rank, alpha, targets } = this.options;
    const [outFeatures, inFeatures] = weight as [number, number];
    if (!targets(path)) return super.lora(path, weight);
    return {
      down: this.factors.parameter(`${path}.lora_A.weight`, [rank, inFeatures], {
        kind: 'uniform',
        bound: 1 / Math.sqrt(inFeatures),
      }),
      up: this.factors.parameter(`${path}.lora_B.weight`, [outFeatures, rank], { kind: 'zeros' }),
      scale: alpha / rank,
    };
  }
}

/** The shapes of one layer's two factors. */
export interface FactorShapes {
  readonly down: Shape;
  readonly up: Shape;
}

/**
 * Adds low-rank updates that do not train to the parameters of another source, for linear layers and convolutions alike. The factors, with their scale in `up`, are
 * inputs of the graph, named as `fixedLoraInputs` says.
 */
export class FixedLora extends DerivedParameters {
  readonly #values = new Map<string, LoraFactors>();

  /**
   * @param modules the layers that are updated, by component and module path.
   * @param component the name before the module paths of this source, and in the names of the inputs.
   */
  constructor(
    base: ParameterSource,
    private readonly graph: Graph,
    private readonly modules: ReadonlyMap<string, FactorShapes>,
    private readonly component: string,
  ) {
    super(base);
  }

  override lora(path: string): LoraFactors | undefined {
    const module = `${this.component}.${path}`;
    const shapes = this.modules.get(module);
    if (shapes === undefined) return undefined;
    let factors = this.#values.get(path);
    if (factors === undefined) {
      const names = fixedLoraInputs(module);
      factors = {
        down: this.graph.input(names.down, 'float32', shapes.down),
        up: this.graph.input(names.up, 'float32', shapes.up),
        scale: 1,
      };
      this.#values.set(path, factors);
    }
    return factors;
  }
}

/** The names of the graph inputs that take the factors of a layer. */
export function fixedLoraInputs(module: string): { readonly down: string; readonly up: string } {
  return { down: `${module}.lora.down`, up: `${module}.lora.up` };
}
