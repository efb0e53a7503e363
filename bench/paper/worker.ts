// One process of the bench: takes jobs, a line of JSON each, and answers each with a line. Started by bench/paper.ts.
import { createInterface } from 'node:readline';
import { createNodeEngine } from '../../src/engine/node.js';
import { pathExists } from '../../src/formats/path-exists.js';
import { trainAndDraw, Workplace } from './job.js';
import { keepMarks, Marking } from './marks.js';
import { readMaterial } from './material.js';
import type { Job } from './plan.js';

const place = new Workplace(process.argv[2]!, await readMaterial());
const engine = createNodeEngine({ threads: 1 });
const marking = await Marking.open(place, engine);
for await (const line of createInterface({ input: process.stdin })) {
  const job = JSON.parse(line) as Job;
  const started = performance.now();
  let answer: object;
  try {
    if (!(await pathExists(place.pictures(job)))) await trainAndDraw(job, place, engine);
    const marks = await marking.mark(job);
    await keepMarks(job, place, marks);
    answer = { seconds: (performance.now() - started) / 1000 };
  } catch (error) {
    answer = { error: error instanceof Error ? error.message : String(error) };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
await engine.close();
