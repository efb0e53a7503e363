import { HELD_OUT_SUBJECTS, type HeldOutSubject } from '../../src/data/world/held-out.js';
import type { PersonaliseSettings } from '../../src/workflows/personalisation-settings.js';

type Settings = Partial<PersonaliseSettings>;

/** One run to train, and how to draw from it. What it comes to follows from this alone. */
export interface Job {
  readonly subject: string;
  readonly settings: Settings;
  /** "a photo of TOKEN NOUN", or of the token alone. */
  readonly token: string;
  readonly namesClass: boolean;
  /** Pictures of each prompt. */
  readonly images: number;
}

/** The four encoders that ship, from the package's root: what rewards never judges. */
export const ENCODERS = {
  rewards: { dino: 'models/encoders/dino-reward', clip: 'models/encoders/clip-reward' },
  judges: { dino: 'models/encoders/dino-judge', clip: 'models/encoders/clip-judge' },
} as const;

export const STEPS = 200;
export const SEEDS = [1, 2, 3] as const;
export const IMAGES = 4;
export const SAMPLING = { samplingSteps: 10, scheduler: 'dpm', guidanceScale: 5 } as const satisfies Settings;

/** What all methods have in common. */
const COMMON: Settings = {
  ...SAMPLING,
  steps: STEPS,
  trainBatchSize: 4,
  lrScheduler: 'cosine',
  // The base draws its class in every colour, and at full weight that pull holds every subject back.
  priorLossWeight: 0.1,
  numClassImages: 8,
  numValidationImages: 1,
};

/** Subjects of the table, by name. Nothing had been drawn of any of them while the bench was made and settings were sought. */
const REPORTED: readonly string[] = [
  'green-checked-flower-clock',
  'black-zigzag-heart-sneaker',
  'purple-checked-moon-dog',
  'yellow-zigzag-flower-dog',
  'purple-dotted-flower-toy',
  'pink-checked-flower-boot',
  'teal-dotted-star-glasses',
  'red-zigzag-star-cartoon',
  'blue-striped-heart-cartoon',
  'black-striped-flower-teapot',
  'white-zigzag-heart-vase',
  'orange-striped-face-vase',
];
export const REPORT_SUBJECTS: readonly HeldOutSubject[] = HELD_OUT_SUBJECTS.filter(({ name }) =>
  REPORTED.includes(name),
);

const TUNING_NOUNS: readonly string[] = ['backpack', 'cat', 'toy'];

/** Settings are chosen on these alone. */
export const TUNING_SUBJECTS: readonly HeldOutSubject[] = HELD_OUT_SUBJECTS.filter(
  ({ use, noun }) => use === 'tuning' && TUNING_NOUNS.includes(noun),
);

/** The paper's numbers on DreamBench with Stable Diffusion 1.4 (arXiv 2407.06642, table 1). */
export interface Published {
  readonly dino: number;
  readonly clipI: number;
  readonly clipT: number;
}

export interface Method {
  readonly name: string;
  /** What it is compared with; undefined for the baselines themselves. */
  readonly baseline?: string;
  readonly published?: Published;
  readonly token: string;
  readonly namesClass: boolean;
  /** Settings to choose from; as many for every method. */
  readonly choices: readonly Settings[];
}

const published = (dino: number, clipI: number, clipT: number): Published => ({ dino, clipI, clipT });
const dreambooth: Settings = { method: 'dreambooth' };
const lookForward: Settings = { method: 'dpg', reward: 'look-forward', objective: 'official' };
const dinoReward: Settings = {
  method: 'dpg',
  objective: 'paper',
  reward: [{ kind: 'image-similarity', encoder: ENCODERS.rewards.dino, name: 'dino' }],
};
const mixedStates = (dinoWeight: number, clipWeight: number, textWeight: number): Settings => ({
  method: 'dpg',
  objective: 'paper',
  reward: [
    { kind: 'look-forward', weight: 1 },
    { kind: 'image-similarity', encoder: ENCODERS.rewards.dino, name: 'dino', weight: dinoWeight },
    { kind: 'image-similarity', encoder: ENCODERS.rewards.clip, name: 'clip-image', weight: clipWeight },
    { kind: 'text-alignment', encoder: ENCODERS.rewards.clip, name: 'clip-text', weight: textWeight },
  ],
  lambda: 1,
  rolloutFraction: 0.5,
});

const lora: Settings = { train: 'lora', trainTextEncoder: true };
const customDiffusion: Settings = { train: 'custom-diffusion', modifierToken: ['<new1>'] };
const textualInversion: Settings = { train: 'textual-inversion', placeholderToken: '<toy>' };

/** Every combination of the two, on top of what is fixed. */
const grid = (fixed: Settings, one: readonly Settings[], other: readonly Settings[] = [{}]): Settings[] =>
  one.flatMap((a) => other.map((b) => ({ ...fixed, ...a, ...b })));
const rates = (...learningRates: number[]): Settings[] =>
  learningRates.map((learningRate) => ({ learningRate }));
const lambdas: Settings[] = [{ lambda: 0.1 }, { lambda: 1 }];

export const BASELINE = 'DreamBooth';
export const OURS = 'Ours: look forward + DINO + CLIP + text on mixed states';

const sks = { token: 'sks', namesClass: true } as const;
const new1 = { token: '<new1>', namesClass: true } as const;

export const METHODS: readonly Method[] = [
  {
    name: BASELINE,
    published: published(0.694, 0.762, 0.282),
    ...sks,
    choices: grid({ ...lora, ...dreambooth }, rates(1e-3, 2e-3, 4e-3, 8e-3)),
  },
  {
    name: 'DreamBooth + DINO reward',
    baseline: BASELINE,
    published: published(0.723, 0.783, 0.27),
    ...sks,
    choices: grid({ ...lora, ...dinoReward }, rates(2e-3, 4e-3), lambdas),
  },
  {
    name: 'DreamBooth + look forward',
    baseline: BASELINE,
    published: published(0.738, 0.797, 0.269),
    ...sks,
    choices: grid({ ...lora, ...lookForward }, rates(1e-3, 2e-3, 4e-3, 8e-3)),
  },
  {
    name: 'Custom Diffusion',
    published: published(0.649, 0.712, 0.321),
    ...new1,
    choices: grid({ ...customDiffusion, ...dreambooth }, rates(5e-4, 1e-3, 2e-3, 4e-3)),
  },
  {
    name: 'Custom Diffusion + DINO reward',
    baseline: 'Custom Diffusion',
    published: published(0.64, 0.715, 0.32),
    ...new1,
    choices: grid({ ...customDiffusion, ...dinoReward }, rates(1e-3, 2e-3), lambdas),
  },
  {
    name: 'Custom Diffusion + look forward',
    baseline: 'Custom Diffusion',
    published: published(0.669, 0.728, 0.322),
    ...new1,
    choices: grid({ ...customDiffusion, ...lookForward }, rates(5e-4, 1e-3, 2e-3, 4e-3)),
  },
  {
    name: 'Textual inversion',
    token: '<toy>',
    namesClass: false,
    choices: grid({ ...textualInversion, ...dreambooth }, rates(1e-2, 5e-2), [
      { numVectors: 1 },
      { numVectors: 4 },
    ]),
  },
  {
    name: OURS,
    baseline: BASELINE,
    ...sks,
    choices: [
      ...grid({ ...lora, ...mixedStates(0.1, 0.3, 0.6) }, rates(2e-3, 4e-3)),
      ...grid(lora, rates(2e-3), [mixedStates(0.1, 0.3, 1), mixedStates(0.2, 0.6, 1)]),
    ],
  },
];

export const methodNamed = (name: string): Method => METHODS.find((m) => m.name === name)!;

/** A run of a method. */
export function jobOf(
  { token, namesClass }: Method,
  settings: Settings,
  subject: HeldOutSubject,
  seed: number,
  images: number,
): Job {
  return {
    subject: subject.name,
    settings: { ...COMMON, ...settings, seed },
    token,
    namesClass,
    images,
  };
}

/** Settings that a method is tried with beside the chosen ones, one change at a time. */
export interface Variation {
  readonly label: string;
  readonly change: Settings;
}

export const ABLATIONS: readonly {
  readonly method: string;
  readonly title: string;
  readonly variations: readonly Variation[];
}[] = [
  {
    method: 'DreamBooth + look forward',
    title: 'Discount gamma of the look-forward reward',
    variations: [1, 0.9986, 0.99, 0.9].map((gamma) => ({ label: String(gamma), change: { gamma } })),
  },
  {
    method: 'DreamBooth + DINO reward',
    title: 'Weight lambda of the DINO reward',
    variations: [0.01, 0.1, 1, 10].map((lambda) => ({ label: String(lambda), change: { lambda } })),
  },
];

export const CURVE_METHODS = [
  BASELINE,
  'DreamBooth + DINO reward',
  'DreamBooth + look forward',
  OURS,
] as const;
export const CURVE_STEPS = [50, 100, 200, 400] as const;
