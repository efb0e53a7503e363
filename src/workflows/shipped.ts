import { fileURLToPath } from 'node:url';

const packageRoot = new URL('../../../', import.meta.url);

/** The small base model that ships with the package: a diffusers folder. */
export function shippedModelPath(): string {
  return fileURLToPath(new URL('models/base', packageRoot));
}

/** Five pictures of the bundled subject. */
export function bundledSubjectPath(): string {
  return fileURLToPath(new URL('examples/teal-zigzag-star-backpack', packageRoot));
}
