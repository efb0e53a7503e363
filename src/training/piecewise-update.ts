import type { Engine, Program, State } from '../engine/engine.js';
import { cast, div, not } from '../onnx/elementwise.js';
import { Graph, type Value } from '../onnx/graph.js';
import { clippingFactor, globalNorm, scaleAll } from '../optim/clipping.js';
import { ema } from '../optim/ema.js';
import { allFinite } from '../optim/loss-scale.js';
import { groups, type Optimizer, type Parameter } from '../optim/optimizer.js';
import { elementCount, type Tensor, zeros } from '../tensor/tensor.js';
import { LOSS_SCALE } from './loss-scaler.js';

/** Where a step leaves a parameter's gradient, or the sum of several steps', in the state. */
export const accumulatedName = (parameter: string): string => `accumulated.${parameter}`;

/** How parameters are updated from gradients. */
export interface UpdateSettings {
  readonly maxGradNorm: number;
  readonly ema: boolean;
  readonly optimizer: Optimizer;
}

/** Some of the parameters, with the graph that updates them. */
export interface Piece {
  readonly graph: Graph;
  readonly parameters: readonly Parameter[];
}

/**
 * The update of all parameters from the gradients in the state, piece by piece: it never holds old and new values of more than a piece, and lets go of gradients as
 * they are used.
 */
export interface PiecewiseGraphs {
  /** Gives `gradientNorm`, and in half precision `overflowed`, 1 where a gradient is not finite; the pieces are not run then. */
  readonly measure: Graph;
  /** Fed what the whole update is, and the `gradientNorm`. */
  readonly pieces: readonly Piece[];
  /** Whether gradients are sums that start again at zero. */
  readonly sums: boolean;
}

/** Parameters of so many bytes are updated in pieces: old values, gradients, moments and all new values beside them would take much memory. */
const LARGE_BYTES = 2 ** 28;
/** Parameters of a piece, unless one alone is larger. */
const PIECE_BYTES = 2 ** 27;

const bytesOf = (parameters: readonly Pick<Parameter, 'shape'>[]): number =>
  parameters.reduce((sum, { shape }) => sum + 4 * elementCount(shape), 0);

/** Whether parameters are so large that they had better be updated in pieces. */
export const isLarge = (parameters: readonly Pick<Parameter, 'shape'>[]): boolean =>
  bytesOf(parameters) >= LARGE_BYTES;

const NORM = 'gradientNorm';
const OVERFLOWED = 'overflowed';

/**
 * Builds a piecewise update. Its numbers are those of the whole update in one graph: the norm is over all gradients, and the optimiser's state has the same names.
 *
 * @param half whether the gradients are those of a loss that was multiplied by the fed `loss_scale`
 * @param pieceBytes what the parameters of a piece may take
 */
export function buildPiecewiseUpdate(
  parameters: readonly Parameter[],
  settings: UpdateSettings,
  { half, sums, pieceBytes = PIECE_BYTES }: { half: boolean; sums: boolean; pieceBytes?: number },
): PiecewiseGraphs {
  const gradientsOf = (graph: Graph, own: readonly Parameter[]): Value[] => {
    const given = own.map(({ name, shape }) => graph.input(accumulatedName(name), 'float32', shape));
    return half ? scaleAll(given, div(1, graph.input(LOSS_SCALE, 'float32', []))) : given;
  };
  const measure = new Graph('gradient_norm');
  const all = gradientsOf(measure, parameters);
  measure.output(NORM, globalNorm(all));
  if (half) measure.output(OVERFLOWED, cast(not(allFinite(all)), 'float32'));

  const pieces = cut(parameters, pieceBytes).map(({ firstGroup, members }): Piece => {
    const graph = new Graph(`update_from_group_${firstGroup}`);
    const own = members.map(({ name, shape }) => graph.input(name, 'float32', shape));
    const factor = clippingFactor(graph.input(NORM, 'float32', []), settings.maxGradNorm);
    settings.optimizer.update(graph, own, scaleAll(gradientsOf(graph, members), factor), firstGroup);
    if (settings.ema) ema(graph, own);
    return { graph, parameters: members };
  });
  return { measure, pieces, sums };
}

/** Cuts parameters where an optimiser's groups end. */
function cut(
  parameters: readonly Parameter[],
  pieceBytes: number,
): { firstGroup: number; members: Parameter[] }[] {
  const pieces: { firstGroup: number; members: Parameter[] }[] = [];
  groups(parameters.map(({ shape }) => shape)).forEach((indices, group) => {
    const own = indices.map((i) => parameters[i]!);
    const last = pieces.at(-1);
    if (last && bytesOf([...last.members, ...own]) <= pieceBytes) last.members.push(...own);
    else pieces.push({ firstGroup: group, members: own });
  });
  return pieces;
}

/** A piecewise update, compiled. */
export class PiecewiseUpdate {
  private constructor(
    private readonly graphs: PiecewiseGraphs,
    private readonly measure: Program,
    private readonly pieces: readonly Program[],
  ) {}

  static async compile(engine: Engine, graphs: PiecewiseGraphs): Promise<PiecewiseUpdate> {
    const pieces: Program[] = [];
    for (const { graph } of graphs.pieces) pieces.push(await engine.compile(graph));
    return new PiecewiseUpdate(graphs, await engine.compile(graphs.measure), pieces);
  }

  /** Updates what the state holds, with the feeds of the optimiser, of the averages and of the loss scale. Returns `gradientNorm`, and in half precision `overflowed`. */
  async run(feeds: Readonly<Record<string, Tensor>>, state: State): Promise<Record<string, Tensor>> {
    const measured = await this.measure.run(feeds, state);
    const skipped = measured[OVERFLOWED]?.data[0] === 1;
    for (const [i, program] of this.pieces.entries()) {
      if (!skipped) await program.run({ ...feeds, [NORM]: measured[NORM]! }, state);
      await this.#empty(state, this.graphs.pieces[i]!.parameters);
    }
    return measured;
  }

  async #empty(state: State, parameters: readonly Parameter[]): Promise<void> {
    await state.remove(parameters.map(({ name }) => accumulatedName(name)));
    if (!this.graphs.sums) return;
    for (const { name, shape } of parameters)
      await state.write(new Map([[accumulatedName(name), zeros(shape)]]));
  }

  async release(): Promise<void> {
    for (const program of [this.measure, ...this.pieces]) await program.release();
  }
}
