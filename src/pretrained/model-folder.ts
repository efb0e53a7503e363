import { readdir, stat } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { ModelError } from '../errors.js';
import type { Config } from '../formats/json-config.js';
import { readConfigFile } from '../formats/json-config-file.js';
import type { Weight } from './weight.js';

/** The parts of every pipeline that portrayal reads, by the name of their folder. */
type CommonComponent = 'unet' | 'vae' | 'text_encoder' | 'tokenizer' | 'scheduler';

/** The parts that a pipeline with two text encoders has besides. */
type SecondComponent = 'text_encoder_2' | 'tokenizer_2';

export type ComponentName = CommonComponent | SecondComponent;

/** One part of a model folder, with its configuration read. Its weights are opened by `openWeights`. */
export interface Component {
  readonly name: ComponentName;
  /** The class that `model_index.json` gives, for example `UNet2DConditionModel`. */
  readonly className: string;
  /** The path of its folder, below the path that the model was opened with. */
  readonly folder: string;
  /** The names of the folder's entries, sorted. */
  readonly files: readonly string[];
  readonly config: Config;
  /** Where the weights lie, for a component of a single file; otherwise `openWeights` finds them in the folder. */
  readonly weights?: ReadonlyMap<string, Weight>;
}

/** A diffusers model folder, or what stands for it in a single file. */
export interface ModelFolder {
  /** Absolute path. */
  readonly path: string;
  readonly pipeline: PipelineName;
  /** `model_index.json`, for the settings in it that are the pipeline's own. */
  readonly index: Config;
  readonly components: Components;
}

export type Components = Readonly<
  Record<CommonComponent, Component> & Partial<Record<SecondComponent, Component>>
>;

interface ComponentLayout {
  readonly configFile: string;
  /** The classes that can be read. A scheduler's class says how it samples, not how it was trained, so its reader judges it. */
  readonly classes: readonly string[] | undefined;
}

const tokenizer: ComponentLayout = {
  configFile: 'tokenizer_config.json',
  classes: ['CLIPTokenizer', 'CLIPTokenizerFast'],
};

const common: Readonly<Record<CommonComponent, ComponentLayout>> = {
  unet: { configFile: 'config.json', classes: ['UNet2DConditionModel'] },
  vae: { configFile: 'config.json', classes: ['AutoencoderKL'] },
  text_encoder: { configFile: 'config.json', classes: ['CLIPTextModel'] },
  tokenizer,
  scheduler: { configFile: 'scheduler_config.json', classes: undefined },
};

/** What each pipeline is made of. Components that are not named here (safety checker, feature extractor) are not read. */
const pipelines = {
  StableDiffusionPipeline: common,
  StableDiffusionXLPipeline: {
    ...common,
    text_encoder_2: { configFile: 'config.json', classes: ['CLIPTextModelWithProjection'] },
    tokenizer_2: tokenizer,
  },
} as const satisfies Record<string, Partial<Record<ComponentName, ComponentLayout>>>;

/** The pipelines that can be read, by diffusers' name of their class. */
export type PipelineName = keyof typeof pipelines;

/** The file that names the pipeline and its components. */
export const indexFile = 'model_index.json';

/**
 * Reads the layout and the configurations of a diffusers model folder: `model_index.json`, and a folder for each of unet, vae, text_encoder, tokenizer and
 * scheduler. Weights are not touched.
 *
 * @throws ModelError when the path is not such a folder, or when a component is missing or of a class that cannot be read.
 */
export async function openModelFolder(path: string): Promise<ModelFolder> {
  await requireModelFolder(path);
  const index = await readConfigFile(join(path, indexFile));
  const { pipeline, layouts } = readPipeline(index);
  const opened = await Promise.all(
    layouts.map(async ([name, layout]) => [name, await openComponent(path, index, name, layout)] as const),
  );
  return {
    path: resolve(path),
    pipeline,
    index,
    components: Object.fromEntries(opened) as Components,
  };
}

function readPipeline(index: Config): {
  pipeline: PipelineName;
  layouts: readonly (readonly [ComponentName, ComponentLayout])[];
} {
  const pipeline = index.oneOf('_class_name', Object.keys(pipelines) as PipelineName[]);
  return { pipeline, layouts: Object.entries(pipelines[pipeline]) as [ComponentName, ComponentLayout][] };
}

/**
 * The folders that the pipeline of a `model_index.json` is read from, each with the name of the configuration that it must hold.
 * @throws ModelError when the pipeline is not one that can be read.
 */
export function pipelineFolders(index: Config): ReadonlyMap<ComponentName, string> {
  return new Map(readPipeline(index).layouts.map(([name, { configFile }]) => [name, configFile]));
}

async function openComponent(
  path: string,
  index: Config,
  name: ComponentName,
  layout: ComponentLayout,
): Promise<Component> {
  const entry = index.raw(name);
  const className = Array.isArray(entry) ? entry[1] : undefined;
  if (typeof className !== 'string') {
    throw index.unsupported(
      name,
      `a list of library and class, such as ["diffusers", "${layout.classes?.[0] ?? 'DDIMScheduler'}"]`,
    );
  }
  if (layout.classes !== undefined && !layout.classes.includes(className)) {
    throw index.unsupported(name, `the class ${layout.classes.join(' or ')}`);
  }
  const folder = join(path, name);
  const names = await listFolder(folder);
  if (names === undefined) {
    throw new ModelError(
      `${path} has no folder ${name}, which ${indexFile} promises. The model is incomplete; get it again.`,
    );
  }
  if (!names.includes(layout.configFile)) {
    throw new ModelError(`${folder} has no ${layout.configFile}. The model is incomplete; get it again.`);
  }
  const config = await readConfigFile(join(folder, layout.configFile));
  return { name, className, folder, files: names, config };
}

async function requireModelFolder(path: string): Promise<void> {
  const expected = `a diffusers model folder: one that holds ${indexFile} and the folders unet, vae, text_encoder, tokenizer and scheduler`;
  const names = await listFolder(path);
  if (names === undefined) {
    const found = await stat(path).catch(() => undefined);
    if (found === undefined)
      throw new ModelError(
        `There is no model at ${path}. Expected ${expected}; or a checkpoint in a single .safetensors file.`,
      );
    throw new ModelError(`${path} is not a folder. Expected ${expected}.`);
  }
  if (names.includes(indexFile)) return;
  const part = names.includes('config.json') ? await classIn(join(path, 'config.json')) : undefined;
  const found =
    part !== undefined
      ? `It is one component, ${part}, of a model; give the folder above it`
      : names.length === 0
        ? 'The folder is empty'
        : `It holds ${names.slice(0, 5).join(', ')}${names.length > 5 ? ', …' : ''}`;
  throw new ModelError(`${path} is not a model: it has no ${indexFile}. ${found}. Expected ${expected}.`);
}

/** The class that a component's own configuration names, if it is readable at all. */
async function classIn(configFile: string): Promise<string | undefined> {
  const config = await readConfigFile(configFile).catch(() => undefined);
  const architectures = config?.raw('architectures');
  const name = config?.raw('_class_name') ?? (Array.isArray(architectures) ? architectures[0] : undefined);
  return typeof name === 'string' ? name : undefined;
}

async function listFolder(path: string): Promise<string[] | undefined> {
  try {
    return (await readdir(path)).sort();
  } catch (error) {
    const code = error instanceof Error && 'code' in error ? error.code : undefined;
    if (code === 'ENOENT' || code === 'ENOTDIR') return undefined;
    if (code === 'EACCES' || code === 'EPERM') {
      throw new ModelError(`Cannot read the folder ${path}: permission is denied.`, { cause: error });
    }
    throw error;
  }
}
