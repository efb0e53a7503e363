import { broadcastShapes } from './elementwise.js';
import { GraphError, type Value } from './graph.js';

/** Matrix product over the last two axes, leading axes broadcast: [..., M, K] x [..., K, N] -> [..., M, N]. Both need two axes or more. */
export function matmul(a: Value, b: Value): Value {
  const [m, k] = a.shape.slice(-2);
  const [k2, n] = b.shape.slice(-2);
  if (a.rank < 2 || b.rank < 2 || k !== k2 || a.dtype !== b.dtype)
    throw new GraphError(`matmul of ${a} and ${b}`);
  const shape = [...broadcastShapes(a.shape.slice(0, -2), b.shape.slice(0, -2)), m!, n!];
  return a.graph.add('MatMul', [a, b], [{ dtype: a.dtype, shape }])[0]!;
}

/**
 * a^T b over the last two axes, leading axes broadcast: [..., K, M] and [..., K, N] -> [..., M, N]. Other than for `matmul` of a transpose, which the engine works out
 * once for a weight and keeps, no second copy of `a` is made.
 */
export function transposedMatmul(a: Value, b: Value): Value {
  const [k, m] = a.shape.slice(-2);
  const [k2, n] = b.shape.slice(-2);
  if (a.rank < 2 || b.rank < 2 || k !== k2 || a.dtype !== b.dtype)
    throw new GraphError(`transposedMatmul of ${a} and ${b}`);
  const shape = [...broadcastShapes(a.shape.slice(0, -2), b.shape.slice(0, -2)), m!, n!];
  return a.graph.add('FusedMatMul', [a, b], [{ dtype: a.dtype, shape }], { transA: { int: 1 } })[0]!;
}

export interface GemmOptions {
  /** Added to the product; broadcasts to it. */
  readonly c?: Value | undefined;
  readonly transA?: boolean;
  readonly transB?: boolean;
  readonly alpha?: number;
  readonly beta?: number;
}

/** alpha * op(a) op(b) + beta * c of matrices, where op may transpose. */
export function gemm(a: Value, b: Value, options: GemmOptions = {}): Value {
  const { c, transA = false, transB = false, alpha = 1, beta = 1 } = options;
  if (a.rank !== 2 || b.rank !== 2 || a.dtype !== b.dtype) throw new GraphError(`gemm of ${a} and ${b}`);
  const [m, k] = transA ? [a.shape[1]!, a.shape[0]!] : [a.shape[0]!, a.shape[1]!];
  const [k2, n] = transB ? [b.shape[1]!, b.shape[0]!] : [b.shape[0]!, b.shape[1]!];
  if (k !== k2) throw new GraphError(`gemm of ${a}${transA ? '^T' : ''} and ${b}${transB ? '^T' : ''}`);
  if (c && broadcastShapes(c.shape, [m, n]).join() !== `${m},${n}`)
    throw new GraphError(`gemm cannot add ${c}`);
  return a.graph.add('Gemm', c ? [a, b, c] : [a, b], [{ dtype: a.dtype, shape: [m, n] }], {
    transA: { int: Number(transA) },
    transB: { int: Number(transB) },
    alpha: { float: alpha },
    beta: { float: beta },
  })[0]!;
}
