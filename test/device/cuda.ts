import { compareWithProcessor } from './parity.js';

compareWithProcessor({ device: 'cuda', provider: 'CUDAExecutionProvider' });
