import { createHash } from 'node:crypto';
import { copyFile, link, readdir, readFile, rename, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { basename, dirname, join, relative } from 'node:path';
import { outputError, writeFileAtomic } from '../formats/atomic-file.js';
import { makeFolder } from '../formats/make-folder.js';

/** A commit of a repository, as git writes it. */
export const commitPattern = /^[0-9a-f]{40}$/;

/**
 * The part of the hub's cache that belongs to one model. The layout is that of Python's huggingface_hub, so each finds what the other has fetched:
 *
 * ```text
 * models--org--name/blobs/<etag>                  the bytes, by what identifies them
 * models--org--name/snapshots/<commit>/<path>     links to the bytes, by the file's name
 * models--org--name/refs/<branch or tag>          the commit that it was last seen at
 * models--org--name/.no_exist/<commit>/<path>     files that were looked for in vain
 * .locks/models--org--name/                       held while something is fetched
 * ```
 */
export class ModelCache {
  readonly folder: string;
  readonly lockFile: string;

  /** @param model "organisation/name" */
  constructor(cacheFolder: string, model: string) {
    const name = `models--${model.replaceAll('/', '--')}`;
    this.folder = join(cacheFolder, name);
    this.lockFile = join(cacheFolder, '.locks', name, 'portrayal.lock');
  }

  snapshot(commit: string): string {
    return join(this.folder, 'snapshots', commit);
  }

  blob(etag: string): string {
    return join(this.folder, 'blobs', etag);
  }

  /** What has come of a blob so far. Python clears away files of this ending when it prunes the cache. */
  partial(etag: string): string {
    return `${this.blob(etag)}.portrayal.incomplete`;
  }

  /** How many bytes of a blob are here, be it complete or not. */
  async bytesHere(etag: string): Promise<number> {
    const found = await stat(this.blob(etag)).catch(() => stat(this.partial(etag)).catch(() => undefined));
    return found?.size ?? 0;
  }

  /** The commit that a branch or tag was last seen at. */
  async readRef(revision: string): Promise<string | undefined> {
    const text = await readFile(join(this.folder, 'refs', revision), 'utf8').catch(() => undefined);
    const commit = text?.trim();
    return commit !== undefined && commitPattern.test(commit) ? commit : undefined;
  }

  async writeRef(revision: string, commit: string): Promise<void> {
    if (revision === commit || (await this.readRef(revision)) === commit) return;
    const path = join(this.folder, 'refs', revision);
    await makeFolder(dirname(path));
    await writeFileAtomic(path, commit);
  }

  /** The files of a commit that are here, by their path in the repository. Links that lead nowhere do not count. */
  files(commit: string): Promise<ReadonlySet<string>> {
    return filesBelow(this.snapshot(commit));
  }

  /** Files that a commit is known not to have. */
  absent(commit: string): Promise<ReadonlySet<string>> {
    return filesBelow(join(this.folder, '.no_exist', commit));
  }

  async markAbsent(commit: string, path: string): Promise<void> {
    const mark = join(this.folder, '.no_exist', commit, path);
    await makeFolder(dirname(mark));
    await writeFile(mark, '').catch((error: unknown) => {
      throw outputError(mark, error);
    });
  }

  /** Whether something has come of this model, be it in part. */
  async hasAny(): Promise<boolean> {
    return (await readdir(join(this.folder, 'blobs')).catch(() => [])).length > 0;
  }

  /** Names a blob as a file of a commit: by a relative link, so that the cache can be moved; where links are not allowed (Windows), by other means. */
  async link(commit: string, path: string, etag: string): Promise<void> {
    const blob = this.blob(etag);
    const pointer = join(this.snapshot(commit), path);
    await makeFolder(dirname(pointer));
    // Made aside and moved into place: a reader never finds the name without the file.
    const digest = createHash('sha256').update(`${process.pid} ${pointer}`).digest('hex').slice(0, 16);
    const aside = join(dirname(pointer), `.${basename(pointer)}.${digest}.partial`);
    try {
      await rm(aside, { force: true });
      await symlink(relative(dirname(pointer), blob), aside)
        .catch(() => link(blob, aside))
        .catch(() => copyFile(blob, aside));
      await rename(aside, pointer);
    } catch (error) {
      await rm(aside, { force: true }).catch(() => undefined);
      throw outputError(pointer, error);
    }
  }

  /** Makes the folder that blobs and partial files go to. */
  prepare(): Promise<void> {
    return makeFolder(join(this.folder, 'blobs'));
  }
}

async function filesBelow(root: string, below = ''): Promise<ReadonlySet<string>> {
  const found = new Set<string>();
  const names = await readdir(join(root, below)).catch(() => []);
  for (const name of names) {
    const path = below === '' ? name : `${below}/${name}`;
    const entry = await stat(join(root, path)).catch(() => undefined);
    if (entry?.isFile()) found.add(path);
    if (entry?.isDirectory()) for (const deeper of await filesBelow(root, path)) found.add(deeper);
  }
  return found;
}
