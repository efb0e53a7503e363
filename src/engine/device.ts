/** Where graphs run, by the name of ONNX Runtime's execution provider. */
export type Device = 'cpu' | 'cuda' | 'webgpu' | 'dml' | 'coreml';

export const devices: readonly Device[] = ['cpu', 'cuda', 'webgpu', 'dml', 'coreml'];

/** What each device needs that this package does not bring. */
const needs: Readonly<Record<Exclude<Device, 'cpu'>, string>> = {
  cuda: 'It needs Linux on x64, an NVIDIA driver, CUDA 13, cuDNN 9, and libraries that "ONNXRUNTIME_NODE_INSTALL=cuda12 node node_modules/onnxruntime-node/script/install.js" downloads.',
  webgpu:
    'It needs a graphics driver: Vulkan with its loader (libvulkan1) on Linux x64, Direct3D 12 on Windows, Metal on macOS.',
  dml: 'DirectML is there on Windows only.',
  coreml: 'Core ML is there on macOS only.',
};

/** What the runtime says in the words of its source code. */
const plainReasons: readonly (readonly [RegExp, string])[] = [
  [/adapter_result|no adapter|RequestAdapter/i, 'no graphics driver was found'],
  [
    /Failed to load shared library|libonnxruntime_providers|libcu\w+\.so|cudnn|cublas/i,
    'its libraries are missing',
  ],
  [/CUDA failure|no CUDA-capable device/i, 'no NVIDIA card was found'],
];

/** Whether that is how a device says that it has no 16-bit floats. */
export const lacksHalves = (reason: string): boolean => /requires f16|shader-f16/i.test(reason);

/** Why a device cannot be used, in words that a person can act on. */
export function deviceFault(device: Exclude<Device, 'cpu'>, reason: string): string {
  if (lacksHalves(reason)) {
    return `The device "${device}" of this machine cannot compute in half precision: it, or its driver, has no 16-bit floats. Use --mixed-precision no, or another device.`;
  }
  const plain = plainReasons.find(([pattern]) => pattern.test(reason))?.[1];
  const shortReason = plain ?? reason.split('\n')[0]!.slice(0, 200);
  return `The device "${device}" cannot be used on this machine: ${shortReason}. ${needs[device]} Or leave --device out: the processor always works.`;
}
