import { ModelError } from '../errors.js';
import { isObject, parseJson } from '../formats/json-config.js';
import type { SafetensorsContents } from '../formats/safetensors.js';
import { float32, type Tensor, toFloat32 } from '../tensor/tensor.js';
import type { ModelFamily } from './architectures.js';

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

/** What files of each family say about their base, and how kohya's keys name the first text encoder. */
const families: Readonly<
  Record<
    ModelFamily,
    { readonly version: string; readonly implementation: string; readonly textEncoder: string }
  >
> = {
  'stable-diffusion-v1': {
    version: 'sd_v1',
    implementation: 'diffusers',
    textEncoder: 'lora_te_',
  },
  'stable-diffusion-v2': {
    version: 'sd_v2',
    implementation: 'diffusers',
    textEncoder: 'lora_te_',
  },
  'stable-diffusion-xl-v1-base': {
    version: 'sdxl_base_v1-0',
    implementation: 'https://github.com/Stability-AI/generative-models',
    textEncoder: 'lora_te1_',
  },
};

/** What the header of a kohya file says about a LoRA besides its tensors, for tools that show or sort files by it. */
export interface LoraDescription {
  readonly title: string;
  /** The family of the model it was trained on. */
  readonly base: ModelFamily;
  readonly prediction: 'epsilon' | 'v_prediction';
  /** Side of the training pictures, in pixels. */
  readonly resolution: number;
  /** The word that calls the subject up. */
  readonly triggerPhrase?: string;
  readonly steps?: number;
  readonly learningRate?: number;
  /** When it was trained, as an ISO 8601 text. Without it, equal LoRAs give equal files. */
  readonly date?: string;
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

/**
 * The tensors of a file for diffusers and PEFT: `<module>.lora_A.weight` and `<module>.lora_B.weight`, with alpha / rank multiplied into B, as the format has
 * no place for alpha.
 */
export function peftTensors(lora: Lora): Map<string, Tensor> {
  const tensors = new Map<string, Tensor>();
  for (const [module, { down, up, alpha }] of lora) {
    const scale = alpha / down.shape[0]!;
    tensors.set(`${module}.lora_A.weight`, down);
    tensors.set(
      `${module}.lora_B.weight`,
      scale === 1
        ? up
        : float32(
            up.shape,
            up.data.map((v) => v * scale),
          ),
    );
  }
  return tensors;
}

/** The tensors of a file for ComfyUI, AUTOMATIC1111 and Forge, with the keys that kohya's sd-scripts give a LoRA for this family, and `.alpha` scalars. */
export function kohyaTensors(lora: Lora, base: ModelFamily): Map<string, Tensor> {
  const tensors = new Map<string, Tensor>();
  for (const [module, { down, up, alpha }] of lora) {
    const key = kohyaKey(module, base);
    tensors.set(`${key}.lora_down.weight`, down);
    tensors.set(`${key}.lora_up.weight`, up);
    tensors.set(`${key}.alpha`, float32([], [alpha]));
  }
  return tensors;
}

/**
 * The header of a kohya file: `ss_*` as sd-scripts writes them and `modelspec.*` (Stability AI's model metadata standard 1.0.0).
 */
export function kohyaMetadata(lora: Lora, description: LoraDescription): Map<string, string> {
  const modules = [...lora.values()];
  const same = (values: readonly number[]): string =>
    new Set(values).size === 1 ? String(values[0]) : 'Dynamic';
  const version2 = description.base === 'stable-diffusion-v2';
  const byVelocity = description.prediction === 'v_prediction';
  const { resolution } = description;
  const { version, implementation } = families[description.base];
  const metadata = new Map<string, string>([
    ['ss_network_module', 'networks.lora'],
    ['ss_network_dim', same(modules.map(loraRank))],
    ['ss_network_alpha', same(modules.map((m) => m.alpha))],
    ['ss_base_model_version', version],
    ['ss_v2', version2 ? 'True' : 'False'],
    ['ss_resolution', `(${resolution}, ${resolution})`],
    ['ss_output_name', description.title],
    ['modelspec.sai_model_spec', '1.0.0'],
    ['modelspec.architecture', `${description.base}${version2 ? (byVelocity ? '-768-v' : '-512') : ''}/lora`],
    ['modelspec.implementation', implementation],
    ['modelspec.title', description.title],
    ['modelspec.resolution', `${resolution}x${resolution}`],
    ['modelspec.prediction_type', byVelocity ? 'v' : 'epsilon'],
  ]);
  if (description.triggerPhrase !== undefined)
    metadata.set('modelspec.trigger_phrase', description.triggerPhrase);
  if (description.date !== undefined) metadata.set('modelspec.date', description.date);
  if (description.steps !== undefined) metadata.set('ss_steps', String(description.steps));
  if (description.learningRate !== undefined)
    metadata.set('ss_learning_rate', String(description.learningRate));
  return metadata;
}

/** How a key of a LoRA file says which module it belongs to and what it is of it. */
interface KeyStyle {
  readonly pattern: RegExp;
  readonly part: 'down' | 'up' | 'alpha';
  readonly module: (match: RegExpMatchArray) => string;
}

const dotted = (match: RegExpMatchArray): string => fileModulePath(withComponent(match[1]!));

/** From the newest spelling to the oldest; kohya's before PEFT's `.alpha`, which it shares. */
const keyStyles: readonly KeyStyle[] = [
  {
    pattern: /^(lora_(?:unet|te[12]?)_.+)\.lora_down\.weight$/,
    part: 'down',
    module: (m) => kohyaModule(m[1]!),
  },
  { pattern: /^(lora_(?:unet|te[12]?)_.+)\.lora_up\.weight$/, part: 'up', module: (m) => kohyaModule(m[1]!) },
  { pattern: /^(lora_(?:unet|te[12]?)_.+)\.alpha$/, part: 'alpha', module: (m) => kohyaModule(m[1]!) },
  { pattern: /^(.+)\.lora_A(?:\.default)?\.weight$/, part: 'down', module: dotted },
  { pattern: /^(.+)\.lora_B(?:\.default)?\.weight$/, part: 'up', module: dotted },
  {
    pattern: /^(.+)\.processor\.(to_[qkv]|to_out)_lora\.down\.weight$/,
    part: 'down',
    module: processorModule,
  },
  { pattern: /^(.+)\.processor\.(to_[qkv]|to_out)_lora\.up\.weight$/, part: 'up', module: processorModule },
  { pattern: /^(.+)\.lora(?:_linear_layer)?\.down\.weight$/, part: 'down', module: dotted },
  { pattern: /^(.+)\.lora(?:_linear_layer)?\.up\.weight$/, part: 'up', module: dotted },
  { pattern: /^(.+)\.alpha$/, part: 'alpha', module: dotted },
];

/** Kinds of adapters that share the file format and are not plain LoRA. */
const otherAdapters: readonly { readonly pattern: RegExp; readonly name: string }[] = [
  { pattern: /dora_scale|lora_magnitude_vector/, name: 'DoRA' },
  { pattern: /hada_w/, name: 'LoHa' },
  { pattern: /lokr_w/, name: 'LoKr' },
  { pattern: /lora_mid/, name: 'LoCon with a core tensor' },
  {
    pattern: /^lora_unet_(input|middle|output)_block/,
    name: 'an SDXL LoRA with the original names of its blocks',
  },
];

/**
 * Reads the tensors of a LoRA file in any of the usual spellings: PEFT, diffusers (today's and its older ones), kohya with `.alpha`. Where nothing says what alpha
 * is, it equals the rank, as their readers take it.
 *
 * @param file the name that errors give.
 * @throws ModelError when a tensor belongs to no LoRA module, when half of a pair is missing, when shapes do not fit, or for another kind of adapter.
 */
export function parseLora({ tensors, metadata }: SafetensorsContents, file: string): Lora {
  const parts = new Map<string, { down?: Tensor; up?: Tensor; alpha?: Tensor }>();
  for (const [key, value] of tensors) {
    const other = otherAdapters.find(({ pattern }) => pattern.test(key));
    if (other !== undefined) {
      throw new ModelError(
        `${file} is ${other.name} (tensor ${JSON.stringify(key)}), which is not supported; supported: LoRA for Stable Diffusion 1 and 2.`,
      );
    }
    const style = keyStyles.find(({ pattern }) => pattern.test(key));
    if (style === undefined) {
      throw new ModelError(
        `${file} is not a LoRA file, or one of an unknown kind: the tensor ${JSON.stringify(key)} belongs to no module.`,
      );
    }
    const module = style.module(key.match(style.pattern)!);
    const found = parts.get(module) ?? {};
    if (found[style.part] !== undefined) {
      throw new ModelError(
        `${file} has two tensors for ${style.part} of ${module}; the second is ${JSON.stringify(key)}.`,
      );
    }
    found[style.part] = value;
    parts.set(module, found);
  }
  if (parts.size === 0) throw new ModelError(`${file} is not a LoRA file: it holds no tensors.`);
  const alphaOf = adapterAlphas(metadata.get('lora_adapter_metadata'), file);
  return new Map([...parts].map(([module, found]) => [module, completeModule(module, found, alphaOf, file)]));
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
  if (down.shape.length < 2 || up.shape.length !== down.shape.length || up.shape[1] !== rank) {
    throw new ModelError(
      `${file}: the factors of ${module} are [${down.shape.join(', ')}] and [${up.shape.join(', ')}]; expected [rank, in] and [out, rank].`,
    );
  }
  const own = alpha === undefined ? undefined : toFloat32(alpha).data[0];
  return { down: toFloat32(down), up: toFloat32(up), alpha: own ?? alphaOf(module) ?? rank! };
}

/** The alphas that diffusers notes in a file's header: for each component PEFT's settings, with names such as `unet.lora_alpha`. */
function adapterAlphas(text: string | undefined, file: string): (module: string) => number | undefined {
  if (text === undefined) return () => undefined;
  const settings = parseJson(text, `${file} (lora_adapter_metadata)`);
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

/** The oldest files, and PEFT's own, hold nothing but the UNet, without saying so. */
function withComponent(path: string): string {
  const module = path.replace(/^base_model\.model\./, '');
  return /^(unet|text_encoder(_2)?)\./.test(module) ? module : `unet.${module}`;
}

function processorModule(match: RegExpMatchArray): string {
  const layer = match[2] === 'to_out' ? 'to_out.0' : match[2];
  return withComponent(`${match[1]}.${layer}`);
}

/** Files name the text encoder's modules below `text_model`; some checkpoints leave that level out. */
function fileModulePath(module: string): string {
  return module.replace(/^(text_encoder(?:_2)?\.)(?!text_model\.)/, '$1text_model.');
}

const kohyaPrefixes: readonly { readonly key: string; readonly component: string }[] = [
  { key: 'lora_unet_', component: 'unet.' },
  { key: 'lora_te_', component: 'text_encoder.' },
  { key: 'lora_te1_', component: 'text_encoder.' },
  { key: 'lora_te2_', component: 'text_encoder_2.' },
];

function kohyaKey(module: string, base: ModelFamily): string {
  const component = module.slice(0, module.indexOf('.') + 1);
  const own = { 'text_encoder.': families[base].textEncoder } as Readonly<Record<string, string>>;
  const key = own[component] ?? kohyaPrefixes.find((p) => p.component === component)?.key;
  if (key === undefined) throw new Error(`internal: ${module} is of no component that LoRA files know`);
  return key + module.slice(component.length).replaceAll('.', '_');
}

/** The parts of module paths that have an underscore of their own, which kohya keys do not tell from a dot. */
const compoundNames =
  /^(?:(?:down|mid|up|transformer)_blocks?|to_(?:q|k|v|out)|(?:q|k|v|out)_proj|proj_(?:in|out)|conv_(?:in|out|shortcut)|time_emb_proj|time_embedding|linear_[12]|text_model|self_attn|[a-z]+[0-9]*|[0-9]+)(?=_|$)/;

/** The dotted path of a kohya key: `lora_unet_mid_block_attentions_0_proj_in` is `unet.mid_block.attentions.0.proj_in`. */
function kohyaModule(key: string): string {
  const prefix = kohyaPrefixes.find((p) => key.startsWith(p.key))!;
  const segments: string[] = [];
  let rest = key.slice(prefix.key.length);
  while (rest !== '') {
    const segment = compoundNames.exec(rest)?.[0] ?? rest;
    segments.push(segment);
    rest = rest.slice(segment.length + 1);
  }
  return fileModulePath(prefix.component + segments.join('.'));
}
