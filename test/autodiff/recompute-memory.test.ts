import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { temporaryFolder } from '../temporary-folder.js';
import type { Measured } from './block-stack-process.js';

test('recomputing lowers the peak of a deep stack by far, runs every block twice, and gives the same gradients', async (t) => {
  const folder = await temporaryFolder(t);
  const script = fileURLToPath(new URL('./block-stack-process.js', import.meta.url));
  const measure = async (mode: string): Promise<Measured> => {
    const { stdout } = await promisify(execFile)(process.execPath, [script, folder, mode]);
    return JSON.parse(stdout) as Measured;
  };
  const kept = await measure('keep');
  const recomputed = await measure('recompute');

  // The engine's own profile: had it merged the copies with the originals, each activation would run once.
  assert.equal(kept.kernels.Gelu, kept.blocks);
  assert.equal(recomputed.kernels.Gelu, 2 * kept.blocks);

  const mebibytes = ({ peak }: Measured): number => Math.round(peak / 2 ** 20);
  assert.ok(
    recomputed.peak <= 0.65 * kept.peak,
    `peak of the run: ${mebibytes(recomputed)} MiB recomputed, ${mebibytes(kept)} MiB kept`,
  );
  t.diagnostic(`peak of the run: ${mebibytes(recomputed)} MiB recomputed, ${mebibytes(kept)} MiB kept`);

  assert.ok(Math.abs(recomputed.loss / kept.loss - 1) <= 1e-6);
  const largest = Math.max(...kept.gradients);
  assert.equal(recomputed.gradients.length, kept.gradients.length);
  for (const [i, g] of kept.gradients.entries()) {
    assert.ok(Math.abs(recomputed.gradients[i]! - g) <= 1e-5 * largest, `mean square ${i} of the gradients`);
  }
});
