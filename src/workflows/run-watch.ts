import { join } from 'node:path';
import type { RgbImage } from '../data/image-grid.js';
import { mentionsSubject, type SubjectPrompt, shownByAny } from '../data/prompts.js';
import { chainDivergence } from '../diffusion/divergence.js';
import type { Engine, State } from '../engine/engine.js';
import { UsageError } from '../errors.js';
import { openClipJudge, openDinoJudge } from '../evaluation/judge.js';
import { type NamedJudge, RunJudges } from '../evaluation/run-judges.js';
import { openImageEncoder } from '../pretrained/image-encoder.js';
import type { StableDiffusion } from '../pretrained/stable-diffusion.js';
import type { TextToImage } from '../pretrained/text-to-image.js';
import { EarlyStopping, SCORE } from '../training/early-stopping.js';
import type { TrainingListener } from '../training/events.js';
import { readMetrics } from '../training/metrics-log.js';
import { type RunFolder, runFiles } from '../training/run-folder.js';
import { encoderDigest } from './reward-encoders.js';
import type { NamedReward } from './reward-spec.js';

/** How far what was learnt is from the base. */
export interface BaseDistance {
  /** The norm of the update over the norm of the weights that it changes. */
  readonly updateNorm: number;
  /** The divergence of the denoising chains, in nats an element; see {@link chainDivergence}. */
  readonly klToBase: number;
}

/**
 * Opens the encoders that judge a run.
 *
 * @throws UsageError when one of them is also a reward, whatever its folder is called, or is given twice. ModelError when one cannot be used.
 */
export async function openRunJudges(
  folders: readonly string[],
  rewards: readonly NamedReward[],
): Promise<{ judges: NamedJudge[]; warnings: string[] }> {
  const taken = new Map<string, string>();
  for (const reward of rewards) {
    if (!('encoder' in reward)) continue;
    const digest = await encoderDigest(reward.encoder);
    if (digest !== undefined) taken.set(digest, `the reward ${reward.name} (${reward.encoder})`);
  }
  const judges: NamedJudge[] = [];
  const warnings: string[] = [];
  for (const folder of folders) {
    const { kind } = await openImageEncoder(folder);
    const judge = await (kind === 'clip' ? openClipJudge(folder) : openDinoJudge(folder));
    const owner = taken.get(judge.digest);
    if (owner !== undefined) {
      throw new UsageError(
        `--judge ${folder}: these are the weights of ${owner}. What a run is rewarded by cannot tell whether the reward is hacked; give another encoder.`,
      );
    }
    taken.set(judge.digest, `the judge ${folder}`);
    const before = judges.filter((known) => known.judge.role === judge.role).length;
    judges.push({ name: before === 0 ? judge.role : `${judge.role}-${before + 1}`, judge });
    warnings.push(...judge.warnings);
  }
  return { judges, warnings };
}

export interface WatchOptions {
  readonly engine: Engine;
  readonly judges: readonly NamedJudge[];
  readonly subjects: readonly SubjectPrompt[];
  /** Of the validation pictures. */
  readonly prompts: readonly string[];
  readonly photographs: readonly RgbImage[];
  /** Validations without anything better after which to stop; never without it. */
  readonly patience?: number;
  readonly onEvent?: TrainingListener;
}

/**
 * Watches a run at its validations: the judges' scores of its pictures, and how far it is from the base. Each validation is a line of its own in the run's metrics; a step
 * that has one is not measured again.
 */
export class RunWatch {
  readonly #judges: RunJudges | undefined;
  readonly #measured: Set<number>;
  readonly #course: EarlyStopping;

  private constructor(
    private readonly run: RunFolder,
    private readonly options: WatchOptions,
    records: Awaited<ReturnType<typeof readMetrics>>,
  ) {
    const { judges, engine, subjects, prompts, photographs, patience } = options;
    const texts = prompts.map((prompt) => ({
      text: shownByAny(prompt, subjects),
      ofSubject: subjects.some((subject) => mentionsSubject(prompt, subject)),
    }));
    this.#judges = judges.length > 0 ? new RunJudges(judges, engine, texts, photographs) : undefined;
    this.#measured = new Set(records.filter((r) => SCORE in r || 'updateNorm' in r).map(({ step }) => step));
    this.#course = new EarlyStopping(patience ?? Number.POSITIVE_INFINITY, records);
  }

  /** When to stop, where that was asked for. */
  get earlyStopping(): EarlyStopping | undefined {
    return this.options.patience === undefined ? undefined : this.#course;
  }

  /** What is to be said of the judges' verdict in the end: undefined where the last step was the best. */
  get decline(): string | undefined {
    const { best, last } = this.#course;
    if (this.earlyStopping || !best || !last || best.step === last.step) return undefined;
    return `The judges' score was best at step ${best.step} (${best.score.toPrecision(3)}) and is ${last.score.toPrecision(3)} at the end. Where it falls while the reward rises, the reward is being hacked; --early-stopping with --validation-steps keeps the best step.`;
  }

  static async open(run: RunFolder, options: WatchOptions): Promise<RunWatch> {
    return new RunWatch(run, options, await readMetrics(join(run.path, runFiles.metrics)));
  }

  /**
   * Measures a validation, unless that is done already.
   *
   * @param pictures a row a prompt
   * @param distance left out for the base itself
   */
  async measure(
    step: number,
    pictures: () => Promise<readonly (readonly RgbImage[])[]>,
    distance?: () => Promise<BaseDistance>,
  ): Promise<void> {
    if (this.#measured.has(step) || (!this.#judges && !distance)) return;
    const scores: Record<string, number> = {
      ...(this.#judges ? await this.#judges.score(await pictures()) : {}),
      ...(distance ? await distance() : this.#judges ? { updateNorm: 0, klToBase: 0 } : {}),
    };
    await this.run.metrics.append({ step, ...scores });
    await this.run.tensorboard?.append({ step, ...scores }, 'validation');
    this.#measured.add(step);
    const score = scores[SCORE];
    if (score !== undefined) this.#course.add(step, score);
    this.options.onEvent?.({ kind: 'validation', step, scores });
  }
}

/** Prompts that the divergence is measured on, and the states of each. */
const [PROMPTS, STATES] = [4, 10];

/** The divergence from the base on states that the policy visits while it draws some of the prompts. @param base holds what trains as it was before the first step */
export async function divergenceFromBase(
  model: StableDiffusion,
  drawer: TextToImage,
  { policy, base }: { readonly policy: State; readonly base: State },
  drawing: {
    readonly prompts: readonly string[];
    readonly seed: number;
    readonly guidanceScale: number;
    readonly signal?: AbortSignal;
  },
): Promise<number> {
  const { prompts, seed, ...options } = drawing;
  const { schedule } = model.scheduler;
  const requests = prompts.slice(0, PROMPTS).map((prompt, i) => ({ prompt, seed: seed + i }));
  const visited = await drawer.visit(requests, {
    ...options,
    scheduler: 'ddim',
    steps: Math.min(STATES, schedule.steps),
    state: policy,
  });
  const states = visited.flat();
  const [own, other] = [await drawer.predict(states, policy), await drawer.predict(states, base)];
  return chainDivergence(
    schedule,
    states.map(({ timestep }, i) => ({ timestep, policy: own[i]!.data, base: other[i]!.data })),
  );
}
