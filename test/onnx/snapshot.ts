import assert from 'node:assert/strict';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';

const folder = new URL('../../../test/onnx/snapshots/', import.meta.url);

/** Lines of two texts side by side: what both have, `-` what only the first has, `+` what only the second has. */
export function difference(before: string, after: string): string {
  const [a, b] = [before.split('\n'), after.split('\n')];
  // common[i][j]: the most lines that a from i and b from j have in common, in order
  const common = Array.from({ length: a.length + 1 }, () => new Uint32Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      common[i]![j] =
        a[i] === b[j] ? common[i + 1]![j + 1]! + 1 : Math.max(common[i + 1]![j]!, common[i]![j + 1]!);
    }
  }
  const lines: string[] = [];
  let [i, j] = [0, 0];
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) {
      lines.push(`  ${a[i]}`);
      i++;
      j++;
    } else if (j === b.length || (i < a.length && common[i + 1]![j]! >= common[i]![j + 1]!)) {
      lines.push(`- ${a[i++]}`);
    } else {
      lines.push(`+ ${b[j++]}`);
    }
  }
  return lines.join('\n');
}

/** Compares a text with the committed one in snapshots/<name>.txt. With UPDATE_SNAPSHOTS=1 in the environment it is written instead. */
export function matchSnapshot(name: string, actual: string): void {
  const file = new URL(`${name}.txt`, folder);
  if (process.env.UPDATE_SNAPSHOTS === '1') {
    writeFileSync(file, actual);
    return;
  }
  assert.ok(existsSync(file), `there is no snapshot ${name}.txt; run with UPDATE_SNAPSHOTS=1 to write it`);
  const expected = readFileSync(file, 'utf8');
  if (actual !== expected) {
    assert.fail(
      `the graph is not that of test/onnx/snapshots/${name}.txt; if it should be, run with UPDATE_SNAPSHOTS=1\n${difference(expected, actual)}`,
    );
  }
}
