import { downloadFile, listFiles, modelInfo } from '@huggingface/hub';
import { HubError } from '../errors.js';
import { commitPattern } from './hub-cache.js';
import type { HubEnvironment } from './hub-environment.js';
import { networkFault, refusal } from './hub-faults.js';

/** A file of a repository, as the hub lists it. */
export interface HubFile {
  readonly path: string;
  readonly size: number;
  /** What the bytes are known by: the SHA-256 of a large file, git's SHA-1 of any other. It is the file's name in the cache. */
  readonly etag: string;
}

/** A model's repository at a commit. */
export interface RepositoryFile {
  readonly model: string;
  readonly commit: string;
  readonly file: HubFile;
}

export interface HubClientOptions extends Pick<HubEnvironment, 'endpoint' | 'token' | 'xet'> {
  /** Milliseconds without a byte after which a connection counts as broken. */
  readonly idleTimeout: number;
  readonly signal?: AbortSignal | undefined;
}

/** The library holds this much per file that comes in the hub's chunked form, in bytes. */
const CHUNKS_IN_FLIGHT = 64 * 2 ** 20;

/** One call of the library, which makes one or more requests. It ends when the signal is raised, or when nothing has been heard for too long. */
class Call {
  readonly #options: HubClientOptions;
  readonly #asked: { readonly model: string; readonly revision: string };
  readonly #silence = new AbortController();
  readonly #signal: AbortSignal;
  readonly #timer: NodeJS.Timeout;
  #noted: HubError | undefined;

  constructor(options: HubClientOptions, model: string, revision: string) {
    this.#options = options;
    this.#asked = { model, revision };
    const signals = [this.#silence.signal, ...(options.signal ? [options.signal] : [])];
    this.#signal = AbortSignal.any(signals);
    this.#timer = setTimeout(() => this.#silence.abort(), options.idleTimeout);
  }

  get parameters(): { hubUrl: string; fetch: typeof fetch } {
    return { hubUrl: this.#options.endpoint, fetch: (input, init) => this.#fetch(input, init) };
  }

  /** Something came, so the connection lives. */
  heard(): void {
    this.#timer.refresh();
  }

  end(): void {
    clearTimeout(this.#timer);
  }

  /** Why it failed. The library may keep no more than the message of what `fetch` throws, so the reason is the one noted here. */
  fault(error: unknown): unknown {
    const { signal, endpoint } = this.#options;
    if (signal?.aborted) return signal.reason;
    if (this.#silence.signal.aborted) return networkFault(new Error('nothing came for too long'), endpoint);
    if (error instanceof HubError) return error;
    if (this.#noted) return this.#noted;
    // A body that breaks off.
    if (error instanceof TypeError) return networkFault(error, endpoint);
    return nonsense(
      endpoint,
      `what cannot be understood (${error instanceof Error ? error.message : error})`,
    );
  }

  async #fetch(input: Parameters<typeof fetch>[0], init: RequestInit = {}): Promise<Response> {
    const { endpoint, token } = this.#options;
    const url = new URL(input instanceof Request ? input.url : input);
    const toHub = url.origin === new URL(endpoint).origin;
    const headers = new Headers(init.headers);
    headers.set('User-Agent', 'portrayal');
    // The library would take none but tokens of the official hub. `fetch` drops the header when it is sent on to another server.
    if (token !== undefined && toHub) headers.set('Authorization', `Bearer ${token}`);
    const response = await fetch(url, { ...init, headers, signal: this.#signal }).catch((error: unknown) => {
      this.#noted = networkFault(error, url.origin);
      throw error;
    });
    this.heard();
    if (!response.ok) {
      this.#noted = refusal(response, { ...this.#options, ...this.#asked });
      // From storage servers the library knows how to recover: it has addresses renewed that have expired.
      if (!toHub) return response;
      await response.body?.cancel();
      throw this.#noted;
    }
    const range = headers.get('Range');
    if (range === 'bytes=0-0') {
      // The library wants no more than the headers, and leaves the rest unread: the connection would stay open.
      await (response.status === 206 ? response.arrayBuffer() : response.body?.cancel());
    } else if (toHub && range !== null && response.status !== 206) {
      // A server that cannot send parts sends all from the beginning.
      const from = Number(/^bytes=(\d+)-/.exec(range)?.[1]);
      return new Response(response.body?.pipeThrough(withoutFirst(from)), { headers: response.headers });
    }
    return response;
  }
}

/**
 * What portrayal asks of the hub, through the hub's own library. Each request carries the user's token (to the hub itself, never to the servers that it sends
 * us on to) and the name "portrayal", and nothing else. Refusals become a {@link HubError}.
 */
export class HubClient {
  readonly #options: HubClientOptions;

  constructor(options: HubClientOptions) {
    this.#options = options;
  }

  get endpoint(): string {
    return this.#options.endpoint;
  }

  /** The commit that a branch, a tag or a commit stands for. */
  commit(model: string, revision: string): Promise<string> {
    return this.#asking(model, revision, async (parameters) => {
      const { sha } = await modelInfo({ ...parameters, name: model, revision, additionalFields: ['sha'] });
      if (!commitPattern.test(sha)) throw nonsense(this.endpoint, `the commit ${JSON.stringify(sha)}`);
      return sha;
    });
  }

  /** All files of a commit. */
  files(model: string, commit: string): Promise<HubFile[]> {
    return this.#asking(model, commit, async (parameters, heard) => {
      const files: HubFile[] = [];
      const listing = listFiles({
        ...parameters,
        repo: { type: 'model', name: model },
        revision: commit,
        recursive: true,
      });
      for await (const { type, path, size, oid, lfs } of listing) {
        heard();
        if (type !== 'file') continue;
        const etag = lfs?.oid ?? oid ?? '';
        if (!/^([0-9a-f]{40}|[0-9a-f]{64})$/.test(etag))
          throw nonsense(this.endpoint, `the digest ${JSON.stringify(etag)} of ${path}`);
        files.push({ path, size: lfs?.size ?? size, etag });
      }
      return files;
    });
  }

  /**
   * The bytes of a file from an offset on.
   * @param chunked whether the hub's own chunked form may be used; it is quicker, plain HTTP is sturdier
   */
  async *read(
    { model, commit, file }: RepositoryFile,
    from: number,
    chunked: boolean,
  ): AsyncGenerator<Uint8Array> {
    const request = new Call(this.#options, model, commit);
    let reader: ReadableStreamDefaultReader<Uint8Array> | undefined;
    try {
      const { path, size, etag } = file;
      const encoded = path.split('/').map(encodeURIComponent).join('/');
      const url = `${this.endpoint}/${model}/resolve/${commit}/${encoded}`;
      const blob = await downloadFile({
        ...request.parameters,
        repo: { type: 'model', name: model },
        path,
        revision: commit,
        // Otherwise the library asks for the chunked form's whereabouts first.
        ...(chunked && this.#options.xet
          ? { parallelDownloads: { maxInFlightBytes: CHUNKS_IN_FLIGHT } }
          : { downloadInfo: { size, etag, url } }),
      });
      if (blob?.size !== file.size)
        throw nonsense(this.endpoint, `${blob?.size} bytes for ${file.path}, which has ${file.size}`);
      reader = (from === 0 ? blob : blob.slice(from)).stream().getReader();
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        request.heard();
        yield value;
      }
    } catch (error) {
      throw request.fault(error);
    } finally {
      request.end();
      await reader?.cancel().catch(() => undefined);
    }
  }

  async #asking<T>(
    model: string,
    revision: string,
    ask: (parameters: { hubUrl: string; fetch: typeof fetch }, heard: () => void) => Promise<T>,
  ): Promise<T> {
    const request = new Call(this.#options, model, revision);
    try {
      return await ask(request.parameters, () => request.heard());
    } catch (error) {
      throw request.fault(error);
    } finally {
      request.end();
    }
  }
}

/** Lets bytes through from an offset on. */
function withoutFirst(count: number): TransformStream<Uint8Array, Uint8Array> {
  let left = count;
  return new TransformStream({
    transform(piece, controller) {
      if (left < piece.byteLength) controller.enqueue(piece.subarray(left));
      left = Math.max(0, left - piece.byteLength);
    },
  });
}

function nonsense(endpoint: string, what: string): HubError {
  return new HubError('server', `${endpoint} answered with ${what}. Is HF_ENDPOINT the address of a hub?`);
}
