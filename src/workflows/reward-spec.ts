import { UsageError } from '../errors.js';
import type { Json } from '../formats/json-config.js';
import type { ScoreFunction } from '../rewards/function-reward.js';

interface Common {
  /** Factor of the reward in the sum or harmonic mean of all. Default 1. */
  readonly weight?: number;
  /** Discount per timestep of this reward; `gamma` of the run by default. */
  readonly gamma?: number;
  /** Names its curves. Default: the kind's, with a number where several have it. */
  readonly name?: string;
}

/** A reward, as the API takes it. On the command line it is a text; see {@link parseReward}. */
export type RewardSpec =
  /** Minus the squared distance of latents from the photograph's. */
  | ({ readonly kind: 'look-forward' } & Common)
  /** Likeness to the photograph: a Hugging Face folder of a ViT, DINOv2 or CLIP, or an .onnx file that embeds pictures. */
  | ({ readonly kind: 'image-similarity'; readonly encoder: string } & Common)
  /** Alignment with a text in the eyes of a CLIP folder: by default with the row's own prompt, without the rare token. */
  | ({ readonly kind: 'text-alignment'; readonly encoder: string; readonly text?: string } & Common)
  /** An .onnx file that gives pictures a number each. */
  | ({ readonly kind: 'onnx'; readonly file: string } & Common)
  /** Size of the picture as a JPEG file, in bits per pixel. */
  | ({ readonly kind: 'jpeg-size' } & Common)
  /** The default export of a JavaScript module, a {@link ScoreFunction}, in a thread of its own. */
  | ({ readonly kind: 'module'; readonly path: string } & Common)
  /** A function of the caller's. A run that is resumed has to be given it again, under the same name. */
  | ({ readonly kind: 'function'; readonly score: ScoreFunction; readonly name: string } & Common)
  /** An HTTP endpoint that is sent pictures and answers numbers. */
  | ({ readonly kind: 'endpoint'; readonly url: string } & Endpoint & Common);

interface Endpoint {
  /** Pictures in one request. Default 8. */
  readonly batchSize?: number;
  /** How often a request that failed is sent again. Default 4. */
  readonly retries?: number;
  /** The wait before the first of these, in seconds; it doubles each time. Default 1. */
  readonly backOff?: number;
}

/** One reward, as a text or in full. */
export type RewardInput = string | RewardSpec;

/** A reward with nothing left open but what the run gives all. */
export type NamedReward = RewardSpec & { readonly name: string; readonly weight: number };

const SYNTAX =
  'look-forward, dino:DIR, dinov2:DIR, clip-image:DIR, clip-text:DIR, embedding:DIR, embedding:FILE.onnx, onnx:FILE.onnx, jpeg-size, ./module.mjs or http://host/path, each followed by =WEIGHT and @GAMMA where wanted';

/** Kinds that need a source, by the word before the colon. */
const withSource: Readonly<Record<string, (source: string) => RewardSpec>> = {
  dino: (encoder) => ({ kind: 'image-similarity', encoder, name: 'dino' }),
  dinov2: (encoder) => ({ kind: 'image-similarity', encoder, name: 'dinov2' }),
  'clip-image': (encoder) => ({ kind: 'image-similarity', encoder, name: 'clip-image' }),
  embedding: (encoder) => ({ kind: 'image-similarity', encoder, name: 'embedding' }),
  'clip-text': (encoder) => ({ kind: 'text-alignment', encoder, name: 'clip-text' }),
  onnx: (file) => ({ kind: 'onnx', file, name: 'onnx' }),
};

const bare: Readonly<Record<string, RewardSpec>> = {
  'look-forward': { kind: 'look-forward' },
  'jpeg-size': { kind: 'jpeg-size' },
};

/**
 * Reads a reward as it is written on the command line: `NAME[:SOURCE][=WEIGHT][@GAMMA]`, for example `dino:encoders/dino=0.5@0.999`. A URL with a query takes
 * neither weight nor discount, since they could not be told from the query.
 *
 * @throws UsageError for a reward that is not known
 */
export function parseReward(text: string): RewardSpec {
  const query = /^https?:/i.test(text) && text.includes('?');
  const [, body, weight, gamma] = query
    ? [text, text, undefined, undefined]
    : /^(.*?)(?:=([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?))?(?:@((?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?))?$/is.exec(
        text,
      )!;
  return {
    ...specOf(body!, text),
    ...(weight === undefined ? {} : { weight: Number(weight) }),
    ...(gamma === undefined ? {} : { gamma: Number(gamma) }),
  };
}

function specOf(body: string, text: string): RewardSpec {
  if (/^https?:\/\//i.test(body)) {
    if (!URL.canParse(body)) throw new UsageError(`--reward ${text}: ${body} is not a URL.`);
    return { kind: 'endpoint', url: body };
  }
  if (/\.(mjs|js|mts|ts)$/i.test(body)) return { kind: 'module', path: body };
  const known = bare[body];
  if (known) return known;
  const [, kind = body, source = ''] = /^([a-z0-9-]+):(.*)$/is.exec(body) ?? [];
  const build = withSource[kind];
  if (build && source !== '') return build(source);
  if (build) throw new UsageError(`--reward ${text}: ${kind} needs a source, as in ${kind}:path/to/it.`);
  throw new UsageError(`--reward ${text}: not a known reward. Expected ${SYNTAX}.`);
}

/**
 * Completes a list of rewards: texts are parsed, every reward gets a weight and a name of its own.
 *
 * @throws UsageError for rewards or values that make no sense
 */
export function completeRewards(
  given: RewardInput | readonly RewardInput[],
  combination: 'sum' | 'harmonic',
): NamedReward[] {
  const list = Array.isArray(given) ? (given as readonly RewardInput[]) : [given as RewardInput];
  if (list.length === 0) throw new UsageError(`The list of rewards is empty. Expected ${SYNTAX}.`);
  const taken = new Set<string>();
  return list.map((input) => {
    const spec = typeof input === 'string' ? parseReward(input) : input;
    if (!kinds.includes(spec.kind)) {
      throw new UsageError(
        `The reward ${JSON.stringify(spec.kind)} is not known. Expected ${kinds.join(', ')}.`,
      );
    }
    const { weight = 1, gamma } = spec;
    if (!Number.isFinite(weight) || weight === 0) {
      throw new UsageError(
        `The weight ${weight} of the reward ${spec.kind}: expected a number other than 0.`,
      );
    }
    if (combination === 'harmonic' && weight < 0) {
      throw new UsageError(
        `The weight ${weight} of the reward ${spec.kind}: expected a number above 0, as a harmonic mean knows no other. Use --reward-combination sum.`,
      );
    }
    if (gamma !== undefined && !(gamma > 0 && gamma <= 1)) {
      throw new UsageError(
        `The discount ${gamma} of the reward ${spec.kind}: expected a number above 0 and at most 1.`,
      );
    }
    const base = spec.name ?? (spec.kind === 'module' ? moduleName(spec.path) : spec.kind);
    if (!/^[\w-]+$/.test(base)) {
      throw new UsageError(
        `The name ${JSON.stringify(base)} of a reward: expected letters, digits, - and _.`,
      );
    }
    let name = base;
    for (let n = 2; taken.has(name); n++) name = `${base}-${n}`;
    taken.add(name);
    return { ...spec, name, weight };
  });
}

const kinds: readonly string[] = [
  'look-forward',
  'image-similarity',
  'text-alignment',
  'onnx',
  'jpeg-size',
  'module',
  'function',
  'endpoint',
] satisfies readonly RewardSpec['kind'][];

/** Whether these are the authors' released reward and nothing else. */
export function isLookForwardAlone(rewards: readonly NamedReward[]): boolean {
  const [first, ...rest] = rewards;
  return (
    rest.length === 0 && first?.kind === 'look-forward' && first.weight === 1 && first.gamma === undefined
  );
}

/** Whether a reward is outside the graph. */
export function isBlackBox({ kind }: RewardSpec): boolean {
  return kind === 'jpeg-size' || kind === 'module' || kind === 'function' || kind === 'endpoint';
}

/** How the run's settings keep rewards: as text where it is the released one, otherwise in full, functions by their names. */
export function rewardsAsJson(rewards: readonly NamedReward[]): Json {
  return isLookForwardAlone(rewards) ? 'look-forward' : (JSON.parse(JSON.stringify(rewards)) as Json);
}

function moduleName(path: string): string {
  const file = path.split(/[\\/]/).at(-1)!;
  return file.replace(/\.[^.]*$/, '').replace(/[^\w-]+/g, '-');
}
