import { UsageError } from '../errors.js';
import type { PredictionType } from '../pretrained/architectures.js';
import { type SavePrecision, savePrecisions } from '../pretrained/lora-precision.js';
import type { Variant } from '../pretrained/weights.js';
import {
  type ConvertLoraOptions,
  type ConvertModelOptions,
  type LoraFormat,
  loraFormats,
} from '../workflows/convert.js';
import { type CommandFactory, createCommand, requireFlags } from './command.js';
import { interruptible } from './interrupt.js';
import { choiceOption, modelSourceOptions, predictionTypeOption, textOption } from './option.js';
import { progressListener } from './progress.js';

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
  readonly savePrecision?: SavePrecision;
  readonly pretrainedModelNameOrPath?: string;
  readonly predictionType?: PredictionType;
  readonly variant?: Variant;
  readonly offline?: true;
  readonly output: string;
}

/** `portrayal convert`: writes the path of the new file or folder to the standard output. */
export const convertCommand: CommandFactory = (terminal) => createConvertCommand(terminal, conversions);

/** @param convert is called with what the flags say */
export function createConvertCommand(
  terminal: Parameters<CommandFactory>[0],
  convert: Conversions,
): ReturnType<CommandFactory> {
  const [variant, offline] = modelSourceOptions();
  const command = createCommand('convert', terminal)
    .usage('(--lora FILE --format NAME | --model MODEL) --output PATH')
    .addOption(textOption('--lora <file>', 'A LoRA file of any tool'))
    .addOption(
      choiceOption('--format <name>', 'The LoRA file to write: peft, kohya or diffusers', loraFormats),
    )
    .addOption(
      choiceOption(
        '--save-precision <name>',
        "Type of the LoRA's factors: float, fp16 or bf16 (default: the one that they have)",
        savePrecisions,
      ),
    )
    .addOption(
      textOption(
        '--model, --pretrained-model-name-or-path <model>',
        'Diffusers model folder, or org/name of the Hugging Face hub, to be a single file; or a single file, to be a folder',
      ),
    )
    .addOption(variant)
    .addOption(offline)
    .addOption(predictionTypeOption())
    .addOption(textOption('--output <path>', 'The new file or folder; not there yet'))
    .addHelpText('after', `\nFor example:\n  ${EXAMPLE}\n  ${MODEL_EXAMPLE}`);
  return command.action(async () => {
    requireFlags(command, ['output'], EXAMPLE);
    const flags = command.opts<Flags>();
    const listener = progressListener(terminal.err);
    const path = await interruptible(
      (message) => listener({ kind: 'warning', message }),
      'Stopping after this file',
      (signal) => converted(flags, convert, { onEvent: listener, signal }),
    );
    terminal.out.write(`${path}\n`);
  });
}

function converted(
  {
    lora,
    format,
    savePrecision,
    pretrainedModelNameOrPath: model,
    predictionType,
    variant,
    offline,
    output,
  }: Flags,
  convert: Conversions,
  watching: Pick<ConvertModelOptions, 'onEvent' | 'signal'>,
): Promise<string> {
  if ((lora === undefined) === (model === undefined)) {
    throw new UsageError(
      `portrayal convert needs either --lora or --model. For example:\n  ${EXAMPLE}\n  ${MODEL_EXAMPLE}`,
    );
  }
  if (model !== undefined) {
    if (format !== undefined || savePrecision !== undefined)
      throw new UsageError(
        `${format !== undefined ? '--format' : '--save-precision'} is for --lora; a model becomes a single file if it is a folder, and a folder if it is a file, and its weights keep their types.`,
      );
    return convert.model({ model, output, predictionType, variant, offline, ...watching });
  }
  if (format === undefined)
    throw new UsageError(`--lora needs --format: peft, kohya or diffusers. For example:\n  ${EXAMPLE}`);
  return convert.lora({ lora: lora!, format, output, savePrecision });
}
