import { equal, exp, log, sub, where } from '../onnx/elementwise.js';
import type { Value } from '../onnx/graph.js';
import { reshape } from '../onnx/movement.js';
import { max, mean, sum } from '../onnx/reduction.js';
import { int64 } from '../tensor/tensor.js';

/** Stands for a true class that is not known. */
export const UNKNOWN_CLASS = -1;

/** log(softmax(x)) over the last axis. The largest entry is taken off first, so that no exponential overflows. */
export function logSoftmax(logits: Value): Value {
  const last = { keepDims: true };
  const shifted = sub(logits, max(logits, [-1], last));
  return sub(shifted, log(sum(exp(shifted), [-1], last)));
}

/**
 * Mean cross-entropy of logits [B, K] with the true classes [B] (int64, 0 to K - 1), in nats. A row whose class is `UNKNOWN_CLASS` adds nothing, and still counts in
 * the mean.
 */
export function crossEntropy(logits: Value, classes: Value): Value {
  const [batch, count] = logits.shape as [number, number];
  const every = logits.graph.constant(
    int64(
      [1, count],
      Array.from({ length: count }, (_, k) => k),
    ),
  );
  const isTrue = equal(reshape(classes, [batch, 1]), every); // [B, K]
  return mean(sum(where(isTrue, sub(0, logSoftmax(logits)), 0), [-1]));
}
