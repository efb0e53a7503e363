import { contrasting, type Depiction, describe, type Labels, labelsOf } from '../data/world/example.js';
import { isHeldOut } from '../data/world/held-out.js';
import { SCENES } from '../data/world/scenes.js';
import { COLOUR_NAMES, NOUNS, type Subject } from '../data/world/subject.js';
import type { DrawingRequest } from '../pretrained/text-to-image.js';
import { Random } from '../tensor/random.js';

/** A prompt, and what its picture has to show: the pattern is left to the model. */
export interface FidelityRequest extends DrawingRequest {
  readonly truth: Labels;
}

/**
 * Prompts that name a noun, a colour and a place, the studio among the places (it is what no place means): each of them equally often, in random combinations that
 * follow from the seed. None is a held-out subject.
 */
export function fidelityRequests(count: number, seed: number): FidelityRequest[] {
  const random = new Random(seed, 'fidelity');
  const nouns = evenly(NOUNS, count, random);
  const scenes = evenly(SCENES, count, random);
  const colours = evenly(COLOUR_NAMES, count, random);
  return nouns.map((noun, i) => {
    const colour = colours[i]!;
    const subject: Subject = {
      noun,
      colour,
      pattern: 'plain',
      secondColour: contrasting(colour)[0]!,
      motif: 'none',
      variant: 0,
    };
    if (isHeldOut(subject)) throw new Error('internal: a plain subject is held out');
    const depiction: Depiction = { subject, scene: scenes[i]!.name };
    return {
      prompt: describe(depiction, { colour: true }),
      seed: random.derive(i).bits(),
      truth: { ...labelsOf(depiction), pattern: undefined }, // any pattern is what the prompt asks for
    };
  });
}

/** `count` of these in random order, each as often as the others, or once more. */
function evenly<T>(items: readonly T[], count: number, random: Random): T[] {
  const repeated = Array.from({ length: count }, (_, i) => items[i % items.length]!);
  return random.permutation(count).map((i) => repeated[i]!);
}
