import type { Operator } from '../onnx/operators.js';
import { attentionRules } from './attention.js';
import { convRules } from './conv.js';
import { elementwiseRules } from './elementwise.js';
import { linalgRules } from './linalg.js';
import { movementRules } from './movement.js';
import { normRules } from './norm.js';
import { reductionRules } from './reduction.js';
import type { RuleEntry } from './rule.js';

/** The gradient rule of every operator; the type checker keeps the table total. */
export const rules: Readonly<Record<Operator, RuleEntry>> = {
  ...elementwiseRules,
  ...linalgRules,
  ...convRules,
  ...movementRules,
  ...reductionRules,
  ...normRules,
  ...attentionRules,
};
