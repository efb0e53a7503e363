import { existsSync } from 'node:fs';
import { CancelledError } from '../errors.js';
import type { PersonaliseOptions } from '../workflows/personalise.js';
import { bundledSubjectPath } from '../workflows/shipped.js';
import { type CommandFactory, createCommand } from './command.js';
import { interruptible } from './interrupt.js';
import { textOption, wholeOption } from './option.js';
import { progressListener } from './progress.js';

/** Chosen so that the demo takes at most 3 minutes on two processors. */
const STEPS = 500;
const BATCH_SIZE = 4;
const LEARNING_RATE = 1e-3;
const CLASS_IMAGES = 16;
/** The base draws its class in every colour, and at full weight that pull holds the subject back. */
const PRIOR_LOSS_WEIGHT = 0.1;
const SAMPLING_STEPS = 25;
const GUIDANCE_SCALE = 5;
const IMAGES_PER_PROMPT = 2;
const SUBJECT = { instancePrompt: 'a photo of sks backpack', classPrompt: 'a photo of backpack' };
const SCENES = [
  'a sks backpack in the jungle',
  'a sks backpack in the snow',
  'a sks backpack on the beach',
  'a sks backpack on a cobblestone street',
  'a sks backpack with a mountain in the background',
];

type Personalise = (
  options: PersonaliseOptions,
) => Promise<{ readonly run: string; readonly report: string }>;

const startPersonalise: Personalise = async (options) =>
  (await import('../workflows/personalise.js')).personalise(options);

/** `portrayal demo`: the shipped base learns the bundled subject, with DPG and the look-forward reward. */
export const demoCommand: CommandFactory = (terminal) => createDemoCommand(terminal, startPersonalise);

/** @param personalise is called with the demo's settings */
export function createDemoCommand(
  terminal: Parameters<CommandFactory>[0],
  personalise: Personalise,
): ReturnType<CommandFactory> {
  const command = createCommand('demo', terminal)
    .usage('[FLAGS]')
    .addOption(
      textOption(
        '--output, --output-dir <dir>',
        'Run folder to write, or to go on with when it was stopped (default: runs/demo, runs/demo-2, …)',
      ),
    )
    .addOption(wholeOption('--threads <n>', 'Processors to use (default: all)', { atLeast: 1 }));
  return command.action(async () => {
    const { outputDir, threads } = command.opts<{ outputDir?: string; threads?: number }>();
    const output = outputDir ?? freeFolder('runs/demo');
    terminal.err.write(
      'Five pictures of a backpack that the small base model has never seen; it learns to draw it in new scenes.\n',
    );
    const listener = progressListener(terminal.err);
    const stopped = (error: unknown): never => {
      if (!(error instanceof CancelledError)) throw error;
      throw new CancelledError(`Stopped. This goes on from there:\n  portrayal demo --output ${output}`);
    };
    const { run, report } = await interruptible(
      (message) => listener({ kind: 'warning', message }),
      'Finishing this step, then saving',
      (signal) =>
        personalise({
          ...SUBJECT,
          images: bundledSubjectPath(),
          output,
          method: 'dpg',
          reward: 'look-forward',
          steps: STEPS,
          trainBatchSize: BATCH_SIZE,
          learningRate: LEARNING_RATE,
          numClassImages: CLASS_IMAGES,
          priorLossWeight: PRIOR_LOSS_WEIGHT,
          trainTextEncoder: true,
          validationPrompts: SCENES,
          numValidationImages: IMAGES_PER_PROMPT,
          samplingSteps: SAMPLING_STEPS,
          guidanceScale: GUIDANCE_SCALE,
          lrScheduler: 'cosine',
          ...(existsSync(output) ? { resumeFromCheckpoint: 'latest' } : {}),
          ...(threads === undefined ? {} : { threads }),
          onEvent: listener,
          signal,
        }),
    ).catch(stopped);
    terminal.err.write(
      `\nDraw more:  portrayal generate --run ${run} --prompt "${SCENES[0]}" --num-images 4 --output out/\nBefore and after, the curves and the settings are in the report:\n`,
    );
    terminal.out.write(`${report}\n`);
  });
}

/** The name, or the name with the next number that is not taken. */
function freeFolder(name: string): string {
  for (let n = 1; ; n++) {
    const candidate = n === 1 ? name : `${name}-${n}`;
    if (!existsSync(candidate)) return candidate;
  }
}
