import { compareWithProcessor } from './parity.js';

compareWithProcessor({ device: 'webgpu', provider: 'WebGpuExecutionProvider' });
