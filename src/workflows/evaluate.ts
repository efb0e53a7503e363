import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import type { Device } from '../engine/device.js';
import type { Engine } from '../engine/engine.js';
import { OutputError, UsageError } from '../errors.js';
import { openClipJudge, openDinoJudge } from '../evaluation/judge.js';
import { type ProtocolName, protocolOf, protocols } from '../evaluation/protocol.js';
import { outputError, removeStaleTemporaries } from '../formats/atomic-file.js';
import { writeJsonFile } from '../formats/json-config-file.js';
import type { TrainingListener } from '../training/events.js';
import { lockName, RunLock } from '../training/run-lock.js';
import { Cleanup } from './cleanup.js';
import { drawMissingPictures, drawnFiles } from './evaluation-drawing.js';
import { type Judges, judgePlan, listJudges } from './evaluation-judging.js';
import {
  type EvaluationPlan,
  type MethodInput,
  type PictureSource,
  type PlannedMethod,
  type PlannedSubject,
  planEvaluation,
} from './evaluation-plan.js';
import {
  describeSettings,
  EVALUATION_FORMAT,
  type EvaluateResult,
  type EvaluationSettings,
  evaluationFiles,
  writeResults,
} from './evaluation-results.js';
import type { SubjectInput } from './evaluation-subjects.js';
import { ownEngine } from './own-engine.js';
import { encoderDigest, rewardsOf } from './reward-encoders.js';

export interface EvaluateOptions {
  /** A folder of photographs for each subject, by its name; or the photographs of the one subject. */
  readonly references: string;
  readonly methods: readonly MethodInput[];
  /** Classes and more, by subject. */
  readonly subjects?: Readonly<Record<string, SubjectInput>>;
  /** Only these subjects. Default: all that a method has. */
  readonly only?: readonly string[];
  /** The folder of a ViT or DINOv2, for DINO scores. At least one of this and `clip` is needed. */
  readonly dino?: string;
  /** The folder of a CLIP, for CLIP-I and CLIP-T. */
  readonly clip?: string;
  /** Default "dreambench". */
  readonly protocol?: ProtocolName;
  /** The folder for pictures, tables and the page; an evaluation that is there is gone on with. */
  readonly output: string;
  /** Pictures of each prompt. Default: the protocol's. */
  readonly numImages?: number;
  /** Picture i of each prompt has the seed `seed + i`. Default 23. */
  readonly seed?: number;
  /** Steps of the sampler. Default 50. */
  readonly steps?: number;
  /** Default 7.5. */
  readonly guidanceScale?: number;
  /** In place of the runs' own model and resolution. */
  readonly model?: string;
  readonly resolution?: number;
  /** Score text with the rare token in it: "a sks dog on the beach". Default false: "a dog on the beach". */
  readonly textWithToken?: boolean;
  /** The method that the others are compared with. Default: the first. */
  readonly baseline?: string;
  /** Bootstrap resamples. Default 10,000. */
  readonly resamples?: number;
  readonly threads?: number;
  /** Where graphs run; the processor by default. */
  readonly device?: Device;
  readonly engine?: Engine;
  readonly onEvent?: TrainingListener;
  readonly signal?: AbortSignal;
}

const FEW_SUBJECTS = 5;

/**
 * Scores methods by the rules of a benchmark: draws what is missing, has the judges look at every picture that changed, and writes tables and a page.
 *
 * @throws UsageError, InputError, ModelError, RunError or OutputError for what the user can mend, before any picture is drawn where it can be known;
 *   CancelledError when the signal is raised. Pictures and embeddings are kept, and the same call goes on with them.
 */
export async function evaluate(options: EvaluateOptions): Promise<EvaluateResult> {
  const { output, onEvent } = options;
  const settings = checkedSettings(options);
  const judges = await openJudges(options);
  const plan = await planEvaluation({ ...options, protocol: settings.protocol });
  if (options.baseline !== undefined && !plan.methods.some(({ name }) => name === options.baseline)) {
    throw new UsageError(
      `--baseline ${options.baseline}: expected one of the methods, ${plan.methods.map((m) => m.name).join(', ')}.`,
    );
  }
  const warnings = await warningsOf(plan, judges);
  for (const message of warnings) onEvent?.({ kind: 'warning', message });
  await refuseForeignFolder(output);
  return Cleanup.after(async (cleanup) => {
    const lock = await RunLock.acquire(output);
    cleanup.defer(() => lock.release());
    await removeStaleTemporaries(output);
    await writeJsonFile(join(output, evaluationFiles.settings), {
      format: EVALUATION_FORMAT,
      ...describeSettings(settings, plan, judges),
    });
    const engine = options.engine ?? ownEngine(cleanup, options);
    await drawMissingPictures(plan, engine, {
      ...settings,
      folder: join(output, evaluationFiles.pictures),
      ...(options.model === undefined ? {} : { model: options.model }),
      ...(options.resolution === undefined ? {} : { resolution: options.resolution }),
      ...(options.device === undefined ? {} : { device: options.device }),
      ...(onEvent ? { onEvent } : {}),
      ...(options.signal ? { signal: options.signal } : {}),
    });
    const files = plan.methods.map((method) =>
      method.sources.map((source, i) =>
        filesOf(output, method, source, plan.subjects[i]!, settings.numImages),
      ),
    );
    const judged = await judgePlan(plan, judges, engine, {
      protocol: settings.protocol,
      textWithToken: settings.textWithToken,
      files,
      embeddings: join(output, evaluationFiles.embeddings),
      ...(onEvent ? { onEvent } : {}),
      ...(options.signal ? { signal: options.signal } : {}),
    });
    return writeResults(plan, judges, settings, judged, warnings, {
      output,
      files,
      ...(options.baseline === undefined ? {} : { baseline: options.baseline }),
    });
  });
}

function checkedSettings(options: EvaluateOptions): EvaluationSettings {
  const { protocol: name = 'dreambench', textWithToken = false } = options;
  if (!protocols.includes(name)) {
    throw new UsageError(`--protocol ${name}: expected ${protocols.join(' or ')}.`);
  }
  const protocol = protocolOf[name];
  const whole = (flag: string, value: number, atLeast: number): number => {
    if (Number.isSafeInteger(value) && value >= atLeast) return value;
    throw new UsageError(`--${flag} ${value}: expected a whole number of at least ${atLeast}.`);
  };
  return {
    protocol,
    textWithToken,
    numImages: whole('num-images', options.numImages ?? protocol.numImages, 1),
    seed: whole('seed', options.seed ?? 23, 0),
    steps: whole('steps', options.steps ?? 50, 1),
    resamples: whole('resamples', options.resamples ?? 10_000, 100),
    guidanceScale: options.guidanceScale ?? 7.5,
  };
}

async function openJudges({ dino, clip }: EvaluateOptions): Promise<Judges> {
  if (dino === undefined && clip === undefined) {
    throw new UsageError(
      'There is no judge. Give --dino DIR (such as facebook/dino-vits16), --clip DIR (such as openai/clip-vit-base-patch32), or both, as Hugging Face folders.',
    );
  }
  return {
    ...(dino === undefined ? {} : { dino: await openDinoJudge(dino) }),
    ...(clip === undefined ? {} : { clip: await openClipJudge(clip) }),
  };
}

/** What to mind before believing the scores. */
async function warningsOf(plan: EvaluationPlan, judges: Judges): Promise<string[]> {
  const warnings = listJudges(judges).flatMap((judge) => judge.warnings);
  if (plan.subjects.length < FEW_SUBJECTS) {
    warnings.push(
      plan.subjects.length === 1
        ? 'There is one subject, so there are no intervals: nothing tells how far the scores would carry to others.'
        : `There are ${plan.subjects.length} subjects; intervals over so few are rough and too narrow, and p-values are not given.`,
    );
  }
  for (const { name, sources } of plan.methods) {
    const paths = new Set(sources.flatMap((s) => (s.kind === 'run' ? rewardsOf(s.config).encoders : [])));
    for (const path of paths) {
      const digest = await encoderDigest(path);
      for (const { role, encoder, digest: own } of listJudges(judges)) {
        if (path !== encoder.folder && digest !== own) continue;
        warnings.push(
          `${name} was rewarded by the very encoder that judges here (--${role} ${encoder.folder}): a high score shows that it learnt to please this encoder. Judge with another one.`,
        );
      }
    }
  }
  return warnings;
}

/** A folder is free for an evaluation if it is one already, or holds nothing but what a killed start may have left. */
async function refuseForeignFolder(path: string): Promise<void> {
  const names = await readdir(path).catch((error: unknown): string[] => {
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') return [];
    throw outputError(path, error);
  });
  if (names.includes(evaluationFiles.settings)) return;
  const foreign = names.filter((name) => name !== lockName && !name.startsWith('.')).sort();
  if (foreign.length === 0) return;
  throw new OutputError(
    `${path}: the folder is not empty and not an evaluation of ours (it holds ${foreign.slice(0, 5).join(', ')}${foreign.length > 5 ? ' …' : ''}). Choose a new or empty folder, so that nothing of yours is overwritten.`,
  );
}

/** The pictures of a method and subject, by prompt. */
function filesOf(
  output: string,
  method: PlannedMethod,
  source: PictureSource,
  subject: PlannedSubject,
  numImages: number,
): readonly (readonly string[])[] {
  if (source.kind === 'pictures') return source.files;
  return drawnFiles(join(output, evaluationFiles.pictures, method.folder, subject.name), subject, numImages);
}
