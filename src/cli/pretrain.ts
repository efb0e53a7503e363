import type { PretrainOptions } from '../training/pretrain.js';
import { type CommandFactory, createCommand, requireFlags } from './command.js';
import { interruptible } from './interrupt.js';
import { numberOption, textOption, wholeOption } from './option.js';
import { progressListener } from './progress.js';

type PretrainSettings = Omit<PretrainOptions, 'engine' | 'output' | 'onEvent' | 'signal'>;
type Pretrain = (options: Omit<PretrainOptions, 'engine'>, threads: number | undefined) => Promise<void>;

const EXAMPLE = 'portrayal pretrain --output models/mine --seed 1';

/** The size of the run; the shipped base was made with these. */
const defaults: PretrainSettings = {
  seed: 7,
  examples: 30_000,
  vaeCropSteps: 6_000,
  vaeSteps: 2_000,
  vaeBatchSize: 8,
  steps: 4_500,
  batchSize: 32,
  learningRate: 1e-3,
  checkpointingSteps: 500,
};

const startPretrain: Pretrain = async (options, threads) => {
  const [{ createNodeEngine }, { pretrain }] = await Promise.all([
    import('../engine/node.js'),
    import('../training/pretrain.js'),
  ]);
  const engine = createNodeEngine(threads === undefined ? {} : { threads });
  try {
    await pretrain({ ...options, engine });
  } finally {
    await engine.close();
  }
};

/** `portrayal pretrain`: how the shipped base is made. */
export const pretrainCommand: CommandFactory = (terminal) => createPretrainCommand(terminal, startPretrain);

/** @param pretrain is called with what the flags say */
export function createPretrainCommand(
  terminal: Parameters<CommandFactory>[0],
  pretrain: Pretrain,
): ReturnType<CommandFactory> {
  const d = defaults;
  const command = createCommand('pretrain', terminal)
    .usage('--output DIR [FLAGS]')
    .addOption(textOption('--output, --output-dir <dir>', 'Model folder to write'))
    .addOption(wholeOption('--seed <n>', `Everything follows from it (default: ${d.seed})`, { atLeast: 0 }))
    .addOption(
      wholeOption('--examples <n>', `Captioned pictures to draw (default: ${d.examples})`, { atLeast: 1 }),
    )
    .addOption(
      wholeOption('--vae-crop-steps <n>', `Steps of the autoencoder on crops (default: ${d.vaeCropSteps})`, {
        atLeast: 1,
      }),
    )
    .addOption(
      wholeOption('--vae-steps <n>', `Then on whole pictures (default: ${d.vaeSteps})`, { atLeast: 1 }),
    )
    .addOption(
      wholeOption('--vae-batch-size <n>', `Its pictures a step (default: ${d.vaeBatchSize})`, { atLeast: 1 }),
    )
    .addOption(
      wholeOption(
        '--steps, --max-train-steps <n>',
        `Steps of text encoder and denoiser (default: ${d.steps})`,
        {
          atLeast: 1,
        },
      ),
    )
    .addOption(
      wholeOption('--batch-size, --train-batch-size <n>', `Their pictures a step (default: ${d.batchSize})`, {
        atLeast: 1,
      }),
    )
    .addOption(
      numberOption('--learning-rate <x>', `Theirs, at its peak (default: ${d.learningRate})`, { above: 0 }),
    )
    .addOption(
      wholeOption('--checkpointing-steps <n>', `Save every n steps (default: ${d.checkpointingSteps})`, {
        atLeast: 1,
      }),
    )
    .addOption(wholeOption('--threads <n>', 'Processors to use (default: all)', { atLeast: 1 }))
    .addHelpText('after', `\nStopped at any moment, the same command goes on. For example:\n  ${EXAMPLE}`);
  return command.action(async () => {
    requireFlags(command, ['outputDir'], EXAMPLE);
    const { outputDir, maxTrainSteps, trainBatchSize, threads, ...rest } = command.opts<Flags>();
    const settings: PretrainSettings = {
      ...defaults,
      ...rest,
      ...(maxTrainSteps === undefined ? {} : { steps: maxTrainSteps }),
      ...(trainBatchSize === undefined ? {} : { batchSize: trainBatchSize }),
    };
    const listener = progressListener(terminal.err);
    await interruptible(
      (message) => listener({ kind: 'warning', message }),
      'Finishing this step, then saving',
      (signal) => pretrain({ ...settings, output: outputDir, onEvent: listener, signal }, threads),
    );
    terminal.out.write(`${outputDir}\n`);
  });
}

interface Flags extends Partial<Omit<PretrainSettings, 'steps' | 'batchSize'>> {
  readonly outputDir: string;
  readonly maxTrainSteps?: number;
  readonly trainBatchSize?: number;
  readonly threads?: number;
}
