import type { TensorEntry, TensorStream } from '../formats/safetensors.js';
import { readEntry, readEntryPieces, type SafetensorsFile } from '../formats/safetensors-file.js';
import type { Shape, Tensor } from '../tensor/tensor.js';

/** A tensor of a checkpoint, and where its bytes lie. */
export interface Weight {
  readonly file: SafetensorsFile;
  /** Its place in the file. Of a tensor that several parameters share it is this parameter's part, under the name of the whole. */
  readonly entry: TensorEntry;
  /** The file holds the transpose of the matrix; `entry` has the shape that is stored. */
  readonly transposed?: boolean;
}

/** The shape as a model knows it. */
export function weightShape({ entry, transposed }: Weight): Shape {
  return transposed ? [...entry.shape].reverse() : entry.shape;
}

/** Reads a weight into memory, in the type that it is stored in. */
export async function readWeightTensor({ file, entry, transposed }: Weight): Promise<Tensor> {
  const stored = await readEntry(file, entry);
  return transposed ? transposedMatrix(stored) : stored;
}

/** A weight as a tensor of a new file, under another name; read when its turn comes. */
export function weightStream(name: string, weight: Weight): TensorStream {
  const { file, entry, transposed } = weight;
  return {
    name,
    dtype: entry.dtype,
    shape: weightShape(weight),
    async *bytes() {
      if (!transposed) yield* readEntryPieces(file, entry);
      else {
        const { data } = await readWeightTensor(weight);
        yield new Uint8Array(data.buffer as ArrayBuffer, data.byteOffset, data.byteLength);
      }
    },
  };
}

/** [R, C] to [C, R]. */
export function transposedMatrix<T extends Tensor>(matrix: T): T {
  const [rows, columns] = matrix.shape as [number, number];
  const data = matrix.data.slice();
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++) data[c * rows + r] = matrix.data[r * columns + c]!;
  }
  return { ...matrix, shape: [columns, rows], data };
}

/** Part `index` of `count` equal parts of a tensor's first axis. */
export function weightPart({ file, entry }: Weight, index: number, count: number): Weight {
  const byteLength = entry.byteLength / count;
  const [rows, ...rest] = entry.shape;
  const shape = [rows! / count, ...rest];
  return { file, entry: { ...entry, shape, offset: entry.offset + index * byteLength, byteLength } };
}

/** The same bytes as another shape of as many elements. */
export function reshapedWeight({ file, entry }: Weight, shape: Shape): Weight {
  return { file, entry: { ...entry, shape } };
}
