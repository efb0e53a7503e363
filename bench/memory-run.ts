// A run of the memory benchmark, in a process of its own: trains as the options in its argument say and prints the most memory that it held, in bytes.
import type { PersonaliseOptions } from '../src/workflows/personalise.js';
import { personalise } from '../src/workflows/personalise.js';
import { peakMemory } from './peak-memory.js';

await personalise(JSON.parse(process.argv[2]!) as PersonaliseOptions);
process.stdout.write(`${peakMemory()}\n`);
