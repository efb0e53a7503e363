import { conv2d } from '../onnx/conv.js';
import { add, leakyRelu, relu } from '../onnx/elementwise.js';
import type { Graph, Value } from '../onnx/graph.js';
import { gemm } from '../onnx/linalg.js';
import { reshape } from '../onnx/movement.js';
import { mapPlanes } from '../onnx/resampling.js';
import type { Random } from '../tensor/random.js';
import { float32, type Shape, type Tensor } from '../tensor/tensor.js';

const HIDDEN = 64;
const SLOPE = 0.01;

/** A tensor of the critic: where it starts is uniform in [0, bound]. */
interface CriticParameter {
  readonly name: string;
  readonly shape: Shape;
  readonly bound: number;
}

/** The critic's parameters for residuals [B, C, h, w]. All start positive, so that from the first step more residual means a higher value. */
function criticParameters([, c, h, w]: Shape): CriticParameter[] {
  const flat = h! * w!;
  return [
    { name: 'critic.conv.weight', shape: [1, c!, 3, 3], bound: 1 / 9 },
    { name: 'critic.conv.bias', shape: [1], bound: 1 / 9 },
    { name: 'critic.fc1.weight', shape: [HIDDEN, flat], bound: 1 / flat },
    { name: 'critic.fc1.bias', shape: [HIDDEN], bound: 1 / flat },
    { name: 'critic.fc2.weight', shape: [1, HIDDEN], bound: 1 / HIDDEN },
    { name: 'critic.fc2.bias', shape: [1], bound: 1 / HIDDEN },
  ];
}

/**
 * The critic Q_phi of the official implementation of arXiv 2407.06642: conv 3x3 to one channel, LeakyReLU, flatten, linear to 64, ReLU, linear to 1. There the
 * flattened extent is fixed to 64 x 64; here it is that of the run's square latents, so any resolution works. Residuals of another shape (aspect-ratio buckets) are
 * averaged onto that grid, so that all shapes share one critic.
 */
export class Critic {
  readonly #parameters: ReadonlyMap<string, Value>;
  readonly #grid: readonly [number, number];

  /** @param grid the shape that the first linear layer is made for, [B, C, h, w] */
  constructor(graph: Graph, grid: Shape) {
    this.#grid = [grid[2]!, grid[3]!];
    this.#parameters = new Map(
      criticParameters(grid).map((p) => [p.name, graph.input(p.name, 'float32', p.shape)]),
    );
  }

  /** The graph inputs, by name. */
  get parameters(): readonly Value[] {
    return [...this.#parameters.values()];
  }

  /** Residuals [B, C, h, w] -> values [B]. */
  value(residual: Value): Value {
    const p = (name: string): Value => this.#parameters.get(`critic.${name}`)!;
    const batch = residual.shape[0]!;
    let x = leakyRelu(conv2d(residual, p('conv.weight'), p('conv.bias'), { padding: 1 }), SLOPE);
    x = reshape(averaged(x, this.#grid), [batch, -1]); // [B, h * w]
    x = relu(add(gemm(x, p('fc1.weight'), { transB: true }), p('fc1.bias')));
    x = add(gemm(x, p('fc2.weight'), { transB: true }), p('fc2.bias'));
    return reshape(x, [batch]);
  }

  /** Fresh parameters for residuals of this shape. */
  static initial(shape: Shape, random: Random): Map<string, Tensor> {
    return new Map(
      criticParameters(shape).map((p) => [p.name, random.derive(p.name).uniforms(p.shape, 0, p.bound)]),
    );
  }
}

/** [B, C, h, w] on a grid of other sides: each cell is the mean of the window that it stands for, as PyTorch's adaptive_avg_pool2d has it. */
function averaged(x: Value, [height, width]: readonly [number, number]): Value {
  const [, , h, w] = x.shape as [number, number, number, number];
  return h === height && w === width ? x : mapPlanes(x, windows(height, h), windows(width, w));
}

/** The means of `to` windows over `from` places, as a matrix [to, from]: window i reaches from floor(i from / to) to ceil((i + 1) from / to). */
function windows(to: number, from: number): Tensor<'float32'> {
  const matrix = new Float32Array(to * from);
  for (let i = 0; i < to; i++) {
    const [start, end] = [Math.floor((i * from) / to), Math.ceil(((i + 1) * from) / to)];
    matrix.fill(1 / (end - start), i * from + start, i * from + end);
  }
  return float32([to, from], matrix);
}
