/**
 * The printable stand-ins for the 256 byte values in byte-level BPE vocabularies (GPT-2, CLIP), in the order in which those vocabularies list them: bytes that
 * print in Latin-1 stand for themselves and come first, the others follow as U+0100, U+0101, …
 */
export function byteAlphabet(): string[] {
  const printable = [...span(0x21, 0x7e), ...span(0xa1, 0xac), ...span(0xae, 0xff)];
  const others = span(0, 0xff).filter((byte) => !printable.includes(byte));
  return [...printable, ...others.map((_, i) => 0x100 + i)].map((code) => String.fromCodePoint(code));
}

/** The stand-in of each byte, by the byte's value. */
export function byteStandIns(): string[] {
  const alphabet = byteAlphabet();
  const printable = alphabet.filter((char) => char.codePointAt(0)! < 0x100);
  const standIns = Array<string>(256);
  for (const char of printable) standIns[char.codePointAt(0)!] = char;
  let next = printable.length;
  for (let byte = 0; byte < 256; byte++) standIns[byte] ??= alphabet[next++]!;
  return standIns;
}

function span(first: number, last: number): number[] {
  return Array.from({ length: last - first + 1 }, (_, i) => first + i);
}
