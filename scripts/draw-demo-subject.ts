// Draws the bundled five pictures of the demo subject into examples/. Run once after a change to the world's drawings: node dist/scripts/draw-demo-subject.js
import { mkdir, writeFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { DEMO_SUBJECT } from '../src/data/world/held-out.js';
import { subjectPictures } from '../src/data/world/render.js';

const folder = fileURLToPath(new URL(`../../examples/${DEMO_SUBJECT.name}/`, import.meta.url));
await mkdir(folder, { recursive: true });
for (const [i, png] of (await subjectPictures(DEMO_SUBJECT, 5, 256, 12)).entries()) {
  await writeFile(`${folder}${i + 1}.png`, png);
}
console.log(`wrote 5 pictures to ${folder}`);
