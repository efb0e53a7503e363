import { ModelError } from '../errors.js';
import { isObject, type Json, parseJson } from '../formats/json-config.js';
import type { SafetensorsContents } from '../formats/safetensors.js';
import { float32, type Tensor, toFloat32 } from '../tensor/tensor.js';
import type { ModelFamily, PredictionType } from './architectures.js';
import { foldedModule, type Lora, type LoraModule, loraRank } from './lora.js';
import { kohyaKey, readLoraKey } from './lora-keys.js';

/** What files of each family say about their base. */
const families: Readonly<Record<ModelFamily, { readonly version: string; readonly implementation: string }>> =
  {
    'stable-diffusion-v1': { version: 'sd_v1', implementation: 'diffusers' },
    'stable-diffusion-v2': { version: 'sd_v2', implementation: 'diffusers' },
    'stable-diffusion-xl-v1-base': {
      version: 'sdxl_base_v1-0',
      implementation: 'https://github.com/Stability-AI/generative-models',
    },
  };

/** What the header of a kohya file says about a LoRA besides its tensors, for tools that show or sort files by it. */
export interface LoraDescription {
  readonly title: string;
  /** The family of the model it was trained on. */
  readonly base: ModelFamily;
  readonly prediction?: PredictionType;
  /** Side of the training pictures, in pixels. */
  readonly resolution?: number;
  /** The word that calls the subject up. */
  readonly triggerPhrase?: string;
  readonly steps?: number;
  readonly learningRate?: number;
  /** When it was trained, as an ISO 8601 text. Without it, equal LoRAs give equal files. */
  readonly date?: string;
}

/** Where a PEFT file keeps the alphas that are multiplied into its factors. */
const FOLDED_ALPHA = 'portrayal.lora_alpha';
/** Where diffusers keeps PEFT's settings. */
const ADAPTER_SETTINGS = 'lora_adapter_metadata';

/**
 * The contents of a file for diffusers and PEFT: `<module>.lora_A.weight` and `<module>.lora_B.weight`, with alpha / rank multiplied into B, as the format has no
 * place for alpha that all its readers look at. The header notes the alphas, for whoever wants to take them out again.
 */
export function peftContents(lora: Lora): SafetensorsContents {
  const tensors = new Map<string, Tensor>();
  const alphas: Record<string, number> = {};
  for (const [name, module] of lora) {
    tensors.set(`${name}.lora_A.weight`, module.down);
    tensors.set(`${name}.lora_B.weight`, foldedModule(module).up);
    if (module.alpha !== loraRank(module)) alphas[name] = module.alpha;
  }
  const metadata = new Map([['format', 'pt']]);
  if (Object.keys(alphas).length > 0) metadata.set(FOLDED_ALPHA, JSON.stringify(compacted(alphas, lora)));
  return { tensors, metadata };
}

/** One number where all modules have it, or the numbers by module. */
function compacted(alphas: Readonly<Record<string, number>>, lora: Lora): Json {
  const values = Object.values(alphas);
  return values.length === lora.size && new Set(values).size === 1 ? values[0]! : alphas;
}

/** The contents of a file as diffusers' `save_lora_weights` writes it: its keys, and PEFT's settings, with ranks and alphas, in the header. */
export function diffusersContents(lora: Lora): SafetensorsContents {
  const tensors = new Map<string, Tensor>();
  const components = new Map<string, Map<string, LoraModule>>();
  for (const [name, module] of lora) {
    const component = name.slice(0, name.indexOf('.'));
    const stem = component === 'unet' ? 'lora' : 'lora_linear_layer';
    tensors.set(`${name}.${stem}.down.weight`, module.down);
    tensors.set(`${name}.${stem}.up.weight`, module.up);
    const modules = components.get(component) ?? new Map<string, LoraModule>();
    // Newer libraries name the text encoder's layers without `text_model`; older ones match the end of the path.
    modules.set(name.slice(component.length + 1).replace(/^text_model\./, ''), module);
    components.set(component, modules);
  }
  const settings = [...components].flatMap(([component, modules]) =>
    Object.entries(adapterSettings(modules)).map(([key, value]) => [`${component}.${key}`, value] as const),
  );
  const metadata = new Map([
    ['format', 'pt'],
    [ADAPTER_SETTINGS, JSON.stringify(Object.fromEntries(settings), null, 2)],
  ]);
  return { tensors, metadata };
}

function adapterSettings(modules: ReadonlyMap<string, LoraModule>): Record<string, Json> {
  const [first] = modules.values();
  const rank = loraRank(first!);
  const { alpha } = first!;
  const differing = (of: (module: LoraModule) => number, common: number): Json =>
    Object.fromEntries([...modules].flatMap(([name, m]) => (of(m) === common ? [] : [[name, of(m)]])));
  return {
    peft_type: 'LORA',
    r: rank,
    lora_alpha: alpha,
    rank_pattern: differing(loraRank, rank),
    alpha_pattern: differing((m) => m.alpha, alpha),
    target_modules: [...modules.keys()].sort(),
    lora_dropout: 0,
    bias: 'none',
  };
}

/**
 * The contents of a file for ComfyUI, AUTOMATIC1111 and Forge, with the keys that kohya's sd-scripts give a LoRA for this family, `.alpha` scalars, and a header of
 * `ss_*` as sd-scripts writes them and `modelspec.*` (Stability AI's model metadata standard 1.0.0).
 */
export function kohyaContents(lora: Lora, description: LoraDescription): SafetensorsContents {
  const tensors = new Map<string, Tensor>();
  for (const [module, { down, up, alpha }] of lora) {
    const key = kohyaKey(module, description.base);
    tensors.set(`${key}.lora_down.weight`, down);
    tensors.set(`${key}.lora_up.weight`, up);
    tensors.set(`${key}.alpha`, float32([], [alpha]));
  }
  return { tensors, metadata: kohyaMetadata(lora, description) };
}

function kohyaMetadata(lora: Lora, description: LoraDescription): Map<string, string> {
  const modules = [...lora.values()];
  const same = (values: readonly number[]): string =>
    new Set(values).size === 1 ? String(values[0]) : 'Dynamic';
  const { base, prediction, resolution } = description;
  const version2 = base === 'stable-diffusion-v2';
  const byVelocity = prediction === 'v_prediction';
  const { version, implementation } = families[base];
  const variant = version2 && prediction !== undefined ? (byVelocity ? '-768-v' : '-512') : '';
  const entries: readonly (readonly [string, string | number | undefined])[] = [
    ['ss_network_module', 'networks.lora'],
    ['ss_network_dim', same(modules.map(loraRank))],
    ['ss_network_alpha', same(modules.map((m) => m.alpha))],
    ['ss_base_model_version', version],
    ['ss_v2', version2 ? 'True' : 'False'],
    ['ss_resolution', resolution && `(${resolution}, ${resolution})`],
    ['ss_output_name', description.title],
    ['ss_steps', description.steps],
    ['ss_learning_rate', description.learningRate],
    ['modelspec.sai_model_spec', '1.0.0'],
    ['modelspec.architecture', `${base}${variant}/lora`],
    ['modelspec.implementation', implementation],
    ['modelspec.title', description.title],
    ['modelspec.resolution', resolution && `${resolution}x${resolution}`],
    ['modelspec.prediction_type', prediction && (byVelocity ? 'v' : 'epsilon')],
    ['modelspec.trigger_phrase', description.triggerPhrase],
    ['modelspec.date', description.date],
  ];
  return new Map(
    entries.flatMap(([key, value]) => (value === undefined ? [] : [[key, String(value)] as const])),
  );
}

/** Kinds of adapters that share the file format and are not plain LoRA, or not for these models. */
const otherAdapters: readonly { readonly pattern: RegExp; readonly name: string }[] = [
  { pattern: /dora_scale|lora_magnitude_vector/, name: 'DoRA' },
  { pattern: /hada_(w|t)/, name: 'LoHa' },
  { pattern: /lokr_(w|t)/, name: 'LoKr' },
  { pattern: /lora_mid/, name: 'LoCon with a core tensor' },
  { pattern: /\.oft_|oft_blocks|\.oft_r\./, name: 'OFT' },
  { pattern: /\.diff(_b)?$/, name: 'a file with full differences of weights' },
  {
    pattern: /lora_unet_(double|single)_blocks|^transformer\.|\.double_blocks\./,
    name: 'a LoRA for Flux or Stable Diffusion 3',
  },
  { pattern: /lora_unet_joint_blocks|lora_te3_/, name: 'a LoRA for Stable Diffusion 3' },
];

/**
 * Reads the tensors of a LoRA file in any of the usual spellings: PEFT, diffusers (today's and its older ones), kohya with `.alpha`, with diffusers' or with the
 * original names of a UNet's blocks. Where nothing says what alpha is, it equals the rank, as their readers take it.
 *
 * @param file the name that errors give.
 * @throws ModelError when a tensor belongs to no LoRA module or is not finite, when half of a pair is missing, when shapes do not fit, or for another kind of
 *   adapter.
 */
export function parseLora({ tensors, metadata }: SafetensorsContents, file: string): Lora {
  const parts = new Map<string, { down?: Tensor; up?: Tensor; alpha?: Tensor }>();
  for (const [key, value] of tensors) {
    const other = otherAdapters.find(({ pattern }) => pattern.test(key));
    if (other !== undefined) {
      throw new ModelError(
        `${file} is ${other.name} (tensor ${JSON.stringify(key)}), which is not supported; supported: LoRA for Stable Diffusion 1, 2 and XL.`,
      );
    }
    const found = readLoraKey(key);
    if (found === undefined) {
      throw new ModelError(
        `${file} is not a LoRA file, or one of an unknown kind: the tensor ${JSON.stringify(key)} belongs to no module.`,
      );
    }
    const { module, part } = found;
    const known = parts.get(module) ?? {};
    if (known[part] !== undefined) {
      throw new ModelError(
        `${file} has two tensors for ${part} of ${module}; the second is ${JSON.stringify(key)}.`,
      );
    }
    known[part] = value;
    parts.set(module, known);
  }
  if (parts.size === 0) throw new ModelError(`${file} is not a LoRA file: it holds no tensors.`);
  const alphaOf = adapterAlphas(metadata.get(ADAPTER_SETTINGS), file);
  const foldedAlphaOf = foldedAlphas(metadata.get(FOLDED_ALPHA), file);
  return new Map(
    [...parts].map(([name, found]) => {
      const module = completeModule(name, found, alphaOf, file);
      const folded = found.alpha === undefined ? foldedAlphaOf(name) : undefined;
      return [name, folded === undefined ? module : unfolded(module, folded)];
    }),
  );
}

function completeModule(
  module: string,
  { down, up, alpha }: { down?: Tensor; up?: Tensor; alpha?: Tensor },
  alphaOf: (module: string) => number | undefined,
  file: string,
): LoraModule {
  if (down === undefined || up === undefined) {
    throw new ModelError(
      `${file}: ${module} has no ${down === undefined ? 'down (A)' : 'up (B)'} factor. The file is incomplete; get it again.`,
    );
  }
  const rank = down.shape[0];
  if (!rank || down.shape.length < 2 || up.shape.length !== down.shape.length || up.shape[1] !== rank) {
    throw new ModelError(
      `${file}: the factors of ${module} are [${down.shape.join(', ')}] and [${up.shape.join(', ')}]; expected [rank, in] and [out, rank].`,
    );
  }
  const own = alpha === undefined ? undefined : toFloat32(alpha).data[0];
  const read = { down: toFloat32(down), up: toFloat32(up), alpha: own ?? alphaOf(module) ?? rank };
  for (const values of [read.down.data, read.up.data, [read.alpha]]) {
    if (!values.every(Number.isFinite)) {
      throw new ModelError(
        `${file}: the update of ${module} has a value that is infinite or not a number. The LoRA is damaged, probably by a training run that diverged; get another copy.`,
      );
    }
  }
  return read;
}

/** Takes alpha / rank out of the up factor again. */
function unfolded({ down, up }: LoraModule, alpha: number): LoraModule {
  const scale = alpha / down.shape[0]!;
  return {
    down,
    up: float32(
      up.shape,
      up.data.map((v) => v / scale),
    ),
    alpha,
  };
}

function foldedAlphas(text: string | undefined, file: string): (module: string) => number | undefined {
  if (text === undefined) return () => undefined;
  const alphas = parseJson(text, `${file} (${FOLDED_ALPHA})`);
  return (module) => {
    const alpha = isObject(alphas) ? alphas[module] : alphas;
    return typeof alpha === 'number' && alpha !== 0 && Number.isFinite(alpha) ? alpha : undefined;
  };
}

/** The alphas that diffusers notes in a file's header: for each component PEFT's settings, with names such as `unet.lora_alpha`. */
function adapterAlphas(text: string | undefined, file: string): (module: string) => number | undefined {
  if (text === undefined) return () => undefined;
  const settings = parseJson(text, `${file} (${ADAPTER_SETTINGS})`);
  if (!isObject(settings)) return () => undefined;
  return (module) => {
    const component = module.slice(0, module.indexOf('.'));
    const patterns = settings[`${component}.alpha_pattern`];
    const path = module.slice(component.length + 1);
    const own = isObject(patterns)
      ? Object.entries(patterns).find(([k]) => path === k || path.endsWith(`.${k}`))
      : undefined;
    const alpha = own?.[1] ?? settings[`${component}.lora_alpha`];
    return typeof alpha === 'number' ? alpha : undefined;
  };
}
