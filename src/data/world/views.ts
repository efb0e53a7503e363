import { Random } from '../../tensor/random.js';
import { sampleExample } from './example.js';
import { drawSvg } from './picture.js';
import { renderSvg } from './render.js';
import { SCENES } from './scenes.js';
import { type Subject, subjectKey } from './subject.js';

/** Subject number `index` of the world with this seed; the same whatever is drawn before it, and never a held-out one. */
export function worldSubject(seed: number, index: number): Subject {
  return sampleExample(new Random(seed, 'subject', index)).subject;
}

/** Subjects of the world with seed `seed` of which no look is among the `seen`, `count` different ones. */
export function unseenSubjects(seed: number, count: number, seen: ReadonlySet<string>): Subject[] {
  const found = new Map<string, Subject>();
  for (let i = 0; found.size < count; i++) {
    const subject = worldSubject(seed, i);
    const key = subjectKey(subject);
    if (!seen.has(key) && !found.has(key)) found.set(key, subject);
  }
  return [...found.values()];
}

/** Draws subjects in poses and places of their own, `views` times each: [size, size, 3] bytes a picture, the views of a subject beside each other. */
export async function renderViews(
  subjects: readonly Subject[],
  views: number,
  size: number,
  seed: number,
): Promise<Uint8Array[]> {
  const pictures = new Array<Uint8Array>(subjects.length * views);
  let next = 0;
  const draw = async () => {
    while (next < pictures.length) {
      const i = next++;
      const random = new Random(seed, 'view', i);
      const subject = subjects[Math.floor(i / views)]!;
      pictures[i] = await renderSvg(
        drawSvg({ subject, scene: random.pick(SCENES).name }, size, random),
        size,
      );
    }
  };
  await Promise.all(Array.from({ length: Math.min(4, pictures.length) }, draw));
  return pictures;
}
