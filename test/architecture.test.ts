import assert from 'node:assert/strict';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

const sources = fileURLToPath(new URL('../../src/', import.meta.url));

/** A file imports only from its own folder and from folders above it. */
const order = [
  'tensor',
  'formats',
  'onnx',
  'autodiff',
  'engine',
  'optim',
  'nn',
  'models',
  'diffusion',
  'pretrained',
  'data',
  'rewards',
  'algorithms',
  'training',
  'evaluation',
  'workflows',
  'cli',
];

/** Files outside the folders: the errors stand above all of them, the public API below. */
const above = ['errors.ts'];
const below = ['index.ts'];

/** Folders that use web standards only, so that they also run in a browser. */
const core = ['tensor', 'onnx', 'autodiff', 'optim', 'nn', 'models', 'diffusion', 'rewards', 'algorithms'];

interface Import {
  readonly file: string;
  readonly specifier: string;
  /** The imported source file, relative to src, for imports of ours. */
  readonly target: string | undefined;
  /** Whether importing the file loads the target: not for types, nor for `import(…)`, which loads when it is called. */
  readonly loads: boolean;
}

const files = (readdirSync(sources, { recursive: true }) as string[])
  .filter((f) => f.endsWith('.ts'))
  .map((f) => f.split(path.sep).join('/'))
  .sort();

/** The source without comments, so that examples in them are not taken for code. */
const code = new Map(
  files.map((file) => {
    const text = readFileSync(path.join(sources, file), 'utf8');
    return [file, text.replace(/\/\*[\s\S]*?\*\//g, '').replace(/^\s*\/\/.*$/gm, '')];
  }),
);

const imports: Import[] = files.flatMap((file) => {
  const matches = [
    ...code.get(file)!.matchAll(/\b(?:import|export)\b[^'";]*?\bfrom\s*'([^']+)'/g),
    ...code.get(file)!.matchAll(/\bimport\s*\(?\s*'([^']+)'/g),
  ];
  return matches.map(([text, specifier = '']) => ({
    file,
    specifier,
    loads: !/^(?:import|export)\s+type\b|^import\s*\(/.test(text),
    target: specifier.startsWith('.')
      ? path.posix.join(path.posix.dirname(file), specifier).replace(/\.js$/, '.ts')
      : undefined,
  }));
});

/** Where a file stands: 0 above all folders, then the folders, then the public API. */
function rank(file: string): number {
  if (above.includes(file)) return 0;
  if (below.includes(file)) return order.length + 1;
  return 1 + order.indexOf(file.split('/')[0]!);
}

const folder = (file: string): string => file.split('/')[0]!;
const told = (found: readonly Import[]): string[] => found.map((i) => `${i.file} imports ${i.specifier}`);

test('the imports of the sources were read', () => {
  assert.ok(files.length > 10);
  assert.ok(imports.some((i) => i.file === 'tensor/tensor.ts' && i.target === 'tensor/dtype.ts'));
  for (const { file, specifier, target } of imports) {
    if (target)
      assert.ok(existsSync(path.join(sources, target)), `${file} imports ${specifier}, which is not there`);
  }
});

test('every source file is in a folder of the list', () => {
  const strangers = files.filter(
    (f) => !above.includes(f) && !below.includes(f) && !order.includes(folder(f)),
  );
  assert.deepEqual(strangers, []);
});

test('imports point upwards in the order of the folders', () => {
  assert.deepEqual(told(imports.filter((i) => i.target && rank(i.target) > rank(i.file))), []);
});

test('no import cycles', () => {
  const targets = new Map<string, string[]>(files.map((f) => [f, []]));
  for (const { file, target } of imports) if (target) targets.get(file)!.push(target);
  const finished = new Set<string>();
  const visit = (file: string, trail: readonly string[]): string[] => {
    const start = trail.indexOf(file);
    if (start >= 0) return [...trail.slice(start), file];
    if (finished.has(file)) return [];
    for (const next of targets.get(file) ?? []) {
      const cycle = visit(next, [...trail, file]);
      if (cycle.length) return cycle;
    }
    finished.add(file);
    return [];
  };
  for (const file of files) assert.deepEqual(visit(file, []), []);
});

test('core folders use web standards only', () => {
  const inCore = files.filter((f) => core.includes(folder(f)));
  const outside = imports.filter(
    (i) => inCore.includes(i.file) && !i.target && !i.specifier.startsWith('@bufbuild/protobuf'),
  );
  assert.deepEqual(told(outside), []);
  const nodeGlobals = inCore.filter((f) => /\b(?:process\.|Buffer\b|__dirname|require\()/.test(code.get(f)!));
  assert.deepEqual(nodeGlobals, []);
});

test('core files import no file of ours that needs Node', () => {
  const needsNode = new Set(imports.filter((i) => i.specifier.startsWith('node:')).map((i) => i.file));
  const direct = imports.filter((i) => core.includes(folder(i.file)) && i.target && needsNode.has(i.target));
  assert.deepEqual(told(direct), []);
});

test('only the engine knows ONNX Runtime', () => {
  const found = imports.filter((i) => i.specifier.startsWith('onnxruntime') && folder(i.file) !== 'engine');
  assert.deepEqual(told(found), []);
});

test("only one file knows the hub's library, and nothing loads it before a model of the hub is asked for", () => {
  const library = imports.filter((i) => i.specifier.startsWith('@huggingface/hub'));
  assert.deepEqual(told(library), ['pretrained/hub-client.ts imports @huggingface/hub']);
  const loaded = new Set<string>();
  const load = (file: string): void => {
    if (loaded.has(file)) return;
    loaded.add(file);
    for (const i of imports) if (i.file === file && i.target && i.loads) load(i.target);
  };
  load('index.ts');
  assert.ok(loaded.has('pretrained/model-reference.ts'));
  assert.deepEqual(
    [...loaded].filter((file) => /hub-client|\/hub\.ts/.test(file)),
    [],
  );
});

test('no barrels, default exports, enums or catch-all files', () => {
  const exported = files.filter((f) => !below.includes(f));
  assert.deepEqual(
    exported.filter((f) => /\bexport\s*(?:\*|\{[^}]*\}\s*from)/.test(code.get(f)!)),
    [],
    'barrels',
  );
  assert.deepEqual(
    files.filter((f) => /\bexport\s+default\b/.test(code.get(f)!)),
    [],
    'default exports',
  );
  assert.deepEqual(
    files.filter((f) => /^\s*(?:export\s+)?(?:const\s+)?enum\s/m.test(code.get(f)!)),
    [],
    'enums',
  );
  assert.deepEqual(
    files.filter((f) => /(?:^|[/.-])(?:utils?|helpers?|common|misc)\b/.test(f)),
    [],
    'catch-all files',
  );
});
