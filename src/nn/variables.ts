import type { Value } from '../onnx/graph.js';
import type { Shape } from '../tensor/tensor.js';
import type { Initializer, InputParameters, LoraFactors, ParameterSource } from './parameters.js';

/** Turns some of the parameters of another source into variables; the rest stays as it is. */
export class VariableWeights implements ParameterSource {
  /** @param isVariable by checkpoint name. */
  constructor(
    private readonly base: ParameterSource,
    private readonly variables: InputParameters,
    private readonly isVariable: (path: string) => boolean,
  ) {}

  parameter(path: string, shape: Shape, init: Initializer): Value {
    return (this.isVariable(path) ? this.variables : this.base).parameter(path, shape, init);
  }

  has(path: string): boolean {
    return this.base.has?.(path) ?? false;
  }

  lora(path: string, weight: Shape): LoraFactors | undefined {
    return this.base.lora?.(path, weight);
  }

  addedRows(path: string, table: Shape): Value | undefined {
    return this.base.addedRows?.(path, table);
  }
}

/** Lengthens a table of another source by variable rows, [count, dim], named after the table: the only part of the table that can change. */
export class AddedRows implements ParameterSource {
  /** @param isTable by checkpoint name. */
  constructor(
    private readonly base: ParameterSource,
    private readonly variables: InputParameters,
    private readonly isTable: (path: string) => boolean,
    private readonly count: number,
  ) {}

  parameter(path: string, shape: Shape, init: Initializer): Value {
    return this.base.parameter(path, shape, init);
  }

  has(path: string): boolean {
    return this.base.has?.(path) ?? false;
  }

  lora(path: string, weight: Shape): LoraFactors | undefined {
    return this.base.lora?.(path, weight);
  }

  addedRows(path: string, table: Shape): Value | undefined {
    if (!this.isTable(path)) return this.base.addedRows?.(path, table);
    const [, dim] = table as [number, number];
    return this.variables.parameter(addedRowsPath(path), [this.count, dim], { kind: 'zeros' });
  }
}

/** The name of the variable that holds the added rows of a table. */
export function addedRowsPath(table: string): string {
  return table.replace(/weight$/, 'added_rows');
}
