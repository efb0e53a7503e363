import { readdir, readFile, stat } from 'node:fs/promises';
import { basename, join, resolve } from 'node:path';
import { readSubjectPrompt, type SubjectPrompt } from '../data/prompts.js';
import { InputError, RunError, UsageError } from '../errors.js';
import { liveClasses } from '../evaluation/dreambench-prompts.js';
import { findPromptPictures, pictureFiles, slug } from '../evaluation/picture-folders.js';
import { fillPrompt, type Protocol } from '../evaluation/protocol.js';
import { isObject } from '../formats/json-config.js';
import { pathExists } from '../formats/path-exists.js';
import { runStopping } from '../training/learnt-checkpoint.js';
import { latestCheckpoint, type RunConfig, readRunConfig, runFiles } from '../training/run-folder.js';
import type { SubjectInput } from './evaluation-subjects.js';
import { readRunRecord } from './learnt.js';

/** A method to score: runs that drew nothing yet, or pictures that another tool drew. */
export type MethodInput =
  | {
      readonly name: string;
      /** A run folder by subject; or a folder that holds one for each subject, by its name; or, for one subject, the run folder itself. */
      readonly runs: string | Readonly<Record<string, string>>;
    }
  | {
      readonly name: string;
      /** A folder that holds one for each subject, each with a folder for each prompt; for one subject, the folder of prompts itself. */
      readonly pictures: string;
    };

export interface PlannedSubject {
  readonly name: string;
  readonly className: string;
  readonly live: boolean;
  /** Files of its photographs. */
  readonly references: readonly string[];
  /** With {} where the subject goes. */
  readonly templates: readonly string[];
  /** The same with the class alone in it. */
  readonly texts: readonly string[];
}

/** Where a method's pictures of one subject come from. */
export type PictureSource =
  | {
      readonly kind: 'run';
      readonly path: string;
      readonly config: RunConfig;
      readonly prompt: SubjectPrompt;
    }
  | { readonly kind: 'pictures'; readonly path: string; readonly files: readonly (readonly string[])[] };

export interface PlannedMethod {
  readonly name: string;
  /** The name of its folder. */
  readonly folder: string;
  /** In the order of the subjects. */
  readonly sources: readonly PictureSource[];
}

export interface EvaluationPlan {
  readonly subjects: readonly PlannedSubject[];
  readonly methods: readonly PlannedMethod[];
}

export interface PlanInputs {
  readonly references: string;
  readonly methods: readonly MethodInput[];
  readonly subjects?: Readonly<Record<string, SubjectInput>>;
  /** Only these subjects. Default: all that a method has. */
  readonly only?: readonly string[];
  readonly protocol: Protocol;
}

/**
 * Finds everything that an evaluation needs before any work is done.
 *
 * @throws UsageError, InputError or RunError for what is missing: a subject's run, pictures, photographs or class; a run that is not finished.
 */
export async function planEvaluation(inputs: PlanInputs): Promise<EvaluationPlan> {
  const { methods } = inputs;
  if (methods.length === 0) {
    throw new UsageError(
      'There is nothing to evaluate. Give --run, --method NAME=DIR or --pictures NAME=DIR.',
    );
  }
  const folders = new Map<string, string>();
  for (const { name } of methods) {
    const taken = folders.get(slug(name));
    if (taken !== undefined) {
      throw new UsageError(
        `Two methods are named "${taken}" and "${name}", which cannot be told apart as folders. Name one of them otherwise.`,
      );
    }
    folders.set(slug(name), name);
  }
  const references = await referenceFolders(inputs);
  const names = await subjectNames(inputs, references);
  const single = names.length === 1;
  const found = await Promise.all(
    names.map((name) => Promise.all(methods.map((method) => locate(method, name, single)))),
  );
  const subjects: PlannedSubject[] = [];
  for (const [i, name] of names.entries()) {
    subjects.push(await planSubject(name, inputs, references, found[i]!));
  }
  const planned: PlannedMethod[] = [];
  for (const [m, { name }] of methods.entries()) {
    const sources: PictureSource[] = [];
    for (const [i, subject] of subjects.entries()) sources.push(await openSource(found[i]![m]!, subject));
    planned.push({ name, folder: slug(name), sources });
  }
  return { subjects, methods: planned };
}

type Located =
  | {
      readonly kind: 'run';
      readonly path: string;
      readonly config: RunConfig;
      readonly prompt: SubjectPrompt;
    }
  | { readonly kind: 'pictures'; readonly path: string };

async function subjectNames(inputs: PlanInputs, references: ReadonlyMap<string, string>): Promise<string[]> {
  const { only, methods, subjects = {} } = inputs;
  if (only !== undefined) {
    const unknown = only.filter((name) => !references.has(name) && !subjects[name]?.references);
    if (unknown.length > 0) {
      throw new InputError(
        `${inputs.references}: there are no photographs of ${unknown.join(', ')}; there are those of ${[...references.keys()].slice(0, 8).join(', ')}. Add a folder of that name, or leave the subject out.`,
      );
    }
    return [...new Set(only)];
  }
  const known = [...new Set([...references.keys(), ...Object.keys(subjects)])];
  if (known.length === 1) return known;
  const wanted: string[] = [];
  for (const name of known) {
    const has = await Promise.all(methods.map((method) => isThere(method, name)));
    if (has.some((there) => there)) wanted.push(name);
  }
  if (wanted.length === 0) {
    throw new InputError(
      `No method has a folder for any of the subjects ${known.slice(0, 8).join(', ')}. Expected run folders, or folders of pictures, with the names of the subjects in ${inputs.references}.`,
    );
  }
  return wanted;
}

async function isThere(method: MethodInput, subject: string): Promise<boolean> {
  if ('pictures' in method) return isFolder(join(method.pictures, subject));
  if (typeof method.runs === 'string') return isFolder(join(method.runs, subject));
  return method.runs[subject] !== undefined;
}

async function locate(method: MethodInput, subject: string, single: boolean): Promise<Located> {
  const missing = (where: string, remedy: string) =>
    new InputError(`${method.name} has no ${subject}: ${where} is not there. ${remedy}`);
  const leaveOut = 'or name the subjects that all methods have with --subject.';
  if ('pictures' in method) {
    const below = join(method.pictures, subject);
    if (await isFolder(below)) return { kind: 'pictures', path: below };
    if (single && (await isFolder(method.pictures))) return { kind: 'pictures', path: method.pictures };
    throw missing(below, `Put the pictures of this subject there, ${leaveOut}`);
  }
  const path = typeof method.runs === 'string' ? join(method.runs, subject) : method.runs[subject];
  if (path !== undefined && (await isFolder(path))) return openRun(path);
  if (single && typeof method.runs === 'string' && (await pathExists(join(method.runs, runFiles.config)))) {
    return openRun(method.runs);
  }
  throw missing(path ?? 'its run', `Train it there ("portrayal train --output …"), ${leaveOut}`);
}

async function openRun(path: string): Promise<Located> {
  const config = await readRunConfig(path);
  const { settings, instancePrompt, classPrompt } = config;
  if (!isObject(settings) || typeof instancePrompt !== 'string' || typeof classPrompt !== 'string') {
    throw new RunError(
      `${join(path, runFiles.config)}: expected the settings and prompts of a run of "portrayal train".`,
    );
  }
  const { steps } = settings;
  const done = (await latestCheckpoint(path))?.step;
  if (config.concepts !== undefined) {
    throw new RunError(
      `${path}: this run was taught several concepts at once, and is scored by one. Draw its pictures with "portrayal generate" and score them with --pictures.`,
    );
  }
  const { result } = (await readRunRecord(path)).kind;
  const learnt = result === undefined ? done !== undefined : await pathExists(join(path, result));
  const lacking = done !== undefined && typeof steps === 'number' && done < steps;
  if (!learnt || (lacking && !(await runStopping(path))?.isOver)) {
    throw new RunError(
      `${path}: this run is not finished (step ${done ?? 0} of ${steps}), so its scores would not be those of the method. Go on with it: the same "portrayal train" command with --resume-from-checkpoint latest.`,
    );
  }
  return { kind: 'run', path, config, prompt: readSubjectPrompt({ instancePrompt, classPrompt }) };
}

async function planSubject(
  name: string,
  inputs: PlanInputs,
  references: ReadonlyMap<string, string>,
  found: readonly Located[],
): Promise<PlannedSubject> {
  const { protocol, subjects = {} } = inputs;
  const input = subjects[name] ?? {};
  const told = found.flatMap((source) => (source.kind === 'run' ? [source.prompt.className] : []));
  const className = input.class ?? told[0];
  if (className === undefined || className.trim() === '') {
    throw new InputError(
      `${name}: nothing says what kind of thing this subject is. Give --subjects FILE.json with {"${name}": "dog"}, or --class for a single subject.`,
    );
  }
  const folder = input.references ?? references.get(name);
  if (folder === undefined) {
    throw new InputError(
      `${name}: there are no photographs to compare with. Expected a folder ${join(inputs.references, name)}.`,
    );
  }
  const live = input.live ?? liveClasses.has(className);
  const templates = input.prompts ? await readPrompts(name, input.prompts) : protocol.prompts?.({ live });
  if (templates === undefined) {
    throw new InputError(
      `${name}: the prompts of ${protocol.title} come with the benchmark, one file a kind of concept. Give the file with --prompts FILE, or for each subject in --subjects: {"${name}": {"class": "${className}", "prompts": "prompts/dog.txt"}}.`,
    );
  }
  return {
    name,
    className,
    live,
    references: await photographs(name, folder),
    templates,
    texts: templates.map((template) => fillPrompt(template, className)),
  };
}

async function openSource(located: Located, subject: PlannedSubject): Promise<PictureSource> {
  if (located.kind === 'run') return located;
  return { ...located, files: await findPromptPictures(located.path, subject.texts) };
}

async function photographs(subject: string, folder: string): Promise<string[]> {
  const files = await pictureFiles(folder).catch((error: unknown) => {
    throw new InputError(`${subject}: the folder of its photographs, ${folder}, cannot be read.`, {
      cause: error,
    });
  });
  if (files.length > 0) return files;
  throw new InputError(
    `${subject}: there are no photographs in ${folder} to compare with. Put those there that it was learnt from, as JPEG or PNG.`,
  );
}

/** The folders of photographs by subject: those below the one given, or that one itself where it holds pictures. */
async function referenceFolders({ references }: PlanInputs): Promise<Map<string, string>> {
  const entries = await readdir(references, { withFileTypes: true }).catch((error: unknown) => {
    throw new InputError(
      `${references}: expected a folder of photographs, or of a folder of photographs for each subject, but it cannot be read.`,
      { cause: error },
    );
  });
  if ((await pictureFiles(references)).length > 0) {
    return new Map([[basename(resolve(references)), references]]);
  }
  const names = entries.filter((e) => e.isDirectory() && !e.name.startsWith('.')).map((e) => e.name);
  if (names.length === 0) {
    throw new InputError(
      `${references}: no photographs found, and no folders of them. Expected those that the subjects were learnt from.`,
    );
  }
  return new Map(names.sort().map((name) => [name, join(references, name)]));
}

async function readPrompts(subject: string, given: string | readonly string[]): Promise<readonly string[]> {
  const from = typeof given === 'string' ? given : 'its prompts';
  const lines =
    typeof given !== 'string'
      ? given
      : (
          await readFile(given, 'utf8').catch((error: unknown) => {
            throw new InputError(`${subject}: the file of its prompts, ${given}, cannot be read.`, {
              cause: error,
            });
          })
        ).split(/\r?\n/);
  const prompts = lines.map((line) => line.trim()).filter((line) => line !== '');
  const without = prompts.find((prompt) => !prompt.includes('{}'));
  if (prompts.length === 0 || without !== undefined) {
    throw new InputError(
      `${subject}: ${from}: ${without === undefined ? 'there is no prompt in it' : `"${without}" has no {} where the subject goes`}. Expected one prompt a line, such as "a {} on the beach".`,
    );
  }
  return prompts;
}

async function isFolder(path: string): Promise<boolean> {
  return stat(path).then(
    (found) => found.isDirectory(),
    () => false,
  );
}
