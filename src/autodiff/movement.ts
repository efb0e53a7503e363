import { cast, equal } from '../onnx/elementwise.js';
import type { Value } from '../onnx/graph.js';
import { gemm } from '../onnx/linalg.js';
import { concat, depthToSpace, reshape, slice, spaceToDepth, split, transpose } from '../onnx/movement.js';
import { int64, zeros } from '../tensor/tensor.js';
import { dilateAxis, padAxis } from './axes.js';
import { constantInts, intAttribute, intsAttribute, operand, type Rule } from './rule.js';

export const movementRules = {
  Reshape: (c) => [
    () => {
      // Of a chain of reshapes only the last one counts.
      let source = c.grad;
      while (source.producer?.operator === 'Reshape') source = source.producer.inputs[0]!;
      return reshape(source, operand(c, 0).shape);
    },
  ],
  Transpose: (c) => {
    const perm = intsAttribute(c.attributes, 'perm');
    return [
      () =>
        transpose(
          c.grad,
          perm.map((_, i) => perm.indexOf(i)),
        ),
    ];
  },
  DepthToSpace: (c) => [() => spaceToDepth(c.grad, intAttribute(c.attributes, 'blocksize'))],
  SpaceToDepth: (c) => [() => depthToSpace(c.grad, intAttribute(c.attributes, 'blocksize'))],
  Concat: (c) => {
    const axis = intAttribute(c.attributes, 'axis');
    const sizes = c.inputs.map((_, i) => operand(c, i).shape[axis]!);
    let pieces: readonly Value[] | undefined;
    return sizes.map((_, i) => () => {
      pieces ??= split(c.grad, sizes, axis);
      return pieces[i]!;
    });
  },
  Split: (c) => {
    const axis = intAttribute(c.attributes, 'axis');
    const grads = c.outputs.map(
      (y, i) => c.grads[i] ?? cast(y.graph.constant(zeros(y.shape), 'zeros'), y.dtype),
    );
    return [() => concat(grads, axis)];
  },
  Slice: (c) => [
    () => {
      const x = operand(c, 0);
      const [start, , axis, step] = [1, 2, 3, 4].map((i) => constantInts(operand(c, i))[0]!) as [
        number,
        number,
        number,
        number,
      ];
      const extent = x.shape[axis]!;
      const first = start < 0 ? start + extent : start;
      let g = c.grad;
      const count = g.shape[axis]!;
      if (step < 0 && count > 1) g = slice(g, axis, count - 1, -1 - count, -1);
      if (Math.abs(step) > 1) g = dilateAxis(g, axis, Math.abs(step) - 1);
      const low = Math.min(first, first + (count - 1) * step);
      return padAxis(g, axis, low, extent - low - g.shape[axis]!);
    },
  ],
  Pad: (c) => [
    () => {
      const x = operand(c, 0);
      const before = constantInts(operand(c, 1));
      return x.shape.reduce(
        (g, extent, axis) => slice(g, axis, before[axis]!, before[axis]! + extent),
        c.grad,
      );
    },
  ],
  // The walk sums a gradient down to its operand's shape, which is all that undoes an expansion.
  Expand: (c) => [() => c.grad],
  Gather: (c) => [
    () => {
      // Rows that were picked several times add up: a product with the one-hot matrix, which is deterministic however many threads work on it.
      const [x, indices] = [operand(c, 0), operand(c, 1)];
      const axis = intAttribute(c.attributes, 'axis');
      const rows = x.shape[axis]!;
      const [front, back] = [x.shape.slice(0, axis), x.shape.slice(axis + 1)];
      const rank = c.grad.rank;
      const picked = Array.from({ length: indices.rank }, (_, i) => axis + i);
      const others = Array.from({ length: rank }, (_, i) => i).filter((i) => !picked.includes(i));
      const flat = reshape(transpose(c.grad, [...picked, ...others]), [indices.size, -1]);
      const places = x.graph.constant(
        int64(
          [1, rows],
          Array.from({ length: rows }, (_, i) => i),
        ),
        'rows',
      );
      const oneHot = cast(equal(reshape(indices, [indices.size, 1]), places), x.dtype);
      const summed = reshape(gemm(oneHot, flat, { transA: true }), [rows, ...front, ...back]);
      const order = Array.from({ length: x.rank }, (_, i) => (i < axis ? i + 1 : i === axis ? 0 : i));
      return transpose(summed, order);
    },
  ],
} satisfies Record<string, Rule>;
