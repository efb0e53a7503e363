import { personalise } from '../../src/workflows/personalise.js';
import { fullTinyRun } from './tiny-run.js';

// A run in a process of its own, for tests that kill it: node tiny-run-process.js IMAGES OUTPUT
const [, , images, output] = process.argv;
await personalise({ ...fullTinyRun(images!, output!), resumeFromCheckpoint: 'latest' });
