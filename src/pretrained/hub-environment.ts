import { readFile } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join, resolve } from 'node:path';
import { UsageError } from '../errors.js';

/** Where the hub is and where its files are kept, by the variables that all tools of Hugging Face heed. */
export interface HubEnvironment {
  /** The hub's address, without a slash at its end. `HF_ENDPOINT`. */
  readonly endpoint: string;
  /** `HF_HUB_CACHE`, or `hub` in `HF_HOME`. */
  readonly cacheFolder: string;
  /** What identifies the user. `HF_TOKEN`, or the file that logging in has written (`HF_TOKEN_PATH`, or `token` in `HF_HOME`). */
  readonly token: string | undefined;
  /** Whether connections are forbidden. `HF_HUB_OFFLINE`. */
  readonly offline: boolean;
  /** Whether large files may come in the hub's own chunked form. `HF_HUB_DISABLE_XET` forbids it. */
  readonly xet: boolean;
}

export type Variables = Readonly<Record<string, string | undefined>>;

const DEFAULT_ENDPOINT = 'https://huggingface.co';

/** @throws UsageError when a variable makes no sense, or the token file cannot be read. */
export async function readHubEnvironment(variables: Variables): Promise<HubEnvironment> {
  const home =
    path(variables.HF_HOME) ??
    join(path(variables.XDG_CACHE_HOME) ?? join(homedir(), '.cache'), 'huggingface');
  return {
    endpoint: readEndpoint(variables.HF_ENDPOINT),
    cacheFolder: path(variables.HF_HUB_CACHE) ?? path(variables.HUGGINGFACE_HUB_CACHE) ?? join(home, 'hub'),
    token: isSet(variables.HF_HUB_DISABLE_IMPLICIT_TOKEN)
      ? undefined
      : (text(variables.HF_TOKEN) ??
        text(variables.HUGGING_FACE_HUB_TOKEN) ??
        (await readToken(path(variables.HF_TOKEN_PATH) ?? join(home, 'token')))),
    offline: isSet(variables.HF_HUB_OFFLINE || variables.TRANSFORMERS_OFFLINE),
    xet: !isSet(variables.HF_HUB_DISABLE_XET),
  };
}

function readEndpoint(value: string | undefined): string {
  const endpoint = (text(value) ?? DEFAULT_ENDPOINT).replace(/\/+$/, '');
  if (!URL.canParse(endpoint) || !/^https?:$/.test(new URL(endpoint).protocol)) {
    throw new UsageError(
      `HF_ENDPOINT is ${JSON.stringify(value)}; expected an address such as ${DEFAULT_ENDPOINT}.`,
    );
  }
  return endpoint;
}

async function readToken(file: string): Promise<string | undefined> {
  try {
    return text(await readFile(file, 'utf8'));
  } catch (error) {
    const code = error instanceof Error && 'code' in error ? error.code : undefined;
    if (code === 'ENOENT' || code === 'ENOTDIR') return undefined;
    throw new UsageError(
      `The token of the hub in ${file} cannot be read (${error instanceof Error ? error.message : error}). Mend the file's permissions, or set HF_TOKEN.`,
      { cause: error },
    );
  }
}

/** An empty variable counts as none. */
function text(value: string | undefined): string | undefined {
  return value?.trim() || undefined;
}

function path(value: string | undefined): string | undefined {
  const given = text(value);
  return given === undefined ? undefined : resolve(given.replace(/^~(?=$|[/\\])/, homedir()));
}

function isSet(value: string | undefined): boolean {
  return /^(1|on|yes|true)$/i.test(value ?? '');
}
