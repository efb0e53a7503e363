// Run by node.test.ts in a process of its own: says what the environment and the loaded libraries are before and after an engine is made.
import { readFileSync } from 'node:fs';
import { createNodeEngine } from '../../src/engine/node.js';
import { exp } from '../../src/onnx/elementwise.js';
import { Graph } from '../../src/onnx/graph.js';

/** Whether the native library is in this process; undefined where the system does not tell. */
const isLoaded = (): boolean | undefined =>
  process.platform === 'linux'
    ? readFileSync('/proc/self/maps', 'utf8').includes('libonnxruntime')
    : undefined;
const now = () => ({ telemetryOff: process.env.ORT_DISABLE_TELEMETRY, isLoaded: isLoaded() });

const before = now();
const engine = createNodeEngine({ threads: 1 });
const made = now();
const graph = new Graph();
graph.output('y', exp(graph.input('x', 'float32', [1])));
await engine.compile(graph);
const compiled = now();
// The engine is left open: the process ends by itself nevertheless.
process.stdout.write(JSON.stringify({ before, made, compiled }));
