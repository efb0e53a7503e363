import { UsageError } from '../errors.js';
import type { PredictionType } from '../pretrained/architectures.js';
import {
  type ConvertLoraOptions,
  type ConvertModelOptions,
  type LoraFormat,
  loraFormats,
} from '../workflows/convert.js';
import { type CommandFactory, createCommand, requireFlags } from './command.js';
import { choiceOption, predictionTypeOption, textOption } from './option.js';

interface Conversions {
  readonly lora: (options: ConvertLoraOptions) => Promise<string>;
  readonly model: (options: ConvertModelOptions) => Promise<string>;
}

const EXAMPLE =
  'portrayal convert --lora style.safetensors --format kohya --output style-for-comfyui.safetensors';
const MODEL_EXAMPLE = 'portrayal convert --model v1-5.safetensors --output v1-5/';

const conversions: Conversions = {
  lora: async (options) => (await import('../workflows/convert.js')).convertLora(options),
  model: async (options) => (await import('../workflows/convert.js')).convertModel(options),
};

interface Flags {
  readonly lora?: string;
  readonly format?: LoraFormat;
  readonly pretrainedModelNameOrPath?: string;
  readonly predictionType?: PredictionType;
  readonly output: string;
}

/** `portrayal convert`: writes the path of the new file or folder to the standard output. */
export const convertCommand: CommandFactory = (terminal) => createConvertCommand(terminal, conversions);

/** @param convert is called with what the flags say */
export function createConvertCommand(
  terminal: Parameters<CommandFactory>[0],
  convert: Conversions,
): ReturnType<CommandFactory> {
  const command = createCommand('convert', terminal)
    .usage('(--lora FILE --format NAME | --model PATH) --output PATH')
    .addOption(textOption('--lora <file>', 'A LoRA file of any tool'))
    .addOption(
      choiceOption('--format <name>', 'The LoRA file to write: peft, kohya or diffusers', loraFormats),
    )
    .addOption(
      textOption(
        '--model, --pretrained-model-name-or-path <path>',
        'A diffusers model folder, to be a single file; or a single file, to be a folder',
      ),
    )
    .addOption(predictionTypeOption())
    .addOption(textOption('--output <path>', 'The new file or folder; not there yet'))
    .addHelpText('after', `\nFor example:\n  ${EXAMPLE}\n  ${MODEL_EXAMPLE}`);
  return command.action(async () => {
    requireFlags(command, ['output'], EXAMPLE);
    const flags = command.opts<Flags>();
    terminal.out.write(`${await converted(flags, convert)}\n`);
  });
}

function converted(
  { lora, format, pretrainedModelNameOrPath: model, predictionType, output }: Flags,
  convert: Conversions,
): Promise<string> {
  if ((lora === undefined) === (model === undefined)) {
    throw new UsageError(
      `portrayal convert needs either --lora or --model. For example:\n  ${EXAMPLE}\n  ${MODEL_EXAMPLE}`,
    );
  }
  if (model !== undefined) {
    if (format !== undefined)
      throw new UsageError(
        '--format is for --lora; a model becomes a single file if it is a folder, and a folder if it is a file.',
      );
    return convert.model({ model, output, ...(predictionType && { predictionType }) });
  }
  if (format === undefined)
    throw new UsageError(`--lora needs --format: peft, kohya or diffusers. For example:\n  ${EXAMPLE}`);
  return convert.lora({ lora: lora!, format, output });
}
