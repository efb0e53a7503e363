import { resolve } from 'node:path';
import { CancelledError, ModelError } from '../errors.js';
import { pathExists } from '../formats/path-exists.js';
import type { DownloadProgress, FetchPatience, HubModel } from './hub.js';
import { readHubEnvironment, type Variables } from './hub-environment.js';
import { requiredFiles } from './model-files.js';
import type { Variant } from './weights.js';

export interface LocateOptions {
  /** The weights to get where a model has both. Default: the full ones. */
  readonly variant?: Variant | undefined;
  /** Opens no connection: what is not on this machine is an error. */
  readonly offline?: boolean | undefined;
  readonly onProgress?: ((progress: DownloadProgress) => void) | undefined;
  readonly onWarning?: ((message: string) => void) | undefined;
  /** Stops a download, which goes on from there the next time. */
  readonly signal?: AbortSignal | undefined;
  /** The variables that configure the hub; those of the process by default. */
  readonly variables?: Variables | undefined;
  readonly patience?: Partial<FetchPatience> | undefined;
}

/** A model that is on this machine. */
export interface LocatedModel {
  readonly path: string;
  /** What to write down to find the very same model again: an absolute path, or "hf://organisation/name@commit". */
  readonly identity: string;
}

/**
 * Finds the model that the user means. A path that exists is a path, whatever it looks like. "organisation/name", "organisation/name@revision", an address of
 * the hub ("https://huggingface.co/…") and "hf://organisation/name" are models of the hub, which are downloaded if they are not in its cache. Anything else is
 * returned as a path, for its reader to refuse. The hub's code is loaded, and a connection opened, for a model of the hub only.
 *
 * @throws HubError when the hub cannot give it. ModelError when it is not a model that can be read, or when the name is that of a path with a slip in it.
 *   CancelledError when the signal is raised.
 */
export async function locateModel(reference: string, options: LocateOptions = {}): Promise<LocatedModel> {
  const path = resolve(reference);
  if (await pathExists(path)) return { path, identity: path };
  const wanted = parseHubModel(reference);
  if (wanted === undefined) return { path, identity: path };
  if (!reference.includes('://')) await refuseSlip(reference);

  const { variant = 'full', offline, onProgress, onWarning, signal, patience } = options;
  const environment = await readHubEnvironment(options.variables ?? process.env);
  const { fetchModel } = await import('./hub.js');
  try {
    const fetched = await fetchModel(wanted, (files) => requiredFiles(files, variant), {
      environment: { ...environment, offline: offline === true || environment.offline },
      onProgress,
      onWarning,
      signal,
      ...(patience ? { patience } : {}),
    });
    return { path: fetched.path, identity: `hf://${wanted.model}@${fetched.commit}` };
  } catch (error) {
    if (!signal?.aborted) throw error;
    throw new CancelledError(
      `Stopped while downloading ${wanted.model}. What has come is kept; the same command goes on from there.`,
      { cause: error },
    );
  }
}

const part = '[A-Za-z0-9](?:[\\w.-]*[\\w])?';
const shorthand = new RegExp(`^(?:hf://)?(${part}/${part})(?:@([\\w][\\w./-]*))?$`);
const address = new RegExp(
  `^https?://(?:www\\.)?(?:huggingface\\.co|hf\\.co)/(${part}/${part})(?:/tree/([^?#]+?))?/?(?:[?#].*)?$`,
);

/** The model of the hub that a text names; undefined for any other text. */
export function parseHubModel(reference: string): HubModel | undefined {
  const [, model, given = 'main'] = shorthand.exec(reference) ?? address.exec(reference) ?? [];
  if (model === undefined) return undefined;
  const revision = given.replaceAll('%2F', '/');
  // A revision becomes a path in the cache.
  if (!/^[\w][\w./-]*$/.test(revision) || revision.split('/').includes('..')) return undefined;
  // The name of a file is no name of a model.
  return /\.(safetensors|ckpt|pt|pth|bin|onnx|json)$/i.test(model) ? undefined : { model, revision };
}

/** @throws ModelError for what could be a model's name, but begins with a folder that is here: asking the hub for it would tell a stranger of the slip. */
async function refuseSlip(reference: string): Promise<void> {
  const folder = reference.split('/')[0]!;
  if (!(await pathExists(resolve(folder)))) return;
  throw new ModelError(
    `There is no model at ${resolve(reference)}, although ${folder}/ is there. Check the spelling. If the model of that name on the hub is meant, write hf://${reference}.`,
  );
}
