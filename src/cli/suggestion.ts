/** The known word that a mistyped one most likely stands for; undefined when none is near. */
export function nearestWord(typed: string, known: readonly string[]): string | undefined {
  let [nearest, least] = [undefined as string | undefined, Number.POSITIVE_INFINITY];
  for (const word of known) {
    const distance = editDistance(typed, word);
    if (distance < least) [nearest, least] = [word, distance];
  }
  return least <= Math.max(1, Math.round(typed.length / 3)) ? nearest : undefined;
}

/** Fewest insertions, deletions, replacements and swaps of neighbours that turn one word into the other (optimal string alignment). */
export function editDistance(a: string, b: string): number {
  let beforeLast: number[] = [];
  let last = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const replaced = last[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1);
      let fewest = Math.min(replaced, last[j]! + 1, row[j - 1]! + 1);
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) {
        fewest = Math.min(fewest, beforeLast[j - 2]! + 1);
      }
      row.push(fewest);
    }
    [beforeLast, last] = [last, row];
  }
  return last[b.length]!;
}
