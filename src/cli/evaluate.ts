import { devices } from '../engine/device.js';
import { UsageError } from '../errors.js';
import { protocols } from '../evaluation/protocol.js';
import type { EvaluateOptions } from '../workflows/evaluate.js';
import type { MethodInput } from '../workflows/evaluation-plan.js';
import type { EvaluateResult } from '../workflows/evaluation-results.js';
import type { SubjectInput } from '../workflows/evaluation-subjects.js';
import { type CommandFactory, createCommand, requireFlags } from './command.js';
import { interruptible } from './interrupt.js';
import {
  choiceOption,
  numberOption,
  repeatedOption,
  switchOptions,
  textOption,
  wholeOption,
} from './option.js';
import { progressListener } from './progress.js';

/** What the command calls. */
export interface Evaluation {
  evaluate(
    options: EvaluateOptions,
  ): Promise<Pick<EvaluateResult, 'table' | 'csv' | 'subjectsCsv' | 'scores' | 'page'>>;
  readSubjects(path: string): Promise<Record<string, SubjectInput>>;
}

const EXAMPLE =
  'portrayal evaluate --references dreambench/subjects --method DreamBooth=runs/dreambooth --method DPG=runs/dpg --dino dino-vits16/ --clip clip-vit-base-patch32/ --output evaluation/';

const workflows: Evaluation = {
  evaluate: async (options) => (await import('../workflows/evaluate.js')).evaluate(options),
  readSubjects: async (path) => (await import('../workflows/evaluation-subjects.js')).readSubjects(path),
};

/** `portrayal evaluate`: writes the paths of table, files and page to the standard output, one a line. */
export const evaluateCommand: CommandFactory = (terminal) => createEvaluateCommand(terminal, workflows);

/** @param evaluation is called with what the flags say */
export function createEvaluateCommand(
  terminal: Parameters<CommandFactory>[0],
  evaluation: Evaluation,
): ReturnType<CommandFactory> {
  const command = createCommand('evaluate', terminal)
    .usage('--references DIR (--run DIR | --method NAME=DIR …) --dino DIR --clip DIR --output DIR [FLAGS]')
    .addOption(
      textOption('--references <dir>', 'Photographs: a folder for each subject, or those of one subject'),
    )
    .addOption(repeatedOption('--run <dir>', 'A run of one subject, as a method named like its folder'))
    .addOption(
      repeatedOption(
        '--method <name=dir>',
        'A method: a folder with a run for each subject, by its name; may be given several times',
      ),
    )
    .addOption(
      repeatedOption(
        '--pictures <name=dir>',
        'A method whose pictures are there: subject/number-of-prompt/picture; may be given several times',
      ),
    )
    .addOption(textOption('--dino <dir>', 'Encoder for DINO: a Hugging Face folder of a ViT or DINOv2'))
    .addOption(textOption('--clip <dir>', 'Encoder for CLIP-I and CLIP-T: a Hugging Face folder of a CLIP'))
    .addOption(textOption('--output, --output-dir <dir>', 'Folder for pictures, tables and the page'))
    .addOption(
      choiceOption('--protocol <name>', 'dreambench or customconcept101 (default: dreambench)', protocols),
    )
    .addOption(
      textOption('--subjects <file>', 'JSON with the class of each subject, and more (docs/evaluation.md)'),
    )
    .addOption(repeatedOption('--subject <name>', 'Only this subject; may be given several times'))
    .addOption(
      textOption('--class <noun>', 'What kind of thing the one subject is (default: as its run says)'),
    )
    .addOption(
      textOption('--prompts <file>', 'Prompts of the one subject, one a line, with {} where it goes'),
    )
    .addOption(
      wholeOption('--num-images <n>', "Pictures of each prompt (default: the protocol's)", { atLeast: 1 }),
    )
    .addOption(
      wholeOption(
        '--seed <n>',
        'Seed of the first picture of each prompt, then one more each (default: 23)',
        {
          atLeast: 0,
        },
      ),
    )
    .addOption(wholeOption('--steps <n>', 'Steps of the sampler (default: 50)', { atLeast: 1 }))
    .addOption(
      numberOption('--guidance-scale <x>', 'Classifier-free guidance; 1 is none (default: 7.5)', {
        atLeast: 0,
      }),
    )
    .addOption(
      textOption(
        '--model, --pretrained-model-name-or-path <dir>',
        "Model to draw with (default: the runs', which may have moved)",
      ),
    )
    .addOption(
      wholeOption('--resolution <pixels>', "Side of the pictures (default: the runs')", { atLeast: 1 }),
    )
    .addOption(textOption('--baseline <name>', 'Method to compare the others with (default: the first)'))
    .addOption(wholeOption('--resamples <n>', 'Bootstrap resamples (default: 10000)', { atLeast: 100 }));
  for (const option of switchOptions(
    '--text-with-token',
    'Score text with the rare token in the prompt (default: without)',
  )) {
    command.addOption(option);
  }
  command
    .addOption(wholeOption('--threads <n>', 'Processors to use (default: all)', { atLeast: 1 }))
    .addOption(
      choiceOption(
        '--device <name>',
        'cpu, cuda, webgpu, dml or coreml (default: cpu; the others are new)',
        devices,
      ),
    )
    .addHelpText('after', `\nFor example:\n  ${EXAMPLE}`);
  return command.action(async () => {
    requireFlags(command, ['references', 'outputDir'], EXAMPLE);
    const listener = progressListener(terminal.err);
    const options = await evaluateOptions(command.opts(), evaluation);
    const result = await interruptible(
      (message) => listener({ kind: 'warning', message }),
      'Stopping after this step',
      (signal) => evaluation.evaluate({ ...options, onEvent: listener, signal }),
    );
    const { table, csv, subjectsCsv, scores, page } = result;
    terminal.out.write([table, csv, subjectsCsv, scores, page].map((path) => `${path}\n`).join(''));
  });
}

interface Flags {
  readonly references: string;
  readonly run?: readonly string[];
  readonly method?: readonly string[];
  readonly pictures?: readonly string[];
  readonly outputDir: string;
  readonly subjects?: string;
  readonly subject?: readonly string[];
  readonly class?: string;
  readonly prompts?: string;
  readonly pretrainedModelNameOrPath?: string;
}

/** Flags that mean a subject together need only be translated here; the others are options of the same name. */
async function evaluateOptions(
  flags: Readonly<Record<string, unknown>>,
  { readSubjects }: Evaluation,
): Promise<EvaluateOptions> {
  const {
    references,
    run = [],
    method = [],
    pictures = [],
    outputDir: output,
    subjects: file,
    subject: only,
    class: className,
    prompts,
    pretrainedModelNameOrPath: model,
    ...same
  } = flags as unknown as Flags;
  const methods: MethodInput[] = [
    ...method.map((text) => named('--method', text, ({ name, path }) => ({ name, runs: path }))),
    ...run.map((path) => ({ name: lastName(path), runs: path })),
    ...pictures.map((text) => named('--pictures', text, ({ name, path }) => ({ name, pictures: path }))),
  ];
  const subjects = file === undefined ? undefined : await readSubjects(file);
  const single = only?.length === 1 ? only[0]! : lastName(references);
  const own = {
    ...(className === undefined ? {} : { class: className }),
    ...(prompts === undefined ? {} : { prompts }),
  };
  const told = Object.keys(own).length > 0 ? { [single]: { ...subjects?.[single], ...own } } : undefined;
  return {
    references,
    methods,
    output,
    ...(subjects || told ? { subjects: { ...subjects, ...told } } : {}),
    ...(only ? { only } : {}),
    ...(model === undefined ? {} : { model }),
    ...same,
  };
}

function named<T>(flag: string, text: string, make: (parts: { name: string; path: string }) => T): T {
  const [, name, path] = /^([^=]+)=(.+)$/.exec(text) ?? [];
  if (name === undefined || path === undefined) {
    throw new UsageError(`${flag} ${text}: expected a name and a folder, such as DPG=runs/dpg.`);
  }
  return make({ name: name.trim(), path: path.trim() });
}

const lastName = (path: string): string =>
  path
    .split(/[/\\]/)
    .filter((part) => part !== '')
    .at(-1) ?? path;
