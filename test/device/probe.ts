// Ends well where the device of the first argument can add two numbers, and says why where it cannot.
import type { Device } from '../../src/engine/device.js';
import { createNodeEngine } from '../../src/engine/node.js';
import { add } from '../../src/onnx/elementwise.js';
import { Graph } from '../../src/onnx/graph.js';
import { float32 } from '../../src/tensor/tensor.js';

const graph = new Graph('sum');
const x = graph.input('x', 'float32', [2]);
graph.output('sum', add(x, x));
const engine = createNodeEngine({ device: process.argv[2] as Device });
try {
  const { sum } = await (await engine.compile(graph)).run({ x: float32([2], [1, 2]) });
  if (String(sum!.data) !== '2,4') throw new Error(`1 + 1, 2 + 2 gave ${sum!.data}`);
} catch (error) {
  process.stderr.write(`${error instanceof Error ? error.message : error}\n`);
  process.exitCode = 1;
} finally {
  await engine.close().catch(() => undefined);
}
