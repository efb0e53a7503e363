import { createHash, type Hash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { open, rename, rm, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { HubError } from '../errors.js';
import { flushFolder, outputError } from '../formats/atomic-file.js';
import type { ModelCache } from './hub-cache.js';
import type { HubClient, HubFile, RepositoryFile } from './hub-client.js';
import { networkFault } from './hub-faults.js';
import type { Retry } from './hub-retry.js';

export interface DownloadOptions {
  readonly client: HubClient;
  readonly cache: ModelCache;
  readonly retry: Retry;
  /** Hears how many of the file's bytes are here. */
  readonly onBytes: (bytes: number) => void;
  readonly onWarning: ((message: string) => void) | undefined;
}

/**
 * Brings the bytes of one file into the cache, if they are not there, going on from what an earlier attempt has left. They take their name only when they are
 * complete and are what the hub promised. The caller holds the cache's lock.
 *
 * @throws HubError when they cannot be had. OutputError when the disk is full. What has come is kept for the next attempt.
 */
export async function downloadBlob(source: RepositoryFile, options: DownloadOptions): Promise<void> {
  const { file } = source;
  const blob = options.cache.blob(file.etag);
  if ((await stat(blob).catch(() => undefined))?.size !== file.size) {
    await complete(source, options);
    const partial = options.cache.partial(file.etag);
    await rename(partial, blob).catch((error: unknown) => {
      throw outputError(blob, error);
    });
    await flushFolder(dirname(blob));
  }
  options.onBytes(file.size);
}

/** Fills the partial file until it is whole and right. */
async function complete(
  source: RepositoryFile,
  { client, cache, retry, onBytes, onWarning }: DownloadOptions,
): Promise<void> {
  const { file } = source;
  const path = cache.partial(file.etag);
  // Only large files are kept in chunks.
  let chunked = file.etag.length === 64;
  let damaged = false;
  for (;;) {
    const digest = startDigest(file);
    const partial = await open(path, 'a').catch((error: unknown) => {
      throw outputError(path, error);
    });
    try {
      let received = (await partial.stat()).size;
      if (received > file.size) {
        await partial.truncate(0);
        received = 0;
      }
      if (received > 0) {
        const before = createReadStream(path, { end: received - 1 }) as AsyncIterable<Uint8Array>;
        for await (const piece of before) digest.update(piece);
      }
      onBytes(received);
      if (received < file.size) {
        for await (const piece of client.read(source, received, chunked)) {
          await partial.writeFile(piece).catch((error: unknown) => {
            throw outputError(path, error);
          });
          digest.update(piece);
          received += piece.byteLength;
          retry.progressed();
          onBytes(received);
        }
        if (received < file.size) throw networkFault(new Error('the connection broke'), client.endpoint);
      }
      await partial.sync();
    } catch (error) {
      // The chunked form is for speed; what fails is tried in the plain one.
      chunked = false;
      await retry.after(error);
      continue;
    } finally {
      await partial.close();
    }
    if (digest.digest('hex') === file.etag) return;
    await rm(path, { force: true });
    if (damaged) throw checksumFault(source);
    damaged = true;
    onWarning?.(`${file.path} arrived damaged; getting it again.`);
  }
}

/** SHA-256 of the bytes for what is kept outside of git, else git's own: SHA-1 with the size in front. */
function startDigest({ etag, size }: HubFile): Hash {
  return etag.length === 64 ? createHash('sha256') : createHash('sha1').update(`blob ${size}\0`);
}

function checksumFault({ model, file }: RepositoryFile): HubError {
  return new HubError(
    'checksum',
    `${file.path} of ${model} arrived twice with other bytes than the hub promises (${file.etag}). Something on the way changes them: a proxy, a mirror (HF_ENDPOINT), or a faulty disk. Nothing of it was kept.`,
  );
}
