// Run by recompute-memory.test.ts in a process of its own, so that its peak is its own: one forward and backward pass through a deep stack of blocks, whose inner
// values are kept or ("recompute" as the second argument) computed again. Says what memory it took, which kernels ran, and what the gradients are.
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { gradients } from '../../src/autodiff/gradient.js';
import { recompute } from '../../src/autodiff/recompute.js';
import { createNodeEngine } from '../../src/engine/node.js';
import { add, gelu, square } from '../../src/onnx/elementwise.js';
import { Graph, type Value } from '../../src/onnx/graph.js';
import { gemm } from '../../src/onnx/linalg.js';
import { mean } from '../../src/onnx/reduction.js';
import { Random } from '../../src/tensor/random.js';
import type { Tensor } from '../../src/tensor/tensor.js';

const BLOCKS = 24;
const [ROWS, WIDTH, INNER] = [1024, 32, 256];

/** What the parent reads. */
export interface Measured {
  readonly blocks: number;
  /** Peak of the resident memory over the run, above what the process held before, in bytes. */
  readonly peak: number;
  /** How often each operator ran. */
  readonly kernels: Readonly<Record<string, number>>;
  readonly loss: number;
  readonly gradients: readonly number[];
}

function memory(field: 'VmHWM' | 'VmRSS'): number {
  if (process.platform !== 'linux') {
    return field === 'VmRSS' ? process.memoryUsage().rss : process.resourceUsage().maxRSS * 1024;
  }
  const line = new RegExp(`^${field}:\\s+(\\d+) kB$`, 'm').exec(readFileSync('/proc/self/status', 'utf8'));
  return Number(line![1]) * 1024;
}

function kernelCounts(profile: string): Record<string, number> {
  const events = JSON.parse(readFileSync(profile, 'utf8')) as { name: string; args?: { op_name?: string } }[];
  const counts: Record<string, number> = {};
  for (const { name, args } of events) {
    if (!name.endsWith('_kernel_time') || !args?.op_name) continue;
    counts[args.op_name] = (counts[args.op_name] ?? 0) + 1;
  }
  return counts;
}

async function measure(folder: string, recomputed: boolean): Promise<Measured> {
  const graph = new Graph('stack');
  const weights: Value[] = [];
  const block = (h: Value): Value => {
    const [widen, narrow] = [
      graph.input(`widen.${weights.length}`, 'float32', [WIDTH, INNER]),
      graph.input(`narrow.${weights.length}`, 'float32', [INNER, WIDTH]),
    ];
    weights.push(widen, narrow);
    return add(h, gemm(gelu(gemm(h, widen)), narrow));
  };
  let h = graph.input('x', 'float32', [ROWS, WIDTH]);
  for (let i = 0; i < BLOCKS; i++) h = recomputed ? recompute([h], block) : block(h);
  const loss = mean(square(h));
  graph.output('loss', loss);
  gradients(loss, weights).forEach((g, i) => {
    graph.output(`gradient ${i}`, mean(square(g), [0]));
  });

  const random = new Random(7);
  const feeds = Object.fromEntries(
    graph.inputs.map((v): [string, Tensor] => {
      const t = random.derive(v.name).normals(v.shape);
      if (v.name !== 'x') for (let i = 0; i < t.data.length; i++) t.data[i] = 0.05 * t.data[i]!;
      return [v.name, t];
    }),
  );
  const engine = createNodeEngine({ threads: 1 });
  const prefix = path.join(folder, recomputed ? 'recomputed' : 'kept');
  const program = await engine.compile(graph, { profilePrefix: prefix });
  const held = memory('VmRSS');
  const results = await program.run(feeds);
  const peak = memory('VmHWM') - held;
  const profile = await program.release();
  await engine.close();
  return {
    blocks: BLOCKS,
    peak,
    kernels: kernelCounts(profile!),
    loss: results.loss!.data[0] as number,
    gradients: weights.flatMap((_, i) => Array.from(results[`gradient ${i}`]!.data as Float32Array)),
  };
}

const [folder, mode] = process.argv.slice(2);
process.stdout.write(JSON.stringify(await measure(folder!, mode === 'recompute')));
