import { add, div, exp, mul, sub } from '../onnx/elementwise.js';
import type { Value } from '../onnx/graph.js';
import { concat, split } from '../onnx/movement.js';
import { max, mean, sum } from '../onnx/reduction.js';
import { logSoftmax } from './classification.js';

export interface SelfDistillationSettings {
  /** Default 0.1. */
  readonly studentTemperature?: number;
  /** Lower than the student's, so that its answers are sharper. Default 0.05. */
  readonly teacherTemperature?: number;
}

/** Rounds of normalisation; DINOv2 takes 3. */
const ROUNDS = 3;

/**
 * DINO's objective (Caron et al., arXiv 2104.14294, eq. 1 and 2): what the student says of one view has to be what the teacher, an average of earlier students, says
 * of another view of the same thing. The teacher's answers are balanced over the batch by Sinkhorn-Knopp (Caron et al., arXiv 2006.09882, section 3.1), as DINOv2
 * does (arXiv 2304.07193, section 4), in place of a running centre: it needs no state.
 *
 * @param student scores [B, K] of each view, at least two views
 * @param teacher scores [B, K] of the same views; no gradient is asked of it
 * @returns the mean cross-entropy over all pairs of different views, in nats
 */
export function selfDistillationLoss(
  student: readonly Value[],
  teacher: readonly Value[],
  { studentTemperature = 0.1, teacherTemperature = 0.05 }: SelfDistillationSettings = {},
): Value {
  if (student.length < 2 || student.length !== teacher.length) {
    throw new Error('internal: self-distillation needs at least two views, the same for both networks');
  }
  const rows = student.map((s) => s.shape[0]!);
  const targets = split(balanced(div(concat(teacher, 0), teacherTemperature)), rows, 0);
  const answers = student.map((s) => logSoftmax(div(s, studentTemperature)));
  const pairs = targets.flatMap((target, t) =>
    answers.flatMap((answer, s) => (s === t ? [] : [mean(sum(mul(target, answer), [-1]))])),
  );
  return mul(
    pairs.reduce((a, b) => add(a, b)),
    -1 / pairs.length,
  );
}

/** Sinkhorn-Knopp: scores [N, K] to distributions [N, K] over the K prototypes, of which each takes about the same share of the batch. */
function balanced(scores: Value): Value {
  let q = exp(sub(scores, max(scores, [0, 1], { keepDims: true })));
  for (let i = 0; i < ROUNDS; i++) {
    q = div(q, sum(q, [0], { keepDims: true }));
    q = div(q, sum(q, [1], { keepDims: true }));
  }
  return q;
}
