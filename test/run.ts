// Runs the tests: all of them, or those whose path holds one of the words given (`npm test -- formats cli`). Starts from the sources, so that compiled files of tests
// that are gone never run.
import { existsSync, readdirSync } from 'node:fs';
import path from 'node:path';
import { finished } from 'node:stream/promises';
import { run } from 'node:test';
import { spec } from 'node:test/reporters';
import { fileURLToPath } from 'node:url';

const compiled = fileURLToPath(new URL('./', import.meta.url));
const sources = fileURLToPath(new URL('../../test/', import.meta.url));
const words = process.argv.slice(2);

const names = (readdirSync(sources, { recursive: true }) as string[])
  .filter((name) => name.endsWith('.test.ts'))
  .filter((name) => words.length === 0 || words.some((word) => name.includes(word)))
  .sort();
const files = names.map((name) => path.join(compiled, name.replace(/\.ts$/, '.js')));
const missing = files.filter((file) => !existsSync(file));
if (missing.length > 0) throw new Error(`not compiled: ${missing.join(', ')}. Run "npm run build" first.`);

const count = { passed: 0, failed: 0, skipped: 0 };
if (files.length > 0) {
  const events = run({ files, concurrency: 2 });
  const isTest = (details: { readonly type?: string | undefined }): boolean => details.type !== 'suite';
  events.on('test:pass', ({ details, skip }) => {
    if (isTest(details)) count[skip === undefined ? 'passed' : 'skipped']++;
  });
  events.on('test:fail', ({ details, todo }) => {
    if (isTest(details)) count[todo === undefined ? 'failed' : 'skipped']++;
  });
  const report = events.compose(new spec());
  report.pipe(process.stdout, { end: false });
  await finished(report);
}

const skipped = count.skipped > 0 ? `, ${count.skipped} skipped` : '';
process.stdout.write(`${count.passed} passed, ${count.failed} failed${skipped}\n`);
process.exitCode = count.failed > 0 || count.passed === 0 ? 1 : 0;
