import { ACCESSORIES } from './accessories.js';
import { SCENES } from './scenes.js';
import { isLive } from './subject.js';

const ADJECTIVES = ['red', 'purple', 'shiny', 'wet', 'cube shaped'] as const;

/** DreamBench's 25 prompts for a noun, the object's or the live subject's list, in its order; with an empty token the ones that text alignment is scored with. */
export function dreamBenchPrompts(noun: string, token: string): string[] {
  const subject = token === '' ? noun : `${token} ${noun}`;
  const places = SCENES.slice(1).map((scene) => scene.phrase);
  const phrases = isLive(noun)
    ? [...places.slice(0, 10), ...ACCESSORIES.map((accessory) => accessory.phrase)]
    : places;
  return [
    ...phrases.map((phrase) => `a ${subject} ${phrase}`),
    ...ADJECTIVES.map((adjective) => `a ${adjective} ${subject}`),
  ];
}
