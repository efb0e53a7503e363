import { devices } from '../engine/device.js';
import type { GenerateOptions } from '../workflows/generate.js';
import { type CommandFactory, createCommand, requireFlags } from './command.js';
import { interruptible } from './interrupt.js';
import {
  choiceOption,
  loraOption,
  mixedPrecisionOption,
  modelSourceOptions,
  numberOption,
  predictionTypeOption,
  repeatedOption,
  schedulerOption,
  switchOptions,
  textOption,
  wholeOption,
} from './option.js';
import { progressListener } from './progress.js';

type Generate = (options: GenerateOptions) => Promise<readonly string[]>;

const EXAMPLE =
  'portrayal generate --run runs/backpack --prompt "a sks backpack on the beach" --num-images 4 --output out/';

const startGenerate: Generate = async (options) =>
  (await import('../workflows/generate.js')).generate(options);

/** `portrayal generate`: writes the paths of the pictures to the standard output, one a line. */
export const generateCommand: CommandFactory = (terminal) => createGenerateCommand(terminal, startGenerate);

/** @param generate is called with what the flags say */
export function createGenerateCommand(
  terminal: Parameters<CommandFactory>[0],
  generate: Generate,
): ReturnType<CommandFactory> {
  const [karras, noKarras] = switchOptions(
    '--use-karras-sigmas',
    "Noise levels of euler and dpm as Karras et al. space them (default: the model's own)",
  );
  const [variant, offline] = modelSourceOptions("the run's, or full");
  const command = createCommand('generate', terminal)
    .usage('--prompt TEXT --output DIR [--run DIR] [FLAGS]')
    .addOption(textOption('--run <dir>', 'Run folder that "portrayal train" wrote'))
    .addOption(
      textOption(
        '--model, --pretrained-model-name-or-path <model>',
        "Model folder, single .safetensors file, or org/name of the Hugging Face hub (default: the run's, or the shipped base)",
      ),
    )
    .addOption(variant)
    .addOption(offline)
    .addOption(predictionTypeOption())
    .addOption(loraOption('A LoRA to draw with; may be given several times, each with a weight (default: 1)'))
    .addOption(repeatedOption('--prompt <text>', 'What to draw; may be given several times'))
    .addOption(textOption('--output, --output-dir <dir>', 'Folder for the pictures'))
    .addOption(wholeOption('--num-images <n>', 'Pictures of each prompt (default: 1)', { atLeast: 1 }))
    .addOption(
      wholeOption(
        '--seed <n>',
        'Seed of the first picture, then one more each; noise as in PyTorch (default: 0)',
        { atLeast: 0 },
      ),
    )
    .addOption(wholeOption('--steps <n>', 'Steps of the sampler (default: 30)', { atLeast: 1 }))
    .addOption(
      numberOption('--guidance-scale <x>', 'Classifier-free guidance; 1 is none (default: 7.5)', {
        atLeast: 0,
      }),
    )
    .addOption(schedulerOption())
    .addOption(karras)
    .addOption(noKarras)
    .addOption(textOption('--negative-prompt <text>', 'What the pictures should not show'))
    .addOption(
      wholeOption('--resolution <pixels>', "Side of the pictures (default: the run's)", { atLeast: 1 }),
    )
    .addOption(wholeOption('--threads <n>', 'Processors to use (default: all)', { atLeast: 1 }))
    .addOption(
      choiceOption(
        '--device <name>',
        'cpu, cuda, webgpu, dml or coreml: the README says what each needs (default: cpu)',
        devices,
      ),
    )
    .addOption(
      mixedPrecisionOption('no or fp16: compute in half precision, on a graphics card (default: no)'),
    )
    .addHelpText('after', `\nFor example:\n  ${EXAMPLE}`);
  return command.action(async () => {
    requireFlags(command, ['prompt', 'outputDir'], EXAMPLE);
    const listener = progressListener(terminal.err);
    const paths = await interruptible(
      (message) => listener({ kind: 'warning', message }),
      'Stopping after this step',
      (signal) => generate({ ...generateOptions(command.opts()), onEvent: listener, signal }),
    );
    terminal.out.write(paths.map((path) => `${path}\n`).join(''));
  });
}

/** Flags whose name is not that of the option it sets. */
const optionNames: Readonly<Record<string, keyof GenerateOptions>> = {
  pretrainedModelNameOrPath: 'model',
  outputDir: 'output',
  prompt: 'prompts',
  lora: 'loras',
};

function generateOptions(flags: Readonly<Record<string, unknown>>): GenerateOptions {
  const named = Object.entries(flags).map(([flag, value]) => [optionNames[flag] ?? flag, value] as const);
  return Object.fromEntries(named) as unknown as GenerateOptions;
}
