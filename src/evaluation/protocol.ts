import { dreamBenchPrompts } from './dreambench-prompts.js';

/** The benchmarks whose rules can be followed. */
export const protocols = ['dreambench', 'customconcept101'] as const;
export type ProtocolName = (typeof protocols)[number];

/** What a benchmark fixes. */
export interface Protocol {
  readonly name: ProtocolName;
  readonly title: string;
  /** Pictures of each prompt. */
  readonly numImages: number;
  /** Prompts of a subject, with {} in the place of "sks dog"; undefined where each subject brings its own. */
  readonly prompts?: (subject: { readonly live: boolean }) => readonly string[];
  /** From the cosine between a picture and its text. */
  readonly textScore: (cosine: number) => number;
  /** "mean cosine" */
  readonly textScoreName: string;
}

/**
 * - DreamBench (Ruiz et al., CVPR 2023): 25 prompts a subject, four pictures each; text by the cosine.
 * - CustomConcept101 (Kumari et al., CVPR 2023): the prompts of each concept come with the benchmark, one file a kind of concept; text by 2.5 times the
 *   positive part of the cosine (CLIPScore, Hessel et al., EMNLP 2021).
 */
export const protocolOf: Readonly<Record<ProtocolName, Protocol>> = {
  dreambench: {
    name: 'dreambench',
    title: 'DreamBench',
    numImages: 4,
    prompts: ({ live }) => dreamBenchPrompts(live),
    textScore: (cosine) => cosine,
    textScoreName: 'cosine',
  },
  customconcept101: {
    name: 'customconcept101',
    title: 'CustomConcept101',
    numImages: 50,
    textScore: (cosine) => 2.5 * Math.max(cosine, 0),
    textScoreName: '2.5 * max(cosine, 0)',
  },
};

/** A prompt with its subject in it: by token and class to draw it, by class alone to score it. */
export function fillPrompt(template: string, subject: string): string {
  return template.replaceAll('{}', subject);
}
