// Scores the small encoders by retrieval on subjects and captions that they were not trained on, and trains those that are missing.
// npm run bench:encoders -- [--folder models/encoders] [--work DIR] [--threads N] [--only NAME]
import { existsSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { progressListener } from '../src/cli/progress.js';
import { createNodeEngine } from '../src/engine/node.js';
import { PortrayalError } from '../src/errors.js';
import { clipDefaults, trainClip } from '../src/training/clip-training.js';
import { dinoDefaults, trainDino } from '../src/training/dino-training.js';
import { ENCODERS, promptRetrieval, subjectRetrieval } from './encoder-retrieval.js';

const SUBJECTS = 200;
const PROMPTS = 100;
const BARS = { dino: 0.85, clip: 0.8 };

const root = fileURLToPath(new URL('../../', import.meta.url));
const { values: options } = parseArgs({
  options: {
    folder: { type: 'string', default: join(root, 'models', 'encoders') },
    work: { type: 'string', default: join(tmpdir(), 'portrayal-encoders') },
    threads: { type: 'string', default: String(availableParallelism()) },
    only: { type: 'string' },
  },
});

const percent = (share: number): string => `${(100 * share).toFixed(1)} %`;

async function main(): Promise<void> {
  const engine = createNodeEngine({ threads: Number(options.threads) });
  const onEvent = progressListener(process.stderr);
  try {
    for (const { name, kind, seed } of ENCODERS) {
      if (options.only !== undefined && options.only !== name) continue;
      const path = join(options.folder, name);
      if (!existsSync(join(path, 'model.safetensors'))) {
        const common = { output: path, work: join(options.work, name), engine, seed, onEvent };
        if (kind === 'dino') await trainDino({ ...dinoDefaults, ...common });
        else await trainClip({ ...clipDefaults, ...common });
      }
      if (kind === 'dino') {
        const share = await subjectRetrieval(engine, path, SUBJECTS);
        const verdict = share >= BARS.dino ? 'reached' : 'MISSED';
        console.log(
          `${name}: ${percent(share)} of ${SUBJECTS} unseen subjects found; bar ${percent(BARS.dino)}: ${verdict}`,
        );
      } else {
        const { textToImage, imageToText } = await promptRetrieval(engine, path, PROMPTS);
        const verdict = Math.min(textToImage, imageToText) >= BARS.clip ? 'reached' : 'MISSED';
        console.log(
          `${name}: of ${PROMPTS} prompts ${percent(textToImage)} find their picture, ${percent(imageToText)} are found by it; bar ${percent(BARS.clip)}: ${verdict}`,
        );
      }
    }
  } finally {
    await engine.close();
  }
}

main().catch((error: unknown) => {
  if (!(error instanceof PortrayalError)) throw error;
  console.error(error.message);
  process.exitCode = 1;
});
