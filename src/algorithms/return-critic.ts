import { conv2d } from '../nn/conv2d.js';
import { initialParameters } from '../nn/initialize.js';
import { linear } from '../nn/linear.js';
import { InputParameters, type ParameterSource, Scope } from '../nn/parameters.js';
import { add, div, maximum, mul, silu, sqrt, square, sub } from '../onnx/elementwise.js';
import { Graph, type Value } from '../onnx/graph.js';
import { concat, expand, reshape, slice } from '../onnx/movement.js';
import { mean } from '../onnx/reduction.js';
import type { Random } from '../tensor/random.js';
import { full, type Shape, type Tensor, zeros } from '../tensor/tensor.js';

const WIDTHS = [32, 64, 64] as const;
const HIDDEN = 64;
/** Of the running moments, a step. */
const DECAY = 0.98;

/** What the critic judges: a state of the denoising process with the action that the policy takes there, as where that leads. */
export interface CriticState {
  /** xhat_0, scaled latents [I, C, h, w]. */
  readonly heading: Value;
  /** x_0 of the photograph, scaled latents [I, C, h, w]. */
  readonly clean: Value;
  /** sqrt(1 - abar_t), [I, 1, 1, 1]. */
  readonly noiseLevel: Value;
}

/** How well the critic foretells, over the last 50 steps or so; scalars. */
export interface CriticFit {
  /** Of what it expected and what came; 1 is perfect. */
  readonly correlation: Value;
  /** 1 - E[(y - Q)^2] / Var(y), at least -1: 1 is perfect, 0 no better than the mean. */
  readonly explainedVariance: Value;
}

/** The state that holds the running moments: a row for each reward, of the columns below. */
const MOMENTS = 'critic.moments';
const columns = ['weight', 'y', 'yy', 'q', 'qq', 'qy'] as const;

/**
 * A critic Q_phi of any rewards, one head each. Unlike the released code's, which sees the residual alone, it sees where the policy is heading, the photograph and
 * the noise level; it is convolutional with a mean over places at its end, so it takes any resolution.
 *
 * Heads speak in their target's own scale: what the network says is multiplied by the running deviation of the targets and added to their running mean, so that a
 * reward of thousands and one of thousandths are learnt at the same rate.
 */
export class ReturnCritic {
  readonly #graph: Graph;
  readonly #names: readonly string[];
  readonly #inputs: InputParameters;
  readonly #moments: Value;

  /** @param names of the rewards it learns, in the order of its heads */
  constructor(graph: Graph, names: readonly string[]) {
    this.#graph = graph;
    this.#names = names;
    this.#inputs = new InputParameters(graph, 'critic.');
    this.#moments = graph.input(MOMENTS, 'float32', [names.length, columns.length]);
  }

  /** Q_phi of each row and reward, [I, K]. */
  values(state: CriticState): Value {
    return this.#scaled(this.#network(this.#inputs, state));
  }

  /**
   * The critic's turn: its squared error on targets [I, K], in units of their running deviation, as a function of copies of its parameters, so that targets that were
   * bootstrapped from the critic itself stay constant. Declares the next running moments.
   */
  turn(
    state: CriticState,
    target: Value,
  ): {
    loss: Value;
    parameters: readonly Value[];
    copies: readonly Value[];
    expected: Value;
    fit: CriticFit[];
  } {
    const copies = new Map<string, Value>();
    const copied: ParameterSource = {
      parameter: (path, shape, init) => {
        const known = copies.get(path) ?? mul(this.#inputs.parameter(path, shape, init), 1);
        copies.set(path, known);
        return known;
      },
    };
    const expected = this.#scaled(this.#network(copied, state)); // [I, K]
    const error = div(sub(expected, target), this.#scale().deviation);
    const next = this.#nextMoments(expected, target);
    this.#graph.update(this.#moments, next);
    return {
      loss: mean(square(error)),
      parameters: [...copies.keys()].map((path) => this.#inputs.values.get(path)!),
      copies: [...copies.values()],
      expected,
      fit: this.#names.map((_, k) => fitFrom(slice(next, 0, k, k + 1))),
    };
  }

  #network(source: ParameterSource, { heading, clean, noiseLevel }: CriticState): Value {
    const scope = new Scope(source);
    const [rows, , h, w] = heading.shape as [number, number, number, number];
    let x = concat([heading, clean, expand(noiseLevel, [rows, 1, h, w])], 1); // [I, 2 C + 1, h, w]
    WIDTHS.forEach((out, i) => {
      const stride = i === 0 ? 1 : 2;
      x = silu(conv2d(scope.at('conv', i), x, { in: x.shape[1]!, out, kernel: 3, stride, padding: 1 }));
    });
    const places = mean(x, [2, 3]); // [I, 64]
    const hidden = silu(linear(scope.at('hidden'), places, { in: places.shape[1]!, out: HIDDEN }));
    // Heads start at zero, and with them the gradient that the policy gets: it follows nothing that the critic has not learnt.
    return linear(scope.at('heads'), hidden, {
      in: HIDDEN,
      out: this.#names.length,
      weightInit: { kind: 'zeros' },
      biasInit: { kind: 'zeros' },
    });
  }

  #scaled(output: Value): Value {
    const { average, deviation } = this.#scale();
    return add(mul(output, deviation), average);
  }

  /** Running mean and deviation of the targets, [1, K]. While few have been seen, a deviation of 1 stands for those to come. */
  #scale(): { average: Value; deviation: Value } {
    const column = (name: (typeof columns)[number]): Value => columnOf(this.#moments, name);
    const weight = column('weight'); // [1, K]
    const known = maximum(weight, 1e-8);
    const average = div(column('y'), known);
    const variance = maximum(sub(div(column('yy'), known), square(average)), 0);
    const blended = add(mul(variance, weight), sub(1, weight));
    return { average, deviation: sqrt(add(blended, 1e-8)) };
  }

  #nextMoments(expected: Value, target: Value): Value {
    const parts = [
      mean(target, [0]),
      mean(square(target), [0]),
      mean(expected, [0]),
      mean(square(expected), [0]),
      mean(mul(expected, target), [0]),
    ].map((v) => reshape(v, [-1, 1])); // [K, 1] each
    const seen = this.#graph.constant(full([this.#names.length, 1], 1), 'seen');
    return add(mul(this.#moments, DECAY), mul(concat([seen, ...parts], 1), 1 - DECAY));
  }

  /** Fresh state of a critic of these rewards, for latents [B, C, h, w]. */
  static initial(shape: Shape, names: readonly string[], random: Random): Map<string, Tensor> {
    return new Map<string, Tensor>([
      ...initialParameters(ReturnCritic.#specs(shape, names), random),
      [MOMENTS, zeros([names.length, columns.length])],
    ]);
  }

  /** Names and shapes of what its optimiser trains. */
  static parameters(shape: Shape, names: readonly string[]): { name: string; shape: Shape }[] {
    return ReturnCritic.#specs(shape, names).map((s) => ({ name: s.input, shape: s.shape }));
  }

  static #specs([, ...latent]: Shape, names: readonly string[]) {
    const graph = new Graph('shapes');
    const critic = new ReturnCritic(graph, names);
    critic.values({
      heading: graph.input('heading', 'float32', [1, ...latent]),
      clean: graph.input('clean', 'float32', [1, ...latent]),
      noiseLevel: graph.input('noise', 'float32', [1, 1, 1, 1]),
    });
    return critic.#inputs.specs;
  }
}

/** A column of the moments [K, 6] as [1, K]. */
function columnOf(moments: Value, name: (typeof columns)[number]): Value {
  const at = columns.indexOf(name);
  return reshape(slice(moments, 1, at, at + 1), [1, -1]);
}

function fitFrom(moments: Value): CriticFit {
  const weight = columnOf(moments, 'weight');
  const [y, yy, q, qq, qy] = (['y', 'yy', 'q', 'qq', 'qy'] as const).map((name) =>
    reshape(div(columnOf(moments, name), weight), []),
  ) as [Value, Value, Value, Value, Value];
  const varianceOfY = maximum(sub(yy, square(y)), 0);
  const varianceOfQ = maximum(sub(qq, square(q)), 0);
  const covariance = sub(qy, mul(q, y));
  const squaredError = maximum(add(sub(yy, mul(qy, 2)), qq), 0);
  return {
    correlation: div(covariance, add(sqrt(mul(varianceOfQ, varianceOfY)), 1e-12)),
    explainedVariance: maximum(sub(1, div(squaredError, add(varianceOfY, 1e-12))), -1),
  };
}
