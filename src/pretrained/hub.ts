import { statfs } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { HubError, ModelError, OutputError } from '../errors.js';
import { formatBytes } from '../formats/byte-size.js';
import { readConfigFile } from '../formats/json-config-file.js';
import { LockFile } from '../formats/lock-file.js';
import { commitPattern, ModelCache } from './hub-cache.js';
import { HubClient, type HubFile } from './hub-client.js';
import { downloadBlob } from './hub-download.js';
import type { HubEnvironment } from './hub-environment.js';
import { mayPass, type Patience, Retry } from './hub-retry.js';
import type { ModelFiles } from './model-files.js';
import { TransferRate } from './transfer-rate.js';

/** A model of the hub. */
export interface HubModel {
  /** "organisation/name" */
  readonly model: string;
  /** A branch, a tag, or a commit. */
  readonly revision: string;
}

/** How much of a model has been downloaded. */
export interface DownloadProgress {
  readonly model: string;
  readonly bytes: number;
  /** Of all files that are needed, with those that were here before. */
  readonly totalBytes: number;
  readonly bytesPerSecond: number;
  /** Undefined while there is nothing to estimate it from. */
  readonly secondsLeft: number | undefined;
}

export interface FetchOptions {
  readonly environment: HubEnvironment;
  readonly onProgress?: ((progress: DownloadProgress) => void) | undefined;
  readonly onWarning?: ((message: string) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly patience?: Partial<FetchPatience>;
}

export interface FetchPatience extends Patience {
  /** Milliseconds without a byte after which a connection counts as broken. */
  readonly idleTimeout: number;
}

export interface FetchedModel {
  /** The folder with the model's files. */
  readonly path: string;
  readonly commit: string;
}

/** Chooses the files that are needed, asking for those that it has to look into. */
export type FileChoice = (files: ModelFiles) => Promise<string[]>;

const defaultPatience: FetchPatience = { attempts: 6, pause: 1000, idleTimeout: 30_000 };
/** Files that are fetched at the same time: two fill a line that one cannot, and more would only share it. */
const AT_ONCE = 2;
/** How often a process that waits for another's download looks again, in milliseconds. */
const LOOK_AGAIN = 500;

/**
 * Gives the folder with a model's files, downloading what is not in the cache. A branch or tag that is cached and complete costs one small request, which asks
 * whether it has moved; a commit that is cached costs none.
 *
 * @throws HubError when the hub cannot give it; what has come is kept, and the next call goes on from there. ModelError when it is not a model that can be
 *   read. OutputError when the cache cannot be written.
 */
export async function fetchModel(
  wanted: HubModel,
  choose: FileChoice,
  options: FetchOptions,
): Promise<FetchedModel> {
  const { model, revision } = wanted;
  const { environment, signal, onWarning } = options;
  const patience = { ...defaultPatience, ...options.patience };
  const cache = new ModelCache(environment.cacheFolder, model);
  const known = commitPattern.test(revision) ? revision : await cache.readRef(revision);
  const cached = known !== undefined && (await isCached(cache, known, choose));
  if (known !== undefined && cached && (environment.offline || revision === known)) {
    return { path: cache.snapshot(known), commit: known };
  }
  if (environment.offline) return takeWhatIsHere(cache, wanted, known, choose, onWarning);

  const client = new HubClient({ ...environment, idleTimeout: patience.idleTimeout, signal });
  let commit: string;
  try {
    // With the model at hand the question is not worth waiting for.
    const retry = new Retry({ ...patience, attempts: cached ? 1 : patience.attempts }, onWarning, signal);
    commit = await retry.of(() => client.commit(model, revision));
  } catch (error) {
    if (known === undefined || !cached || !mayPass(error)) throw error;
    onWarning?.(
      `${environment.endpoint} did not answer, so it is not known whether ${model} has changed. The copy on this machine is used.`,
    );
    return { path: cache.snapshot(known), commit: known };
  }
  if (!(commit === known && cached)) {
    const lock = await takeLock(cache, model, options);
    try {
      // Another process may have brought it meanwhile.
      if (!(await isCached(cache, commit, choose))) {
        await new Download(model, commit, cache, { ...options, patience }).run(choose);
      }
    } finally {
      await lock.release();
    }
  }
  await cache.writeRef(revision, commit);
  return { path: cache.snapshot(commit), commit };
}

/** A file that would have to be looked into is not in the cache. */
class NotHere extends Error {
  constructor(readonly file: string) {
    super(`internal: ${file} is not here`);
  }
}

/** What is needed of a commit and is not in the cache, as far as what is there tells. @param others whether there can be files that are not here */
async function missingFiles(
  cache: ModelCache,
  commit: string,
  choose: FileChoice,
  others: 'no' | 'unknown',
): Promise<string[]> {
  const [here, absent] = [await cache.files(commit), await cache.absent(commit)];
  try {
    const chosen = await choose({
      name: cache.snapshot(commit),
      has: (path) => (here.has(path) ? 'yes' : absent.has(path) ? 'no' : others),
      list: () => [...here],
      read: async (path) => {
        if (!here.has(path)) throw new NotHere(path);
        return readConfigFile(join(cache.snapshot(commit), path));
      },
    });
    return chosen.filter((path) => !here.has(path));
  } catch (error) {
    if (error instanceof NotHere) return [error.file];
    throw error;
  }
}

/** Whether all that is needed of a commit is in the cache. */
async function isCached(cache: ModelCache, commit: string, choose: FileChoice): Promise<boolean> {
  try {
    return (await missingFiles(cache, commit, choose, 'unknown')).length === 0;
  } catch (error) {
    // What is here cannot be used; the hub may have something better.
    if (error instanceof ModelError) return false;
    throw error;
  }
}

/** Without a connection: the other variant does too. */
async function takeWhatIsHere(
  cache: ModelCache,
  { model, revision }: HubModel,
  commit: string | undefined,
  choose: FileChoice,
  onWarning: ((message: string) => void) | undefined,
): Promise<FetchedModel> {
  const online = 'Without --offline (and HF_HUB_OFFLINE), the same command gets';
  if (commit === undefined || (await cache.files(commit)).size === 0) {
    throw new HubError(
      'offline',
      (await cache.hasAny())
        ? `Revision "${revision}" of ${model} is not on this machine, or was downloaded only in part (${cache.folder}), and connections are forbidden. ${online} what is missing.`
        : `${model} is not on this machine (${cache.folder}), and connections are forbidden. ${online} it.`,
    );
  }
  const missing = await missingFiles(cache, commit, choose, 'unknown');
  const withoutVariant = await missingFiles(cache, commit, choose, 'no').catch((error: unknown) => {
    if (error instanceof ModelError) return undefined;
    throw error;
  });
  if (withoutVariant?.length !== 0) {
    throw new HubError(
      'offline',
      `${model} is on this machine only in part: ${cache.snapshot(commit)} lacks ${missing.join(', ')}, and connections are forbidden. ${online} the rest.`,
    );
  }
  onWarning?.(
    `${missing.join(', ')} of ${model} ${missing.length === 1 ? 'is' : 'are'} not on this machine; without a connection the weights of the other precision are used.`,
  );
  return { path: cache.snapshot(commit), commit };
}

/** Waits for its turn if another process is downloading the same model. */
async function takeLock(
  cache: ModelCache,
  model: string,
  { onWarning, signal }: FetchOptions,
): Promise<LockFile> {
  for (let told = false; ; told = true) {
    const taken = await LockFile.acquire(cache.lockFile);
    if (taken instanceof LockFile) return taken;
    if (!told) {
      onWarning?.(
        `Process ${taken.pid} on ${taken.host} is downloading ${model}; waiting for it. If it has surely ended, delete ${cache.lockFile}.`,
      );
    }
    await sleep(LOOK_AGAIN, undefined, signal ? { signal } : {});
  }
}

/** Brings what is needed of a commit into the cache. */
class Download {
  readonly #model: string;
  readonly #commit: string;
  readonly #cache: ModelCache;
  readonly #options: FetchOptions & { readonly patience: FetchPatience };
  readonly #client: HubClient;
  /** Raised by the caller's signal, or when one of the files has failed: the others stop too. */
  readonly #signal: AbortSignal;
  readonly #failed = new AbortController();
  /** By path, how many bytes of a file are here. */
  readonly #received = new Map<string, number>();
  readonly #rate = new TransferRate();
  #totalBytes: number | undefined;

  constructor(
    model: string,
    commit: string,
    cache: ModelCache,
    options: FetchOptions & { readonly patience: FetchPatience },
  ) {
    this.#model = model;
    this.#commit = commit;
    this.#cache = cache;
    this.#options = options;
    const { environment, patience, signal } = options;
    this.#signal = AbortSignal.any([this.#failed.signal, ...(signal ? [signal] : [])]);
    this.#client = new HubClient({ ...environment, idleTimeout: patience.idleTimeout, signal: this.#signal });
  }

  async run(choose: FileChoice): Promise<void> {
    await this.#cache.prepare();
    const listed = await this.#retry().of(() => this.#client.files(this.#model, this.#commit));
    const files = new Map(listed.map((file) => [file.path, file]));
    const absent = new Set<string>();
    const chosen = await choose({
      name: `${this.#options.environment.endpoint}/${this.#model}`,
      has: (path) => {
        if (files.has(path)) return 'yes';
        absent.add(path);
        return 'no';
      },
      list: () => [...files.keys()],
      read: async (path) => {
        const file = files.get(path);
        if (file) await this.#fetch(file);
        return readConfigFile(join(this.#cache.snapshot(this.#commit), path));
      },
    });
    // Noted before the files come, so that what is complete can be told to be so.
    for (const path of absent) await this.#cache.markAbsent(this.#commit, path);
    const wanted = chosen.map((path) => files.get(path)!);
    this.#totalBytes = wanted.reduce((sum, { size }) => sum + size, 0);
    await this.#requireSpace(wanted);
    await this.#fetchAll(wanted);
  }

  /** In order, a few at a time. */
  async #fetchAll(wanted: readonly HubFile[]): Promise<void> {
    const waiting = [...wanted];
    const work = async (): Promise<void> => {
      for (let file = waiting.shift(); file !== undefined; file = waiting.shift()) await this.#fetch(file);
    };
    let first: { readonly error: unknown } | undefined;
    const workers = Array.from({ length: AT_ONCE }, () =>
      work().catch((error: unknown) => {
        first ??= { error };
        this.#failed.abort();
      }),
    );
    await Promise.all(workers);
    if (first) throw first.error;
  }

  async #fetch(file: HubFile): Promise<void> {
    await downloadBlob(
      { model: this.#model, commit: this.#commit, file },
      {
        client: this.#client,
        cache: this.#cache,
        retry: this.#retry(),
        onBytes: (bytes) => this.#progress(file.path, bytes),
        onWarning: this.#options.onWarning,
      },
    );
    await this.#cache.link(this.#commit, file.path, file.etag);
  }

  #progress(path: string, bytes: number): void {
    this.#received.set(path, bytes);
    const totalBytes = this.#totalBytes;
    if (totalBytes === undefined) return;
    let sum = 0;
    for (const n of this.#received.values()) sum += n;
    this.#options.onProgress?.({
      model: this.#model,
      bytes: sum,
      totalBytes,
      ...this.#rate.at(sum, totalBytes),
    });
  }

  #retry(): Retry {
    return new Retry(this.#options.patience, this.#options.onWarning, this.#signal);
  }

  /** @throws OutputError when the disk cannot hold what is still to come: better now than after an hour. */
  async #requireSpace(wanted: readonly HubFile[]): Promise<void> {
    let needed = 0;
    for (const { etag, size } of wanted) needed += Math.max(0, size - (await this.#cache.bytesHere(etag)));
    const { bavail, bsize } = await statfs(this.#cache.folder);
    if (needed <= bavail * bsize) return;
    throw new OutputError(
      `${this.#model} needs ${formatBytes(needed)} more in ${this.#cache.folder}, where ${formatBytes(bavail * bsize)} are free. Free some space, or set HF_HUB_CACHE to a folder on a larger disk.`,
    );
  }
}
