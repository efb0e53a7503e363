import type { Value } from '../onnx/graph.js';
import type { Shape } from '../tensor/tensor.js';
import {
  DerivedParameters,
  type Initializer,
  type InputParameters,
  type ParameterSource,
} from './parameters.js';

/** Turns some of the parameters of another source into variables; the rest stays as it is. */
export class VariableWeights extends DerivedParameters {
  /** @param isVariable by checkpoint name. */
  constructor(
    base: ParameterSource,
    private readonly variables: InputParameters,
    private readonly isVariable: (path: string) => boolean,
  ) {
    super(base);
  }

  override parameter(path: string, shape: Shape, init: Initializer): Value {
    return (this.isVariable(path) ? this.variables : this.base).parameter(path, shape, init);
  }
}

/** Lengthens a table of another source by variable rows, [count, dim], named after the table: the only part of the table that can change. */
export class AddedRows extends DerivedParameters {
  /** @param isTable by checkpoint name. */
  constructor(
    base: ParameterSource,
    private readonly variables: InputParameters,
    private readonly isTable: (path: string) => boolean,
    private readonly count: number,
  ) {
    super(base);
  }

  override addedRows(path: string, table: Shape): Value | undefined {
    if (!this.isTable(path)) return super.addedRows(path, table);
    const [, dim] = table as [number, number];
    return this.variables.parameter(addedRowsPath(path), [this.count, dim], { kind: 'zeros' });
  }
}

/** The name of the variable that holds the added rows of a table. */
export function addedRowsPath(table: string): string {
  return table.replace(/weight$/, 'added_rows');
}
