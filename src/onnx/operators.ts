/** The operators that graphs are made of: ONNX opset 20, and the fused activation, matrix product and attention of ONNX Runtime's own domain. */
export const operators = [
  // elementwise, one operand
  'Neg',
  'Abs',
  'Sign',
  'Exp',
  'Log',
  'Sqrt',
  'Reciprocal',
  'Sigmoid',
  'Tanh',
  'Erf',
  'Sin',
  'Cos',
  'Relu',
  'LeakyRelu',
  'Clip',
  'Gelu',
  'QuickGelu',
  'Cast',
  'Not',
  // elementwise, several operands
  'Add',
  'Sub',
  'Mul',
  'Div',
  'Pow',
  'Max',
  'Min',
  'Where',
  'Equal',
  'Less',
  'Greater',
  'And',
  'Or',
  // linalg
  'MatMul',
  'FusedMatMul',
  'Gemm',
  // conv
  'Conv',
  'ConvTranspose',
  'AveragePool',
  'MaxPool',
  'Resize',
  // movement
  'DepthToSpace',
  'SpaceToDepth',
  'Reshape',
  'Transpose',
  'Concat',
  'Split',
  'Slice',
  'Pad',
  'Expand',
  'Gather',
  // reduction
  'ReduceSum',
  'ReduceMean',
  'ReduceMax',
  'ReduceMin',
  'ArgMax',
  // norm
  'Softmax',
  'LayerNormalization',
  // attention
  'MultiHeadAttention',
] as const;

export type Operator = (typeof operators)[number];

/** ONNX operator set version that graphs are written for. */
export const OPSET_VERSION = 20;

/** Operators outside the default ONNX domain, with the domain that defines them. */
export const operatorDomains: Readonly<Partial<Record<Operator, string>>> = {
  QuickGelu: 'com.microsoft',
  FusedMatMul: 'com.microsoft',
  MultiHeadAttention: 'com.microsoft',
};
