import type { Random } from '../tensor/random.js';
import { full, type Shape, type Tensor, zeros } from '../tensor/tensor.js';
import type { Initializer, ParameterSpec } from './parameters.js';

/** A fresh parameter of this shape. */
export function initialTensor(init: Initializer, shape: Shape, random: Random): Tensor<'float32'> {
  switch (init.kind) {
    case 'zeros':
      return zeros(shape);
    case 'ones':
      return full(shape, 1);
    case 'uniform':
      return random.uniforms(shape, -init.bound, init.bound);
    case 'normal': {
      const drawn = random.normals(shape);
      for (let i = 0; i < drawn.data.length; i++) drawn.data[i] = drawn.data[i]! * init.std;
      return drawn;
    }
  }
}

/** Fresh parameters by the name of their graph input. Each draws from a stream named by its path, so the order does not matter. */
export function initialParameters(
  specs: readonly ParameterSpec[],
  random: Random,
): Map<string, Tensor<'float32'>> {
  return new Map(specs.map((s) => [s.input, initialTensor(s.init, s.shape, random.derive(s.path))]));
}
