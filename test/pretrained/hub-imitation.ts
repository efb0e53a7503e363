import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { readdirSync, readFileSync, statSync } from 'node:fs';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join, sep } from 'node:path';
import type { TestContext } from 'node:test';

/** What the imitation was asked. */
export interface Asked {
  readonly server: 'hub' | 'storage';
  readonly method: string;
  readonly path: string;
  readonly headers: IncomingMessage['headers'];
}

/** Takes a request in place of the imitation; false lets it through. */
export type Interception = (asked: Asked, response: ServerResponse) => boolean | Promise<boolean>;

interface Repository {
  readonly name: string;
  /** By branch or tag. */
  readonly revisions: Map<string, string>;
  /** By commit, then by path. */
  readonly commits: Map<string, ReadonlyMap<string, Buffer>>;
}

/**
 * An imitation of the hub on loopback, for one model: the API's model info and tree (in pages), `resolve` with entity tags and ranges, large files behind a
 * redirect to a second server that stands for the storage. Checked against huggingface_hub by scripts/check-hub-cache.ts.
 */
export class HubImitation {
  readonly asked: Asked[] = [];
  /** Consulted first for every request. */
  intercept: Interception = () => false;
  /** The token without which nothing is given. */
  token: string | undefined;
  /** Offers large files in chunks too, by the protocol of https://huggingface.co/docs/xet/en/download-protocol. */
  chunked = false;
  readonly #repository: Repository;
  readonly #hub: Server;
  readonly #storage: Server;

  private constructor(name: string, files: ReadonlyMap<string, Buffer>) {
    this.#repository = { name, revisions: new Map(), commits: new Map() };
    this.commit('main', files);
    this.#hub = createServer((request, response) => void this.#answer('hub', request, response));
    this.#storage = createServer((request, response) => void this.#answer('storage', request, response));
  }

  static async start(
    t: Pick<TestContext, 'after'>,
    name: string,
    files: ReadonlyMap<string, Buffer>,
  ): Promise<HubImitation> {
    const imitation = new HubImitation(name, files);
    for (const server of [imitation.#hub, imitation.#storage]) {
      server.listen(0, '127.0.0.1');
      await once(server, 'listening');
    }
    t.after(() => {
      for (const server of [imitation.#hub, imitation.#storage]) {
        server.close();
        server.closeAllConnections();
      }
    });
    return imitation;
  }

  get endpoint(): string {
    return `http://127.0.0.1:${(this.#hub.address() as AddressInfo).port}`;
  }

  get storage(): string {
    return `http://127.0.0.1:${(this.#storage.address() as AddressInfo).port}`;
  }

  /** Moves a branch to a new commit with these files. */
  commit(revision: string, files: ReadonlyMap<string, Buffer>): string {
    const commit = createHash('sha1').update(`${revision} ${this.#repository.commits.size}`).digest('hex');
    this.#repository.commits.set(commit, files);
    this.#repository.revisions.set(revision, commit);
    return commit;
  }

  /** The paths asked for so far, without queries; then forgets them. */
  takePaths(): string[] {
    return this.asked.splice(0).map(({ path }) => path.split('?')[0]!);
  }

  async #answer(
    server: 'hub' | 'storage',
    request: IncomingMessage,
    response: ServerResponse,
  ): Promise<void> {
    const asked = { server, method: request.method!, path: request.url!, headers: request.headers };
    this.asked.push(asked);
    if (await this.intercept(asked, response)) return;
    const url = new URL(request.url!, this.endpoint);
    const [, form, hash = ''] = /^\/(v2\/reconstructions|xorb)\/([0-9a-f]{64})$/.exec(url.pathname) ?? [];
    if (server === 'storage' && form !== undefined) {
      const bytes = this.#file(hash)!;
      if (form === 'xorb') send(request, response, inChunks(bytes), {});
      else json(response, reconstruction(bytes, hash, this.storage, request.headers.range ?? ''));
      return;
    }
    if (server === 'storage') {
      const bytes = this.#file(url.pathname.slice(1));
      if (bytes === undefined) return refuse(response, 403, undefined);
      send(request, response, bytes, { ETag: '"of-the-storage"' });
      return;
    }
    if (this.token !== undefined && request.headers.authorization !== `Bearer ${this.token}`) {
      return refuse(response, 401, 'RepoNotFound');
    }
    const { name } = this.#repository;
    if (url.pathname.startsWith(`/api/models/${name}/xet-read-token/`)) {
      return json(response, {
        accessToken: 'of-the-storage',
        casUrl: this.storage,
        exp: Date.now() / 1000 + 3600,
      });
    }
    const [, kind, revision = '', rest = ''] =
      new RegExp(`^/api/models/${name}/(revision|tree)/([^/]+)()$`).exec(url.pathname) ??
      new RegExp(`^/${name}/(resolve)/([^/]+)/(.+)$`).exec(url.pathname) ??
      [];
    if (kind === undefined) return refuse(response, 404, 'RepoNotFound');
    const wanted = decodeURIComponent(revision);
    const commit = this.#repository.revisions.get(wanted) ?? wanted;
    const files = this.#repository.commits.get(commit);
    if (files === undefined) return refuse(response, 404, 'RevisionNotFound');
    if (kind === 'revision') return json(response, modelInfo(name, commit, files));
    if (kind === 'tree') return this.#tree(response, url, files);
    const bytes = files.get(decodeURIComponent(rest));
    if (bytes === undefined) return refuse(response, 404, 'EntryNotFound');
    return this.#resolve(request, response, rest, bytes, commit);
  }

  #tree(response: ServerResponse, url: URL, files: ReadonlyMap<string, Buffer>): void {
    const page = 5;
    const start = Number(url.searchParams.get('cursor') ?? 0);
    const entries = [...files].map(([path, bytes]) => {
      const oid = gitDigest(bytes);
      return isLarge(path)
        ? {
            type: 'file',
            path,
            size: bytes.length,
            oid: gitDigest(pointer(bytes)),
            lfs: { oid: sha256(bytes), size: bytes.length, pointerSize: 130 },
          }
        : { type: 'file', path, size: bytes.length, oid };
    });
    const folders = [
      ...new Set([...files.keys()].filter((p) => p.includes('/')).map((p) => p.split('/')[0]!)),
    ];
    const all = [
      ...folders.map((path) => ({ type: 'directory', path, size: 0, oid: gitDigest(Buffer.from(path)) })),
      ...entries,
    ];
    if (start + page < all.length) {
      const next = new URL(url);
      next.searchParams.set('cursor', String(start + page));
      response.setHeader('Link', `<${next.href}>; rel="next"`);
    }
    json(response, all.slice(start, start + page));
  }

  #resolve(
    request: IncomingMessage,
    response: ServerResponse,
    path: string,
    bytes: Buffer,
    commit: string,
  ): void {
    response.setHeader('X-Repo-Commit', commit);
    if (!isLarge(path)) {
      send(request, response, bytes, { ETag: `"${gitDigest(bytes)}"` });
      return;
    }
    if (this.chunked && request.headers.accept?.includes('xet-fileinfo')) {
      const hash = sha256(bytes);
      response.writeHead(200, {
        'Content-Type': 'application/vnd.xet-fileinfo+json',
        'X-Linked-Size': String(bytes.length),
        'X-Linked-ETag': `"${hash}"`,
        'X-Xet-Hash': hash,
        Link: [
          `<${this.endpoint}/api/models/${this.#repository.name}/xet-read-token/${commit}>; rel="xet-auth"`,
          `<${this.storage}/v1/reconstructions/${hash}>; rel="xet-reconstruction-info"`,
        ].join(', '),
      });
      response.end('{}');
      return;
    }
    response.writeHead(302, {
      Location: `${this.storage}/${sha256(bytes)}`,
      'X-Linked-Size': String(bytes.length),
      'X-Linked-ETag': `"${sha256(bytes)}"`,
      'Content-Length': '0',
    });
    response.end();
  }

  #file(digest: string): Buffer | undefined {
    for (const files of this.#repository.commits.values()) {
      for (const bytes of files.values()) if (sha256(bytes) === digest) return bytes;
    }
    return undefined;
  }
}

/** The files of a folder by their path, as a repository has them; links count as what they lead to. */
export function filesOf(folder: string): Map<string, Buffer> {
  const paths = (readdirSync(folder, { recursive: true }) as string[]).sort();
  return new Map(
    paths
      .filter((path) => statSync(join(folder, path)).isFile())
      .map((path) => [path.split(sep).join('/'), readFileSync(join(folder, path))]),
  );
}

export function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}

/** What git calls a file of these bytes. */
export function gitDigest(bytes: Uint8Array): string {
  return createHash('sha1').update(`blob ${bytes.length}\0`).update(bytes).digest('hex');
}

/** Kept outside of git, as the hub does with weights. */
export function isLarge(path: string): boolean {
  return /\.(safetensors|bin|ckpt)$/.test(path);
}

/** What stands in git for a large file. */
function pointer(bytes: Buffer): Buffer {
  return Buffer.from(
    `version https://git-lfs.github.com/spec/v1\noid sha256:${sha256(bytes)}\nsize ${bytes.length}\n`,
  );
}

export function refuse(
  response: ServerResponse,
  status: number,
  code: string | undefined,
  headers: Record<string, string> = {},
): void {
  response.writeHead(status, {
    ...(code ? { 'X-Error-Code': code } : {}),
    'Content-Type': 'application/json',
    ...headers,
  });
  response.end(JSON.stringify({ error: code ?? 'refused' }));
}

const CHUNK = 16_384;

/** Bytes as chunks that are not compressed, each behind its header: version, length, scheme, length. */
function inChunks(bytes: Buffer): Buffer {
  const parts: Buffer[] = [];
  for (let start = 0; start < bytes.length; start += CHUNK) {
    const chunk = bytes.subarray(start, start + CHUNK);
    const header = Buffer.alloc(8);
    header.writeUIntLE(chunk.length, 1, 3);
    header.writeUIntLE(chunk.length, 5, 3);
    parts.push(header, chunk);
  }
  return Buffer.concat(parts);
}

/** How to put a range of a file together from its chunks. */
function reconstruction(bytes: Buffer, hash: string, storage: string, range: string): object {
  const start = Number(/^bytes=(\d+)-/.exec(range)?.[1] ?? 0);
  const first = Math.floor(start / CHUNK);
  const chunks = { start: first, end: Math.ceil(bytes.length / CHUNK) };
  const physical = { start: first * (CHUNK + 8), end: bytes.length + 8 * chunks.end - 1 };
  return {
    offset_into_first_range: start - first * CHUNK,
    terms: [{ hash, unpacked_length: bytes.length - first * CHUNK, range: chunks }],
    xorbs: { [hash]: [{ url: `${storage}/xorb/${hash}`, ranges: [{ chunks, bytes: physical }] }] },
  };
}

function modelInfo(name: string, sha: string, files: ReadonlyMap<string, Buffer>): object {
  return {
    _id: '621ffdc036468d709f174328',
    id: name,
    modelId: name,
    sha,
    private: false,
    gated: false,
    disabled: false,
    downloads: 0,
    likes: 0,
    tags: ['diffusers'],
    pipeline_tag: 'text-to-image',
    lastModified: '2024-01-01T00:00:00.000Z',
    createdAt: '2024-01-01T00:00:00.000Z',
    siblings: [...files.keys()].map((rfilename) => ({ rfilename })),
  };
}

function json(response: ServerResponse, value: unknown): void {
  response.setHeader('Content-Type', 'application/json; charset=utf-8');
  response.end(JSON.stringify(value));
}

function send(
  request: IncomingMessage,
  response: ServerResponse,
  bytes: Buffer,
  headers: Record<string, string>,
): void {
  const range = /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? '');
  const start = Number(range?.[1] ?? 0);
  const end = range?.[2] ? Math.min(Number(range[2]) + 1, bytes.length) : bytes.length;
  if (start >= bytes.length && bytes.length > 0) {
    response.writeHead(416, { 'Content-Range': `bytes */${bytes.length}` }).end();
    return;
  }
  const body = bytes.subarray(start, end);
  response.writeHead(range ? 206 : 200, {
    ...headers,
    'Accept-Ranges': 'bytes',
    'Content-Length': String(body.length),
    ...(range ? { 'Content-Range': `bytes ${start}-${end - 1}/${bytes.length}` } : {}),
  });
  response.end(request.method === 'HEAD' ? undefined : body);
}
