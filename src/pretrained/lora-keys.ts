import type { ModelFamily } from './architectures.js';
import { type UNetLayout, unetFromLdm, unetToLdm } from './ldm-names.js';

/** What a tensor of a LoRA file is of its module. */
export interface LoraKey {
  /** The module's path as in diffusers, with its component: `unet.mid_block.attentions.0.proj_in`. */
  readonly module: string;
  readonly part: 'down' | 'up' | 'alpha';
}

/** How a spelling of keys says which module a tensor belongs to and what it is of it. */
interface KeyStyle {
  readonly pattern: RegExp;
  readonly part: LoraKey['part'];
  readonly module: (match: RegExpMatchArray) => string | undefined;
}

const dotted = (match: RegExpMatchArray): string => fileModulePath(withComponent(match[1]!));
const kohya = (match: RegExpMatchArray): string | undefined => kohyaModule(match[1]!);

/** From the newest spelling to the oldest; kohya's before PEFT's `.alpha`, which it shares. */
const keyStyles: readonly KeyStyle[] = [
  { pattern: /^(lora_(?:unet|te[12]?)_.+)\.lora_down\.weight$/, part: 'down', module: kohya },
  { pattern: /^(lora_(?:unet|te[12]?)_.+)\.lora_up\.weight$/, part: 'up', module: kohya },
  { pattern: /^(lora_(?:unet|te[12]?)_.+)\.alpha$/, part: 'alpha', module: kohya },
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

/** Reads a key in any of the usual spellings: PEFT's, diffusers' (today's and its older ones), kohya's. Undefined for a key of none of them. */
export function readLoraKey(key: string): LoraKey | undefined {
  for (const { pattern, part, module } of keyStyles) {
    const match = pattern.exec(key);
    if (match === null) continue;
    const found = module(match);
    return found === undefined ? undefined : { module: found, part };
  }
  return undefined;
}

/** The oldest files, and PEFT's own, hold a single component without saying which. */
function withComponent(path: string): string {
  const module = path.replace(/^base_model\.model\./, '');
  if (/^(unet|text_encoder(_2)?)\./.test(module)) return module;
  return `${module.startsWith('text_model.') ? 'text_encoder' : 'unet'}.${module}`;
}

function processorModule(match: RegExpMatchArray): string {
  const layer = match[2] === 'to_out' ? 'to_out.0' : match[2];
  return withComponent(`${match[1]}.${layer}`);
}

/** Files name the text encoders' layers below `text_model`; some checkpoints leave that level out. */
export function fileModulePath(module: string): string {
  return module.replace(/^(text_encoder(?:_2)?\.)(?!text_model\.|text_projection)/, '$1text_model.');
}

const kohyaPrefixes: readonly { readonly key: string; readonly component: string }[] = [
  { key: 'lora_unet_', component: 'unet.' },
  { key: 'lora_te_', component: 'text_encoder.' },
  { key: 'lora_te1_', component: 'text_encoder.' },
  { key: 'lora_te2_', component: 'text_encoder_2.' },
];

/** The blocks of all three families' UNets, as files of kohya's number them for SDXL. */
const xlLayout: UNetLayout = { layers: 2, attends: [false, true, true] };

/** kohya's key of a module in a LoRA for this family, without `.lora_down.weight` and the like. SDXL's UNet has the names of its original checkpoint. */
export function kohyaKey(module: string, family: ModelFamily): string {
  const dot = module.indexOf('.') + 1;
  const [component, path] = [module.slice(0, dot), module.slice(dot)];
  const xl = family === 'stable-diffusion-xl-v1-base';
  const first = xl ? 'lora_te1_' : 'lora_te_';
  const key =
    component === 'text_encoder.' ? first : kohyaPrefixes.find((p) => p.component === component)?.key;
  if (key === undefined) throw new Error(`internal: ${module} is of no component that LoRA files know`);
  const name = xl && component === 'unet.' ? (unetToLdm(path, xlLayout) ?? path) : path;
  return key + name.replaceAll('.', '_');
}

/** The parts of module paths that have an underscore of their own, which kohya keys do not tell from a dot. */
const compoundNames =
  /^(?:(?:down|mid|middle|up|input|output|transformer)_blocks?|(?:in|out|emb)_layers|skip_connection|to_(?:q|k|v|out)|(?:q|k|v|out)_proj|proj_(?:in|out)|conv_(?:in|out|shortcut)|time_emb_proj|(?:time|add|token|position)_embedding|time_embed|label_emb|linear_[12]|text_(?:model|projection)|self_attn|[a-z]+[0-9]*|[0-9]+)(?=_|$)/;

const ldmBlock = /^(?:input_blocks|middle_block|output_blocks|time_embed|label_emb|out)\./;

/** The dotted path of a kohya key: `lora_unet_mid_block_attentions_0_proj_in` is `unet.mid_block.attentions.0.proj_in`. */
function kohyaModule(key: string): string | undefined {
  const prefix = kohyaPrefixes.find((p) => key.startsWith(p.key))!;
  const segments: string[] = [];
  let rest = key.slice(prefix.key.length);
  while (rest !== '') {
    const segment = compoundNames.exec(rest)?.[0] ?? rest;
    segments.push(segment);
    rest = rest.slice(segment.length + 1);
  }
  const path = segments.join('.');
  const current = ldmBlock.test(path) ? unetFromLdm(path, xlLayout.layers) : path;
  return current && fileModulePath(prefix.component + current);
}
