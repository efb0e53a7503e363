import assert from 'node:assert/strict';
import { test } from 'node:test';
import { deviceFault } from '../../src/engine/device.js';
import { createNodeEngine } from '../../src/engine/node.js';
import { EngineError } from '../../src/errors.js';
import { add } from '../../src/onnx/elementwise.js';
import { Graph } from '../../src/onnx/graph.js';

test('what the runtime says of a device is told in plain words, with what to install', () => {
  const adapter =
    'onnxruntime/core/providers/webgpu/webgpu_context.cc:136 onnxruntime::webgpu::WebGpuContext::Initialize(…)::<lambda()> adapter_result.status == …';
  assert.match(
    deviceFault('webgpu', adapter),
    /^The device "webgpu" cannot be used on this machine: no graphics driver was found\. It needs a graphics driver: Vulkan .* Or leave --device out/,
  );
  assert.match(
    deviceFault('cuda', 'OrtSessionOptionsAppendExecutionProvider_Cuda: Failed to load shared library'),
    /: its libraries are missing\. It needs Linux on x64, .*ONNXRUNTIME_NODE_INSTALL=cuda12 node /,
  );
  const transpose =
    'shader_helper.cc:416 GenerateSourceCode Program Transpose requires f16 but the device does not support it.';
  assert.match(
    deviceFault('webgpu', transpose),
    /^The device "webgpu" of this machine cannot compute in half precision: .* Use --mixed-precision no/,
  );
  assert.match(
    deviceFault('coreml', 'something else\nand more'),
    /: something else\. Core ML is there on macOS only/,
  );
});

test('a device of another platform is an error that says so, and the engine can still be closed', async () => {
  const device = process.platform === 'win32' ? 'coreml' : 'dml';
  const graph = new Graph('sum');
  const x = graph.input('x', 'float32', [2]);
  graph.output('sum', add(x, x));
  const engine = createNodeEngine({ device });
  await assert.rejects(engine.compile(graph), (error) => {
    assert.ok(error instanceof EngineError, String(error));
    assert.match(error.message, /ONNX Runtime for this platform does not have it\. .* is there on \w+ only/);
    return true;
  });
  await engine.close();
});
