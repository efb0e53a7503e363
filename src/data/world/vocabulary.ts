import { ACCESSORIES } from './accessories.js';
import { PROPERTIES, RARE_TOKENS } from './example.js';
import { SCENES } from './scenes.js';
import { COLOUR_NAMES, MOTIFS, NOUNS, PATTERNS } from './subject.js';

const CONNECTING = ['a', 'an', 'and', 'photo', 'of', 'with', 'stripes', 'dots', 'checks', 'zigzags'];

/** Every lower-case word of the captions and of DreamBench's prompts, rare tokens among them, sorted by code unit. */
export function worldVocabulary(): string[] {
  const phrases = [
    ...CONNECTING,
    ...NOUNS,
    ...COLOUR_NAMES,
    ...PATTERNS.slice(1),
    ...MOTIFS.slice(1),
    ...PROPERTIES,
    ...RARE_TOKENS,
    ...SCENES.map((scene) => scene.phrase),
    ...ACCESSORIES.map((accessory) => accessory.phrase),
  ];
  const words = new Set(
    phrases.flatMap((phrase) => phrase.toLowerCase().split(' ')).filter((word) => word !== ''),
  );
  return [...words].sort();
}
