// One side of the benchmark of forward passes: ours, in a process of its own. It prints a line of JSON when it is ready, runs once for each line "step" that it
// reads, and ends at "end".
import { createInterface } from 'node:readline';
import { createNodeEngine } from '../src/engine/node.js';
import type { Graph } from '../src/onnx/graph.js';
import { StableDiffusion } from '../src/pretrained/stable-diffusion.js';
import { drawingGraphs } from '../src/pretrained/text-to-image.js';
import type { Tensor } from '../src/tensor/tensor.js';
import { encoderGraph } from '../src/training/latent-cache.js';
import { type ForwardPart, forwardInputs } from './forward-inputs.js';
import { peakMemory } from './peak-memory.js';

interface Task {
  readonly model: string;
  readonly threads: number;
  readonly part: ForwardPart;
}

const { model: path, threads, part } = JSON.parse(process.argv[2] ?? '{}') as Task;
const say = (line: object): void => void process.stdout.write(`${JSON.stringify(line)}\n`);

const model = await StableDiffusion.open(path);
const feeds = Object.fromEntries(forwardInputs(model, part));

const building = performance.now();
const graphs = drawingGraphs(model);
const parts: Readonly<Record<ForwardPart, readonly [graph: () => Graph, output: string]>> = {
  denoiser: [() => graphs.denoiser(2), 'prediction'],
  'text encoder': [graphs.text, 'condition'],
  'autoencoder, decoding': [() => graphs.decoder(1), 'pixels'],
  'autoencoder, encoding': [() => encoderGraph(model, feeds.pixels!.shape), 'mean'],
};
const [graph, output] = parts[part];
const built = graph();
const engine = createNodeEngine({ threads });
const compiling = performance.now();
const program = await engine.compile(built);
say({
  buildSeconds: (compiling - building) / 1000,
  compileSeconds: (performance.now() - compiling) / 1000,
  version: `Node ${process.versions.node}`,
});
for await (const line of createInterface({ input: process.stdin })) {
  if (line !== 'step') break;
  const started = performance.now();
  const results = await program.run(feeds);
  const seconds = (performance.now() - started) / 1000;
  const values = (results[output] as Tensor<'float32'>).data;
  say({ seconds, loss: values.reduce((sum, v) => sum + Math.abs(v), 0) / values.length });
}
await program.release();
say({ peakBytes: peakMemory() });
await engine.close();
