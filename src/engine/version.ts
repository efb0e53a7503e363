import { createRequire } from 'node:module';

/** The version of ONNX Runtime that graphs are run by. Its kernels, and so the last bits of results, change with it. */
export function onnxRuntimeVersion(): string {
  const read = createRequire(import.meta.url);
  return (read('onnxruntime-node/package.json') as { readonly version: string }).version;
}
