import { InputError } from '../errors.js';

/** The subject as it is spoken of: the instance prompt names it by a rare token, the class prompt leaves that token out. */
export interface SubjectPrompt {
  /** "a photo of sks backpack" */
  readonly instancePrompt: string;
  /** "a photo of backpack" */
  readonly classPrompt: string;
  /** The word (or words) that come to mean the subject: "sks". */
  readonly token: string;
  /** What kind of thing it is: "backpack". */
  readonly className: string;
}

/** Words that frame a prompt and that every text encoder knows well: never a rare token, never a class noun. */
const framing: ReadonlySet<string> = new Set(
  'a an the my our this that one of in on at with and photo photos photograph picture image close-up shot painting drawing rendering'.split(
    ' ',
  ),
);
const EXAMPLE = 'For example: --prompt "a photo of sks backpack" --class-prompt "a photo of backpack".';

/** A word as compared: lower case, without punctuation around it ("<new1>" stays as it is). */
function bare(word: string): string {
  return word.toLowerCase().replace(/^[.,;:!?"'()]+|[.,;:!?"'()]+$/g, '') || word;
}

function words(prompt: string): string[] {
  return prompt.split(/\s+/u).filter((word) => word !== '');
}

function checkedWords(prompt: string, name: string): string[] {
  const list = words(prompt);
  if (list.length === 0) throw new InputError(`The ${name} is empty. ${EXAMPLE}`);
  return list;
}

function withoutFraming(list: readonly string[]): string[] {
  return list.filter((word) => !framing.has(bare(word)));
}

/**
 * Finds the rare token: the words of the instance prompt that the class prompt does not have, apart from framing words such as "a photo of". Without a
 * class prompt, the first word that is not framing is the token, and the class prompt is the instance prompt without it.
 *
 * @throws InputError if either prompt is empty, no word sets the subject apart from its class, or no class noun is left.
 */
export function readSubjectPrompt(prompts: {
  readonly instancePrompt: string;
  readonly classPrompt?: string;
}): SubjectPrompt {
  const instance = checkedWords(prompts.instancePrompt, 'instance prompt');
  const instancePrompt = instance.join(' ');
  if (prompts.classPrompt === undefined) {
    const telling = withoutFraming(instance);
    const [token] = telling;
    if (token === undefined || telling.length < 2) {
      throw new InputError(
        `The instance prompt "${instancePrompt}" has no rare token beside the class noun: nothing in it could come to mean this one subject. Add a short word that the model does not know yet. ${EXAMPLE}`,
      );
    }
    const at = instance.indexOf(token);
    const classPrompt = [...instance.slice(0, at), ...instance.slice(at + 1)].join(' ');
    return { instancePrompt, classPrompt, token: bare(token), className: classNoun(classPrompt) };
  }

  const classWords = checkedWords(prompts.classPrompt, 'class prompt');
  const classPrompt = classWords.join(' ');
  const known = new Set(classWords.map(bare));
  const token = withoutFraming(instance)
    .map(bare)
    .filter((word) => !known.has(word))
    .join(' ');
  if (token === '') {
    throw new InputError(
      `The instance prompt "${instancePrompt}" has no rare token that the class prompt "${classPrompt}" does not have: nothing in it could come to mean this one subject. Add a short word that the model does not know yet. ${EXAMPLE}`,
    );
  }
  return { instancePrompt, classPrompt, token, className: classNoun(classPrompt) };
}

function classNoun(classPrompt: string): string {
  const noun = withoutFraming(words(classPrompt)).map(bare).join(' ');
  if (noun === '') {
    throw new InputError(`The class prompt "${classPrompt}" names no kind of thing. ${EXAMPLE}`);
  }
  return noun;
}

/** What a subject is called by in prompts: the parts of a `SubjectPrompt` that say it. */
export type NamedSubject = Pick<SubjectPrompt, 'token' | 'className'> &
  Partial<Pick<SubjectPrompt, 'instancePrompt'>>;

/** How prompts speak of the subject: "sks backpack"; or by the token alone, "<toy>", where the instance prompt does too, as textual inversion has it. */
export function subjectName({ token, className, instancePrompt }: NamedSubject, noun = className): string {
  const said = instancePrompt === undefined ? undefined : new Set(words(instancePrompt).map(bare));
  const alone = said !== undefined && !words(className).some((word) => said.has(word));
  return alone ? token : `${token} ${noun}`;
}

/** Whether a prompt speaks of the trained subject: whether every word of the rare token is in it. */
export function mentionsSubject(prompt: string, subject: Pick<SubjectPrompt, 'token'>): boolean {
  const said = new Set(words(prompt).map(bare));
  return words(subject.token).every((word) => said.has(word));
}

/**
 * A prompt in words that need not be learnt: without the rare token where the class noun is named, and with the noun in its place where it is not. "a sks backpack on the
 * beach" and "a sks on the beach" both are "a backpack on the beach".
 */
export function withoutToken(
  prompt: string,
  { token, className }: Pick<SubjectPrompt, 'token' | 'className'>,
): string {
  const rare = new Set(words(token).map(bare));
  const noun = words(className).map(bare).join(' ');
  const rest = words(prompt).map(bare).join(' ');
  let named = ` ${rest} `.includes(` ${noun} `);
  const kept: string[] = [];
  for (const word of words(prompt)) {
    if (!rare.has(bare(word))) kept.push(word);
    else if (!named) {
      kept.push(className + (/[.,;:!?"')]+$/.exec(word)?.[0] ?? ''));
      named = true;
    }
  }
  return kept.join(' ');
}

/** What a picture of this prompt should show, in words that need not be learnt; the class prompt where it is the instance prompt. */
export function shownBy(prompt: string, subject: SubjectPrompt): string {
  return prompt === subject.instancePrompt ? subject.classPrompt : withoutToken(prompt, subject);
}

/** The same where several subjects are taught: without the rare words of any of them. */
export function shownByAny(prompt: string, subjects: readonly SubjectPrompt[]): string {
  return subjects.reduce((text, subject) => shownBy(text, subject), prompt);
}

/** What to say of prompts that do not speak of the trained subject. */
export function unnamedSubjectWarnings(
  prompts: readonly string[],
  subject: Pick<SubjectPrompt, 'token' | 'className'>,
): string[] {
  return prompts
    .filter((prompt) => !mentionsSubject(prompt, subject))
    .map(
      (prompt) =>
        `The prompt "${prompt}" does not name "${subject.token}", so it will show any ${subject.className}.`,
    );
}

/** In a caption this stands for the subject: "{} on a sofa" is "sks dog on a sofa". */
const SUBJECT = '{}';

/**
 * The instance prompt that a picture's caption is. A caption without `{}` is used as it is.
 *
 * @throws InputError naming the caption's place, when it does not name the subject.
 */
export function captionPrompt(
  caption: { readonly text: string; readonly origin: string },
  subject: NamedSubject,
): string {
  const named = subjectName(subject);
  const prompt = caption.text.replaceAll(SUBJECT, named);
  if (mentionsSubject(prompt, subject)) return prompt;
  throw new InputError(
    `${caption.origin}: the caption "${caption.text}" does not hold the rare word "${subject.token}", so the picture would teach the model nothing about it. Write "${named}" or {} where the subject is named, or leave all captions out with --no-captions.`,
  );
}

/** Scenes to draw a subject in where the user named none; the wording is DreamBench's (Ruiz et al., CVPR 2023). */
export const defaultScenes: readonly string[] = [
  'in the jungle',
  'in the snow',
  'on the beach',
  'on a cobblestone street',
  'on top of pink fabric',
  'with a mountain in the background',
];

/** One prompt a scene: "a sks backpack in the snow". With `withToken: false`, as text metrics want it: "a backpack in the snow". */
export function scenePrompts(
  subject: NamedSubject,
  scenes: readonly string[] = defaultScenes,
  { withToken = true }: { readonly withToken?: boolean } = {},
): string[] {
  const named = withToken ? subjectName(subject) : subject.className;
  return scenes.map((scene) => `a ${named} ${scene}`);
}
