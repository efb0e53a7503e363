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

/**
 * A start from which residual convolutional networks learn in a fraction of the steps: the last layer of every residual branch is zero, so that the network begins as
 * its straight path (Ho et al., arXiv 2006.11239, in their code; Zhang et al., arXiv 1901.09321), and the convolutions on that path keep the variance of what
 * passes through (LeCun et al., "Efficient BackProp", 1998). Models that are loaded or compared start as their authors have them; this is for training from nothing.
 */
export function residualStart(spec: ParameterSpec): ParameterSpec {
  const { path, shape, init } = spec;
  if (/(^|\.)(conv2|proj_out)\.weight$/.test(path)) return { ...spec, init: { kind: 'zeros' } };
  // The first convolution of a branch is followed by a norm, which takes its scale away.
  const straight = shape.length === 4 && init.kind === 'uniform' && !/(^|\.)conv1\.weight$/.test(path);
  return straight ? { ...spec, init: { kind: 'uniform', bound: init.bound * Math.sqrt(3) } } : spec;
}
