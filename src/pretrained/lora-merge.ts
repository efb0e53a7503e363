import { ModelError } from '../errors.js';
import { type TensorEntry, type TensorStream, tensorFromBytes } from '../formats/safetensors.js';
import { readEntryPieces, type SafetensorsFile } from '../formats/safetensors-file.js';
import { elementCount, float32, fromFloat32, type Tensor, toFloat32 } from '../tensor/tensor.js';
import { foldedModule, type Lora, type LoraModule, loraRank } from './lora.js';
import type { Weight } from './weight.js';

/** The largest number that half precision holds. */
const LARGEST_HALF = 65504;

/** Updates of the tensors of files: for each file, for each of its tensors by name, the layers that change it. */
export type FileUpdates = ReadonlyMap<string, ReadonlyMap<string, readonly LayerUpdate[]>>;

interface LayerUpdate {
  readonly weight: Weight;
  readonly module: LoraModule;
}

/**
 * Where the updates of a LoRA belong, by the paths of the files and the names of the tensors in them.
 *
 * @param weightOf the weight of a layer by its module path; the LoRA fits it (see `fittedLora`).
 */
export function fileUpdates(lora: Lora, weightOf: (module: string) => Weight): FileUpdates {
  const files = new Map<string, Map<string, LayerUpdate[]>>();
  for (const [name, module] of lora) {
    const weight = weightOf(name);
    const tensors = files.get(weight.file.path) ?? new Map<string, LayerUpdate[]>();
    files.set(weight.file.path, tensors);
    const updates = tensors.get(weight.entry.name) ?? [];
    tensors.set(weight.entry.name, updates);
    updates.push({ weight, module });
  }
  return files;
}

/** The tensors of a file with its updates added, in the file's order and types. One tensor at a time is in memory, and only if it changes. */
export function updatedTensors(file: SafetensorsFile, updates: FileUpdates): TensorStream[] {
  const own = updates.get(file.path);
  return [...file.entries.values()].map((entry) => {
    const changes = own?.get(entry.name);
    return {
      name: entry.name,
      dtype: entry.dtype,
      shape: entry.shape,
      bytes: () => (changes ? changedBytes(file, entry, changes) : readEntryPieces(file, entry)),
    };
  });
}

async function* changedBytes(
  file: SafetensorsFile,
  entry: TensorEntry,
  updates: readonly LayerUpdate[],
): AsyncGenerator<Uint8Array> {
  const { dtype } = entry;
  if (dtype !== 'float32' && dtype !== 'float16' && dtype !== 'bfloat16') {
    throw new ModelError(
      `${file.path}: tensor ${JSON.stringify(entry.name)} is of type ${dtype}; expected float32, float16 or bfloat16.`,
    );
  }
  const stored = new Uint8Array(entry.byteLength);
  let position = 0;
  for await (const piece of readEntryPieces(file, entry)) {
    stored.set(piece, position);
    position += piece.length;
  }
  const values = toFloat32(tensorFromBytes(entry, stored));
  for (const { weight, module } of updates) {
    const bytesEach = entry.byteLength / values.data.length;
    const start = (weight.entry.offset - entry.offset) / bytesEach;
    addUpdate(
      values.data.subarray(start, start + elementCount(weight.entry.shape)),
      module,
      weight.transposed,
    );
  }
  const limit = dtype === 'float16' ? LARGEST_HALF : Number.MAX_VALUE;
  if (!values.data.every((v) => Math.abs(v) <= limit)) {
    throw new ModelError(
      `${file.path}: with the LoRA, tensor ${JSON.stringify(entry.name)} has values that ${dtype} cannot hold, or that are no numbers. Merge with a smaller weight; if that does not help, the model or the LoRA is damaged.`,
    );
  }
  const { data } = fromFloat32(float32(entry.shape, values.data), dtype) as Tensor;
  yield new Uint8Array(data.buffer as ArrayBuffer, data.byteOffset, data.byteLength);
}

/** Adds alpha / rank * up · down to a weight [out, in, …], or to its transpose, in place. */
export function addUpdate(target: Float32Array, module: LoraModule, transposed = false): void {
  const { down, up } = foldedModule(module);
  const rank = loraRank(module);
  const out = up.shape[0]!;
  const width = down.data.length / rank;
  const row = new Float32Array(width);
  for (let o = 0; o < out; o++) {
    row.fill(0);
    for (let r = 0; r < rank; r++) {
      const factor = up.data[o * rank + r]!;
      const from = r * width;
      for (let i = 0; i < width; i++) row[i] = row[i]! + factor * down.data[from + i]!;
    }
    if (transposed) for (let i = 0; i < width; i++) target[i * out + o] = target[i * out + o]! + row[i]!;
    else for (let i = 0; i < width; i++) target[o * width + i] = target[o * width + i]! + row[i]!;
  }
}
