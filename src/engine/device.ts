/** Where graphs run, by the name of ONNX Runtime's execution provider. */
export type Device = 'cpu' | 'cuda' | 'webgpu' | 'dml' | 'coreml';

export const devices: readonly Device[] = ['cpu', 'cuda', 'webgpu', 'dml', 'coreml'];

/** What each device needs that this package does not bring. */
const needs: Readonly<Record<Exclude<Device, 'cpu'>, string>> = {
  cuda: 'It needs Linux or Windows on x64, an NVIDIA driver, CUDA 12 and cuDNN 9, and the libraries that "npm_config_onnxruntime_node_install=cuda12 npm rebuild onnxruntime-node" downloads.',
  webgpu: 'It needs a graphics driver: Vulkan on Linux, Direct3D 12 on Windows, Metal on macOS.',
  dml: 'DirectML is there on Windows only.',
  coreml: 'Core ML is there on macOS only.',
};

/** Why a device cannot be used, in words that a person can act on. */
export function deviceFault(device: Exclude<Device, 'cpu'>, reason: string): string {
  const shortReason = reason.split('\n')[0]!.slice(0, 200);
  return `The device "${device}" cannot be used on this machine (${shortReason}). ${needs[device]} Or leave --device out: the processor always works.`;
}
