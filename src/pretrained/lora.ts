import { ModelError } from '../errors.js';
import { type FactorShapes, fixedLoraInputs } from '../nn/lora.js';
import { float32, type Shape, type Tensor, toFloat32 } from '../tensor/tensor.js';
import { familyName, type ModelFamily } from './architectures.js';
import { fileModulePath } from './lora-keys.js';

/** The low-rank update of one layer: W + (alpha / rank) * up · down (Hu et al., arXiv 2106.09685). */
export interface LoraModule {
  /** [rank, in]; for a convolution, [rank, in, height, width]. */
  readonly down: Tensor<'float32'>;
  /** [out, rank]; for a convolution, [out, rank, 1, 1]. */
  readonly up: Tensor<'float32'>;
  readonly alpha: number;
}

/** A LoRA: module path as in diffusers, such as `unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q`, -> update. */
export type Lora = ReadonlyMap<string, LoraModule>;

/** A LoRA, and how much of it to take. */
export interface WeightedLora {
  readonly lora: Lora;
  /** 1 is the whole update; 0 none of it; below 0 its opposite. */
  readonly weight: number;
}

/** The number of rows of the down factor. */
export function loraRank(module: LoraModule): number {
  return module.down.shape[0]!;
}

/**
 * Makes a LoRA of the factors that training holds, named `<module>.lora_A.weight` (down) and `<module>.lora_B.weight` (up). Other names are left out. Text encoder
 * modules get the `text_model` in their path that files give them, whether or not the checkpoint's own names have it.
 */
export function loraFromFactors(factors: ReadonlyMap<string, Tensor>, alpha: number): Lora {
  const lora = new Map<string, LoraModule>();
  for (const [name, down] of factors) {
    if (!name.endsWith('.lora_A.weight')) continue;
    const module = name.slice(0, -'.lora_A.weight'.length);
    const up = factors.get(`${module}.lora_B.weight`);
    if (up === undefined) throw new Error(`internal: ${module} has lora_A but no lora_B`);
    lora.set(fileModulePath(module), { down: toFloat32(down), up: toFloat32(up), alpha });
  }
  return lora;
}

/** alpha / rank multiplied into the up factor, so that alpha is the rank; times `weight`. */
export function foldedModule(module: LoraModule, weight = 1): LoraModule {
  const { down, up, alpha } = module;
  const rank = loraRank(module);
  const scale = (weight * alpha) / rank;
  if (scale === 1) return module;
  return {
    down,
    up: float32(
      up.shape,
      up.data.map((v) => v * scale),
    ),
    alpha: rank,
  };
}

/**
 * The sum of several LoRAs' updates as one LoRA, whose ranks are the sums of theirs: the factors of a layer are set side by side, with scales and weights multiplied
 * into the up factors.
 */
export function combineLoras(parts: readonly WeightedLora[]): Lora {
  const combined = new Map<string, LoraModule>();
  for (const { lora, weight } of parts) {
    for (const [name, module] of lora) {
      const added = foldedModule(module, weight);
      const before = combined.get(name);
      combined.set(name, before === undefined ? added : joinedModules(before, added));
    }
  }
  return combined;
}

/** Two folded updates of one layer as one. */
function joinedModules(a: LoraModule, b: LoraModule): LoraModule {
  const [ra, rb] = [loraRank(a), loraRank(b)];
  const rank = ra + rb;
  const out = a.up.shape[0]!;
  const down = new Float32Array(a.down.data.length + b.down.data.length);
  down.set(a.down.data);
  down.set(b.down.data, a.down.data.length);
  const up = new Float32Array(out * rank);
  for (let o = 0; o < out; o++) {
    up.set(a.up.data.subarray(o * ra, (o + 1) * ra), o * rank);
    up.set(b.up.data.subarray(o * rb, (o + 1) * rb), o * rank + ra);
  }
  return {
    down: float32([rank, ...a.down.shape.slice(1)], down),
    up: float32([out, rank, ...a.up.shape.slice(2)], up),
    alpha: rank,
  };
}

/** A finished LoRA as graphs take it: the layers with their factors' shapes, and the factors by the names of the graph inputs. */
export interface AppliedLora {
  /** By module path with its component. */
  readonly modules: ReadonlyMap<string, FactorShapes>;
  readonly state: ReadonlyMap<string, Tensor<'float32'>>;
}

/** Makes the sum of LoRAs ready for graphs. */
export function appliedLora(parts: readonly WeightedLora[]): AppliedLora {
  const modules = new Map<string, FactorShapes>();
  const state = new Map<string, Tensor<'float32'>>();
  for (const [name, { down, up }] of combineLoras(parts)) {
    const inputs = fixedLoraInputs(name);
    modules.set(name, { down: down.shape, up: up.shape });
    state.set(inputs.down, down).set(inputs.up, up);
  }
  return { modules, state };
}

/** Widths of the text that each family's cross-attention takes. */
const textWidths: Readonly<Record<number, ModelFamily>> = {
  768: 'stable-diffusion-v1',
  1024: 'stable-diffusion-v2',
  2048: 'stable-diffusion-xl-v1-base',
};

/** The family of models that a LoRA was made for, by its shapes; undefined where they do not tell. */
export function loraFamily(lora: Lora): ModelFamily | undefined {
  for (const [name, { down }] of lora) {
    if (name.startsWith('text_encoder_2.')) return 'stable-diffusion-xl-v1-base';
    const width = /\.attn2\.to_[kv]$/.test(name) ? textWidths[down.shape[1]!] : undefined;
    if (width !== undefined) return width;
  }
  // A text encoder alone: its layers are as wide as the condition, and SDXL's first one is that of the first family.
  for (const [name, { down }] of lora) {
    if (name.startsWith('text_encoder.') && name.includes('.self_attn.')) return textWidths[down.shape[1]!];
  }
  return undefined;
}

/**
 * Checks that every update of a LoRA belongs to a layer of a model, and fits it; gives the LoRA with its factors in the shapes of that model's layers, as files
 * write a 1x1 convolution and a linear layer the one for the other.
 *
 * @param weightShapeOf the shape of a layer's weight by its module path; undefined where the model has no such layer.
 * @param family the model's.
 * @throws ModelError which says what base the LoRA is for, when it is another one.
 */
export function fittedLora(
  lora: Lora,
  weightShapeOf: (module: string) => Shape | undefined,
  family: ModelFamily,
  file: string,
): Lora {
  return new Map(
    [...lora].map(([name, module]) => {
      const weight = weightShapeOf(name);
      const { down, up, alpha } = module;
      const rank = loraRank(module);
      const spatial = weight?.slice(2) ?? [];
      const downShape = [rank, ...(weight?.slice(1) ?? [])];
      const upShape = [weight?.[0] ?? 0, rank, ...spatial.map(() => 1)];
      if (weight === undefined || !sameButOnes(down.shape, downShape) || !sameButOnes(up.shape, upShape)) {
        throw misfit(name, module, weight, lora, family, file);
      }
      return [name, { down: float32(downShape, down.data), up: float32(upShape, up.data), alpha }];
    }),
  );
}

function misfit(
  name: string,
  { down, up }: LoraModule,
  weight: Shape | undefined,
  lora: Lora,
  family: ModelFamily,
  file: string,
): ModelError {
  const found = loraFamily(lora);
  if (found !== undefined && found !== family) {
    return new ModelError(
      `${file} is a LoRA for ${familyName(found)}, but the model is of ${familyName(family)}. Give a model of the LoRA's kind, or a LoRA of the model's.`,
    );
  }
  const what =
    weight === undefined
      ? `it changes ${name}, and the model has no such layer`
      : `its factors for ${name} are [${down.shape.join(', ')}] and [${up.shape.join(', ')}], which do not fit the layer's weight [${weight.join(', ')}]`;
  return new ModelError(
    `${file} is a LoRA for another model: ${what}. Give the model that the LoRA was made for.`,
  );
}

/** Equal up to trailing ones. */
function sameButOnes(a: Shape, b: Shape): boolean {
  const length = Math.max(a.length, b.length);
  return Array.from({ length }, (_, i) => (a[i] ?? 1) === (b[i] ?? 1)).every(Boolean);
}
