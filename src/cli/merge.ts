import type { MergeOptions } from '../workflows/merge.js';
import { type CommandFactory, createCommand, requireFlags } from './command.js';
import { interruptible } from './interrupt.js';
import { loraOption, modelSourceOptions, textOption } from './option.js';
import { progressListener } from './progress.js';

type Merge = (options: MergeOptions) => Promise<string>;

const EXAMPLE =
  'portrayal merge --model v1-5.safetensors --lora runs/backpack/pytorch_lora_weights.safetensors:0.8 --output v1-5-backpack.safetensors';

const startMerge: Merge = async (options) => (await import('../workflows/merge.js')).mergeLoras(options);

/** `portrayal merge`: writes the path of the new model to the standard output. */
export const mergeCommand: CommandFactory = (terminal) => createMergeCommand(terminal, startMerge);

/** @param merge is called with what the flags say */
export function createMergeCommand(
  terminal: Parameters<CommandFactory>[0],
  merge: Merge,
): ReturnType<CommandFactory> {
  const [variant, offline] = modelSourceOptions();
  const command = createCommand('merge', terminal)
    .usage('--model MODEL --lora FILE[:WEIGHT] --output PATH')
    .addOption(
      textOption(
        '--model, --pretrained-model-name-or-path <model>',
        'Diffusers model folder, single .safetensors file, or org/name of the Hugging Face hub',
      ),
    )
    .addOption(variant)
    .addOption(offline)
    .addOption(loraOption('What to bake in; may be given several times, each with a weight (default: 1)'))
    .addOption(
      textOption(
        '--output <path>',
        'The new folder, or the new file where the model is a file; not there yet',
      ),
    )
    .addHelpText('after', `\nFor example:\n  ${EXAMPLE}`);
  return command.action(async () => {
    requireFlags(command, ['pretrainedModelNameOrPath', 'lora', 'output'], EXAMPLE);
    const flags = command.opts<{
      pretrainedModelNameOrPath: string;
      lora: MergeOptions['loras'];
      output: string;
      variant?: MergeOptions['variant'];
      offline?: true;
    }>();
    const listener = progressListener(terminal.err);
    const path = await interruptible(
      (message) => listener({ kind: 'warning', message }),
      'Stopping after this tensor',
      (signal) =>
        merge({
          model: flags.pretrainedModelNameOrPath,
          loras: flags.lora,
          output: flags.output,
          variant: flags.variant,
          offline: flags.offline,
          onEvent: listener,
          signal,
        }),
    );
    terminal.out.write(`${path}\n`);
  });
}
