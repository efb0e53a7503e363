/**
 * The names that the authors of latent diffusion gave their layers (https://github.com/CompVis/latent-diffusion, and sgm for SDXL), which single-file
 * checkpoints have, beside diffusers' names for the same layers. Paths of modules and of parameters are translated alike: whatever follows the part that
 * differs is kept.
 */

/** How the blocks of a UNet are numbered in a single file: one after the other through all levels. */
export interface UNetLayout {
  /** Residual blocks of a level on the way down; the way up has one more. */
  readonly layers: number;
  /** Whether the levels, from the top down, have attention. */
  readonly attends: readonly boolean[];
}

type Pairs = readonly (readonly [ldm: string, diffusers: string])[];

const unetEnds: Pairs = [
  ['input_blocks.0.0', 'conv_in'],
  ['time_embed.0', 'time_embedding.linear_1'],
  ['time_embed.2', 'time_embedding.linear_2'],
  ['label_emb.0.0', 'add_embedding.linear_1'],
  ['label_emb.0.2', 'add_embedding.linear_2'],
  ['middle_block.0', 'mid_block.resnets.0'],
  ['middle_block.1', 'mid_block.attentions.0'],
  ['middle_block.2', 'mid_block.resnets.1'],
  ['out.0', 'conv_norm_out'],
  ['out.2', 'conv_out'],
];

const unetResnet: Pairs = [
  ['in_layers.0', 'norm1'],
  ['in_layers.2', 'conv1'],
  ['emb_layers.1', 'time_emb_proj'],
  ['out_layers.0', 'norm2'],
  ['out_layers.3', 'conv2'],
  ['skip_connection', 'conv_shortcut'],
];

const vaeMiddle: Pairs = [
  ['mid.block_1', 'mid_block.resnets.0'],
  ['mid.block_2', 'mid_block.resnets.1'],
  ['mid.attn_1.norm', 'mid_block.attentions.0.group_norm'],
  ['mid.attn_1.q', 'mid_block.attentions.0.to_q'],
  ['mid.attn_1.k', 'mid_block.attentions.0.to_k'],
  ['mid.attn_1.v', 'mid_block.attentions.0.to_v'],
  ['mid.attn_1.proj_out', 'mid_block.attentions.0.to_out.0'],
  ['norm_out', 'conv_norm_out'],
];

const vaeResnet: Pairs = [['nin_shortcut', 'conv_shortcut']];

const openClip: Pairs = [
  ['token_embedding', 'text_model.embeddings.token_embedding'],
  ['ln_final', 'text_model.final_layer_norm'],
];

const openClipLayer: Pairs = [
  ['ln_1', 'layer_norm1'],
  ['ln_2', 'layer_norm2'],
  ['attn.out_proj', 'self_attn.out_proj'],
  ['mlp.c_fc', 'mlp.fc1'],
  ['mlp.c_proj', 'mlp.fc2'],
];

/** The first autoencoder checkpoints of diffusers called these by other names. */
const firstAttentionNames: Pairs = [
  ['query', 'to_q'],
  ['key', 'to_k'],
  ['value', 'to_v'],
  ['proj_attn', 'to_out.0'],
];

/** diffusers' path of a UNet layer by its path in a single file, such as `input_blocks.1.1.proj_in.weight`; undefined for what is no layer of a UNet. */
export function unetFromLdm(path: string, layers: number): string | undefined {
  const block = /^(input|output)_blocks\.(\d+)\.(\d+)\.(.+)$/.exec(path);
  if (block === null || path.startsWith('input_blocks.0.')) {
    const end = renamed(path, unetEnds, 0);
    return end?.startsWith('mid_block.resnets.') ? withinResnet(end, unetResnet, 0) : end;
  }
  const [, side, number, part, rest] = block as unknown as [
    string,
    'input' | 'output',
    string,
    string,
    string,
  ];
  const down = side === 'input';
  const index = Number(number) - (down ? 1 : 0);
  const place = `${down ? 'down' : 'up'}_blocks.${Math.floor(index / (layers + 1))}`;
  const j = index % (layers + 1);
  if (down && j === layers)
    return part === '0' ? renamed(rest, [['op', `${place}.downsamplers.0.conv`]], 0) : undefined;
  if (part === '0') return withinResnet(`${place}.resnets.${j}.${rest}`, unetResnet, 0);
  // A level without attention has the enlarging convolution where others have attention.
  return /^conv(\.|$)/.test(rest) ? `${place}.upsamplers.0.${rest}` : `${place}.attentions.${j}.${rest}`;
}

/** The path in a single file of a UNet layer by diffusers' path. */
export function unetToLdm(path: string, { layers, attends }: UNetLayout): string | undefined {
  const block = /^(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)$/.exec(
    path,
  );
  if (block === null) {
    const end = path.startsWith('mid_block.resnets.') ? withinResnet(path, unetResnet, 1) : path;
    return renamed(end, unetEnds, 1);
  }
  const [, side, level, kind, number, rest] = block as unknown as [
    string,
    string,
    string,
    string,
    string,
    string,
  ];
  const down = side === 'down';
  const first = Number(level) * (layers + 1) + (down ? 1 : 0);
  const blocks = `${down ? 'input' : 'output'}_blocks`;
  switch (kind) {
    case 'resnets': {
      const inner = withinResnet(path, unetResnet, 1).split('.').slice(4).join('.');
      return `${blocks}.${first + Number(number)}.0.${inner}`;
    }
    case 'attentions':
      return `${blocks}.${first + Number(number)}.1.${rest}`;
    case 'downsamplers':
      return `${blocks}.${first + layers}.0.${rest.replace(/^conv/, 'op')}`;
    default: {
      const part = attends[attends.length - 1 - Number(level)] ? 2 : 1;
      return `${blocks}.${first + layers}.${part}.${rest}`;
    }
  }
}

/** diffusers' path of an autoencoder layer by its path in a single file, such as `decoder.up.3.block.0.conv1.weight`. */
export function vaeFromLdm(path: string, levels: number): string {
  return throughVae(path, (side, rest) => {
    const match = /^(?:down|up)\.(\d+)\.(?:block\.(\d+)|(down|up)sample)\.(.+)$/.exec(rest);
    if (match === null) return renamed(rest, vaeMiddle, 0) ?? rest;
    const [, level, block, , inner] = match as unknown as [
      string,
      string,
      string | undefined,
      string,
      string,
    ];
    const down = side === 'encoder';
    const place = down ? `down_blocks.${level}` : `up_blocks.${levels - 1 - Number(level)}`;
    if (block === undefined) return `${place}.${down ? 'down' : 'up'}samplers.0.${inner}`;
    return withinResnet(`${place}.resnets.${block}.${inner}`, vaeResnet, 0);
  });
}

/** The path in a single file of an autoencoder layer by diffusers' path. */
export function vaeToLdm(path: string, levels: number): string {
  return throughVae(path, (side, rest) => {
    const match = /^(?:down|up)_blocks\.(\d+)\.(?:resnets\.(\d+)|(?:down|up)samplers\.0)\.(.+)$/.exec(rest);
    if (match === null) {
      const first = firstAttentionNames.find(([name]) => rest.startsWith(`mid_block.attentions.0.${name}.`));
      const current = first === undefined ? rest : rest.replace(first[0], first[1]);
      return renamed(current, vaeMiddle, 1) ?? current;
    }
    const [, level, block, inner] = match as unknown as [string, string, string | undefined, string];
    const down = side === 'encoder';
    const place = down ? `down.${level}` : `up.${levels - 1 - Number(level)}`;
    if (block === undefined) return `${place}.${down ? 'down' : 'up'}sample.${inner}`;
    return `${place}.block.${block}.${renamed(inner, vaeResnet, 1) ?? inner}`;
  });
}

/**
 * transformers' path of a text encoder's parameter by OpenCLIP's; undefined for parameters that transformers does not have. The projections of attention, which
 * OpenCLIP stores as one tensor (`attn.in_proj_weight`), and the projection of the text, which it stores transposed, are the caller's.
 */
export function textFromOpenClip(path: string): string | undefined {
  if (path === 'positional_embedding') return 'text_model.embeddings.position_embedding.weight';
  const layer = /^transformer\.resblocks\.(\d+)\.(.+)$/.exec(path);
  if (layer === null) return renamed(path, openClip, 0);
  const inner = renamed(layer[2]!, openClipLayer, 0);
  return inner && `text_model.encoder.layers.${layer[1]}.${inner}`;
}

/** OpenCLIP's path of a text encoder's parameter by transformers' path, with or without `text_model`; undefined for those that OpenCLIP stores otherwise. */
export function textToOpenClip(path: string): string | undefined {
  const full = path.startsWith('text_model.') ? path : `text_model.${path}`;
  if (full === 'text_model.embeddings.position_embedding.weight') return 'positional_embedding';
  const layer = /^text_model\.encoder\.layers\.(\d+)\.(.+)$/.exec(full);
  if (layer === null) return renamed(full, openClip, 1);
  const inner = renamed(layer[2]!, openClipLayer, 1);
  return inner && `transformer.resblocks.${layer[1]}.${inner}`;
}

/** The path with its beginning translated from column `from` of the table to the other one. */
function renamed(path: string, pairs: Pairs, from: 0 | 1): string | undefined {
  const pair = pairs.find((p) => path === p[from] || path.startsWith(`${p[from]}.`));
  return pair && pair[1 - from]! + path.slice(pair[from].length);
}

/** Translates what comes after `….resnets.N.`. */
function withinResnet(path: string, pairs: Pairs, from: 0 | 1): string {
  const [, place, inner] = /^(.*?resnets\.\d+\.)(.*)$/.exec(path) as unknown as [string, string, string];
  return place + (renamed(inner, pairs, from) ?? inner);
}

function throughVae(path: string, translate: (side: string, rest: string) => string): string {
  const dot = path.indexOf('.');
  const side = path.slice(0, dot);
  return side === 'encoder' || side === 'decoder' ? `${side}.${translate(side, path.slice(dot + 1))}` : path;
}
