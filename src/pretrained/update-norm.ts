import { type Lora, loraRank } from './lora.js';

/**
 * The squared Frobenius norm of a LoRA's update (alpha / rank) B A of each layer, summed over the layers. |BA|^2 = sum of (B^T B) * (A A^T), so that nothing larger than
 * rank x rank is made.
 */
export function squaredUpdate(lora: Lora): number {
  let sum = 0;
  for (const module of lora.values()) {
    const rank = loraRank(module);
    const downs = gram(module.down.data, rank, module.down.data.length / rank, 1); // rows of A
    const ups = gram(module.up.data, rank, 1, rank); // columns of B
    const scale = module.alpha / rank;
    sum += scale ** 2 * downs.reduce((total, v, i) => total + v * ups[i]!, 0);
  }
  return sum;
}

/** Inner products [rank, rank] of `rank` vectors, whose elements are `stride` apart and whose beginnings are `offset` apart. */
function gram(data: Float32Array, rank: number, offset: number, stride: number): Float64Array {
  const length = data.length / rank;
  const products = new Float64Array(rank * rank);
  for (let a = 0; a < rank; a++) {
    for (let b = a; b < rank; b++) {
      let product = 0;
      for (let i = 0; i < length; i++)
        product += data[a * offset + i * stride]! * data[b * offset + i * stride]!;
      products[a * rank + b] = product;
      products[b * rank + a] = product;
    }
  }
  return products;
}
